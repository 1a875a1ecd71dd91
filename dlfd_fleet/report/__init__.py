"""What an erasure leaves in writing: a report for people, and a certificate that anybody can verify offline.

:func:`in_short` says an :class:`ErasureReport` in three lines, :func:`render` makes its page, :func:`issue` signs a
certificate of it, and :func:`verify` checks one against a key that the verifier names. No torch, Flower or MLflow is
needed for any of it.
"""

from dlfd_fleet.report.certificate import Statement, issue, read, verify
from dlfd_fleet.report.contents import ErasureReport
from dlfd_fleet.report.in_short import InShort, in_short
from dlfd_fleet.report.keys import load_public_key, load_signer, public_key_file
from dlfd_fleet.report.page import DeliveryProgress, render
from dlfd_fleet.report.words import certified

REPORT_FILE, PAGE_FILE, CERTIFICATE_FILE = "report.json", "report.html", "certificate.json"

__all__ = [
    "CERTIFICATE_FILE",
    "PAGE_FILE",
    "REPORT_FILE",
    "DeliveryProgress",
    "ErasureReport",
    "InShort",
    "Statement",
    "certified",
    "in_short",
    "issue",
    "load_public_key",
    "load_signer",
    "public_key_file",
    "read",
    "render",
    "verify",
]
