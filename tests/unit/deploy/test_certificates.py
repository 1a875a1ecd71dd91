"""The keys of a fleet, made by the script that an operator runs."""

from __future__ import annotations

import os
import runpy
import ssl
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

SCRIPT = Path(__file__).resolve().parents[3] / "deploy" / "certificates.py"


def certificates(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet") / "keys"
    done = certificates("make", folder, "superlink.example")
    assert done.returncode == 0, done.stderr
    assert "364 days" in done.stdout
    return folder


def shaken_hands(keys, name, trusted):
    """Return what a client that trusts a CA says of the SuperLink's certificate under a name: None if all is well."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=trusted)
    server.load_cert_chain(keys / "superlink.crt", keys / "superlink.key")
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    inside = server.wrap_bio(to_server, to_client, server_side=True)
    outside = client.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(10):
        for side in (outside, inside):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                return str(error)
    return None if outside.version() else "no handshake"


def test_a_client_trusts_the_superlink_under_its_names_only(keys, tmp_path):
    assert shaken_hands(keys, "superlink.example", keys / "ca.crt") is None
    assert shaken_hands(keys, "127.0.0.1", keys / "ca.crt") is None  # its proxy and its apps call it so
    assert "Hostname mismatch" in shaken_hands(keys, "other.example", keys / "ca.crt")
    assert certificates("make", tmp_path / "other", "superlink.example").returncode == 0
    assert "CERTIFICATE_VERIFY_FAILED" in shaken_hands(keys, "superlink.example", tmp_path / "other" / "ca.crt")


def test_a_node_has_a_key_pair_of_the_kind_that_flower_asks_for_and_it_is_never_overwritten(keys):
    assert certificates("node", keys, "clinic").returncode == 0
    file = keys / "nodes" / "clinic"
    private, public = (
        load_ssh_private_key(file.read_bytes(), None),
        load_ssh_public_key(file.with_name("clinic.pub").read_bytes()),
    )
    assert private.public_key() == public
    assert public.curve.name == "secp384r1"
    assert file.stat().st_mode & 0o077 == (keys / "superlink.key").stat().st_mode & 0o077 == 0
    before = file.read_bytes()
    for again in (certificates("node", keys, "clinic"), certificates("make", keys, "superlink.example")):
        assert again.returncode == 2
        assert "is there already and is not overwritten" in again.stderr
        assert "Traceback" not in again.stderr
    assert file.read_bytes() == before
    assert certificates("node", keys, "../clinic").returncode == 2


def test_a_certificate_of_another_ca_or_none_at_all_is_told(keys, tmp_path):
    assert certificates("check", keys).returncode == 0
    other = tmp_path / "other"
    assert certificates("make", other, "superlink.example").returncode == 0
    (other / "ca.crt").write_bytes((keys / "ca.crt").read_bytes())
    mixed = certificates("check", other)
    assert (mixed.returncode, "was not signed by" in mixed.stderr) == (2, True)
    assert "cannot be read as a certificate" in certificates("check", tmp_path / "nowhere").stderr


def test_an_expired_certificate_starts_nothing_and_is_one_sentence(tmp_path, monkeypatch):
    module = runpy.run_path(str(SCRIPT))

    class LastYear(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(days=365)

    monkeypatch.setitem(module["make"].__globals__, "datetime", LastYear)
    keys = tmp_path / "state" / "keys"
    module["make"](keys, ["127.0.0.1"], days=30)
    monkeypatch.undo()
    (tmp_path / "state" / "sites").mkdir()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    started = subprocess.run(
        [SCRIPT.with_name("local-fleet.sh"), tmp_path / "state"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert "certificate has expired" in shaken_hands(keys, "127.0.0.1", keys / "ca.crt")  # what a SuperNode says
    for done in (certificates("check", keys), started):
        assert done.returncode == 2
        assert "expired on" in done.stderr
        assert "Traceback" not in done.stderr
