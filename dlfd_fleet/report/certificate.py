"""The certificate: a report's claims as an in-toto statement in a DSSE envelope, signed by the coordinator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from dlfd_fleet.audit import Evidence, Verdict
from dlfd_fleet.exceptions import EvidenceError
from dlfd_fleet.report import words
from dlfd_fleet.report.contents import ErasureReport
from dlfd_fleet.report.envelope import (
    PAYLOAD_TYPE,
    Claims,
    Digests,
    InTotoStatement,
    Sha256,
    Subject,
    read_signed,
    sign,
    verify_signature,
)
from dlfd_fleet.report.in_short import in_short

__all__ = ["PAYLOAD_TYPE", "Statement", "issue", "read", "verify"]

_LARGEST = 4 * 2**20


class VerdictClaim(Claims):
    """An outcome, and what the audit was able to see."""

    outcome: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    reasons: tuple[str, ...]
    margin: float
    """Of AUC."""
    power: float
    exact: bool = False
    """Whether the procedure is exact; the outcome is what was measured."""
    evidence: Evidence = Evidence.UNSEEN
    """What it rests on; certificates of earlier releases do not say it."""


class RequestClaim(Claims):
    """A request under its random id."""

    request: str
    asked_at: date
    deadline: date
    served: bool


class FileClaim(Claims):
    """One released file, attacked by itself."""

    sha256: Sha256
    verdict: VerdictClaim | None
    scores: dict[str, float]


class Predicate(Claims):
    """What is claimed of the subjects; scores have bounds as ``NAME_low`` and ``NAME_high`` (95%, over people)."""

    job: str
    model: Literal["unlearned", "retrained"]
    way: Literal["unlearn", "retrain"] = "unlearn"
    """Which way the job took at first."""
    aimed_at: tuple[str, ...] = ()
    """What each attempt to unlearn aimed at, and which failed, in words; earlier releases do not say it."""
    exactness: str = ""
    """Of a retrained model: whether that is exact, and why, in words."""
    epoch: Annotated[int, Field(ge=1)]
    parent_sha256: Sha256 | None
    """Of the weights that were unlearned from."""
    in_short: tuple[str, ...] = ()
    """Three lines: what was done, what was measured, what remains open; earlier releases have none."""
    procedure: str = ""
    """Whether the procedure was tried before, and what came of it, in words."""
    verdict: VerdictClaim
    scores: dict[str, dict[str, float]]
    """By model: original, unlearned, relearned, retrained."""
    files: dict[str, FileClaim]
    requests: tuple[RequestClaim, ...]
    counts: dict[str, int]
    software: dict[str, str]
    settings_sha256: Sha256
    report_sha256: Sha256
    issued_at: AwareDatetime


class Statement(InTotoStatement):
    """What a certificate says of the released files."""

    predicate_type: Literal["urn:dlfd-fleet:erasure-certificate:1"] = Field(
        "urn:dlfd-fleet:erasure-certificate:1", alias="predicateType"
    )
    predicate: Predicate


def issue(report: ErasureReport, signer: CryptoSigner) -> bytes:
    """Return the certificate of a report, signed.

    Raises
    ------
    EvidenceError
        If the report releases nothing that could be certified.
    """
    if not report.released or report.verdict is None:
        raise EvidenceError(f"{report.job} released no model, so there is nothing to certify.")
    return sign(Statement(subject=_subjects(report), predicate=_predicate(report)), signer)


def read(file: Path) -> Statement:
    """Return what a certificate says, without asking who signed it.

    Raises
    ------
    EvidenceError
        If it cannot be read, or differs in any byte from how certificates are written.
    """
    return _open(file)[1]


def verify(
    file: Path, key: SSlibKey, models: Iterable[Path] = (), report: Path | None = None
) -> tuple[Statement, list[str]]:
    """Check a certificate offline, and return what it says, and the names of the subjects that the files are.

    Parameters
    ----------
    key
        Public key of the coordinator that is trusted; there is no default.
    models
        Model files, which must be among the subjects.
    report
        ``report.json``, which must be the certified one.

    Raises
    ------
    EvidenceError
        If anything does not hold.
    """
    envelope, statement = _open(file)
    verify_signature(envelope, key, file)
    subjects = {subject.digest.sha256: subject.name for subject in statement.subject}
    found = []
    for model in models:
        name = subjects.get(_digest(model))
        if name is None:
            raise EvidenceError(f"{model} is not a file that {file} speaks of: its SHA-256 is not among the subjects.")
        found.append(name)
    if report is not None and _digest(report) != statement.predicate.report_sha256:
        raise EvidenceError(f"{report} is not the report that {file} was made from: its SHA-256 is another one.")
    return statement, found


def _open(file: Path) -> tuple[Envelope, Statement]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise EvidenceError(f"The certificate {file} cannot be read: {error.strerror}.") from error
    if len(content) > _LARGEST:
        raise EvidenceError(f"{file} is no certificate: it has {len(content)} bytes.")
    return read_signed(content, Statement, file, "certificate")


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise EvidenceError(f"{file} cannot be read: {error.strerror}.") from error


def _subjects(report: ErasureReport) -> tuple[Subject, ...]:
    return tuple(
        Subject(name=report.files[form].name, digest=Digests(sha256=report.files[form].sha256))
        for form in report.released_files
        if form in report.files
    )


def _predicate(report: ErasureReport) -> Predicate:
    files = {form: report.files[form] for form in report.released_files if form in report.files}
    return Predicate(
        job=report.job,
        model="retrained" if report.retrained else "unlearned",
        way=report.way,
        aimed_at=tuple(words.aimed(report)),
        exactness=report.exactness,
        epoch=report.epoch,
        parent_sha256=report.parent,
        in_short=in_short(report),
        procedure=report.procedure,
        verdict=_claim(report.verdict),
        scores={name: model.scores.metrics() for name, model in report.models.items()},
        files={
            form: FileClaim(
                sha256=file.sha256,
                verdict=_claim(file.verdict) if file.verdict else None,
                scores=file.scores.metrics(),
            )
            for form, file in files.items()
        },
        requests=tuple(
            RequestClaim(
                request=request.request,
                asked_at=request.asked_at,
                deadline=request.deadline,
                served=request.request in report.served,
            )
            for request in report.asked
        ),
        counts={
            "requests": report.requests,
            "served_requests": len(report.served),
            "sites": len(report.sites),
            "sites_acknowledged": len(report.acknowledged),
            "purged_images": report.purged_images,
            **{f"sites_audited_{name}": model.sites for name, model in report.models.items() if model.sites},
            **{f"sites_audited_{form}": file.sites for form, file in files.items() if file.sites},
        },
        software=report.software,
        settings_sha256=report.settings_sha256,
        report_sha256=hashlib.sha256(report.to_json()).hexdigest(),
        issued_at=datetime.now(UTC),
    )


def _claim(verdict: Verdict | None) -> VerdictClaim:
    assert verdict is not None  # noqa: S101 - issue() has refused it
    return VerdictClaim(
        outcome=verdict.outcome.value,
        reasons=verdict.reasons,
        margin=verdict.margin,
        power=verdict.power,
        exact=verdict.exact,
        evidence=verdict.evidence,
    )
