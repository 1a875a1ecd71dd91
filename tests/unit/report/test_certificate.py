"""A certificate holds as it was signed, and in no other way."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.exceptions import EvidenceError
from dlfd_fleet.report import certified, issue, load_public_key, load_signer, public_key_file, read, verify
from dlfd_fleet.report.certificate import PAYLOAD_TYPE
from tests.erasure_report import make_report

KEPT = Path(__file__).parent / "certificates"


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A certificate, the key that signed it, and its public half."""
    folder = tmp_path_factory.mktemp("signed")
    signer = load_signer(folder / "keys" / "certificate.pem")
    file = folder / "certificate.json"
    file.write_bytes(issue(make_report(), signer))
    return file, load_public_key(public_key_file(folder / "keys" / "certificate.pem")), signer


def envelope_of(file):
    return json.loads(file.read_text())


def forged(tmp_path, envelope, payload=None):
    """Write an envelope as certificates are written, with another payload under the old signature."""
    if payload is not None:
        envelope = envelope | {"payload": base64.b64encode(json.dumps(payload).encode()).decode()}
    file = tmp_path / "forged.json"
    file.write_text(json.dumps(envelope, indent=2) + "\n")
    return file


def test_a_certificate_says_what_the_report_says(signed):
    file, key, _ = signed
    statement, _ = verify(file, key)
    claims, report = statement.predicate, make_report()
    assert statement == read(file)
    assert {subject.name: subject.digest.sha256 for subject in statement.subject} == {"model.onnx": "c" * 64}
    assert (claims.job, claims.epoch, claims.parent_sha256) == (report.job, 1, "ab" * 32)
    assert [request.served for request in claims.requests] == [True, False]
    assert claims.requests[0].deadline == report.asked[0].deadline
    assert claims.scores["unlearned"]["mia_auc_low"] == pytest.approx(0.41)
    assert claims.settings_sha256 == report.settings_sha256
    assert (claims.verdict.margin, claims.verdict.power) == (0.1, 0.83)
    said = " ".join(certified(statement))
    assert "does not prove that a model has forgotten anybody" in said
    assert "margin 0.10, power 0.83" in said


def test_a_certificate_of_training_anew_says_that_it_is_exact_beside_what_was_measured(tmp_path):
    verdict = Verdict(outcome=Outcome.INCONCLUSIVE, reasons=("too few images",), margin=0.1, power=0.05, exact=True)
    exactness = "The model was trained anew on everybody else, from random weights. So the procedure is exact."
    report = make_report(way="retrain", retrained=True, exact=True, exactness=exactness, verdict=verdict)
    (tmp_path / "certificate.json").write_bytes(issue(report, load_signer(tmp_path / "certificate.pem")))
    statement = read(tmp_path / "certificate.json")
    assert (statement.predicate.model, statement.predicate.verdict.exact) == ("retrained", True)
    said = " ".join(certified(statement))
    assert exactness in said
    assert "was judged INCONCLUSIVE (too few images). The audit is inconclusive" in said


def test_it_is_an_in_toto_statement_in_dsse_by_an_implementation_of_its_own(signed):
    """The specifications' own words: PAE of the payload, ed25519, and the fields of a Statement v1."""
    file, key, _ = signed
    envelope = envelope_of(file)
    payload, kind = base64.b64decode(envelope["payload"], validate=True), envelope["payloadType"].encode()
    pae = b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload])
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), pae)
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(payload)
    assert statement.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "model.onnx", "digest": {"sha256": "c" * 64}}]


@given(data=st.data(), bit=st.integers(0, 7))
def test_any_changed_byte_is_refused(signed, tmp_path_factory, data, bit):
    file, key, _ = signed
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << bit
    changed = tmp_path_factory.mktemp("changed") / "certificate.json"
    changed.write_bytes(content)
    with pytest.raises(EvidenceError):
        verify(changed, key)


@given(data=st.data())
def test_a_certificate_cut_short_or_grown_is_refused(signed, tmp_path_factory, data):
    file, key, _ = signed
    content = file.read_bytes()
    kept = data.draw(st.integers(0, len(content) - 1))
    changed = tmp_path_factory.mktemp("cut") / "certificate.json"
    changed.write_bytes(data.draw(st.sampled_from([content[:kept], content + b" ", b" " + content, content * 2])))
    with pytest.raises(EvidenceError):
        verify(changed, key)


def leaves(tree, path=()):
    """Yield the path of every value of a JSON tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, child in children:
        yield from leaves(child, (*path, name))
    if not isinstance(tree, dict | list):
        yield path


PAYLOAD = json.loads(base64.b64decode(json.loads((KEPT / "format-1.json").read_text())["payload"]))


@pytest.mark.parametrize("path", list(leaves(PAYLOAD)), ids=lambda path: ".".join(map(str, path)))
def test_no_claim_can_be_changed_under_the_signature(tmp_path, path):
    payload = json.loads(json.dumps(PAYLOAD))
    *parents, leaf = path
    branch = payload
    for parent in parents:
        branch = branch[parent]
    value = branch[leaf]
    branch[leaf] = value + 1 if isinstance(value, int | float) else f"{value}0"
    with pytest.raises(EvidenceError):
        verify(
            forged(tmp_path, envelope_of(KEPT / "format-1.json"), payload), load_public_key(KEPT / "format-1.pub.pem")
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"payloadType": "application/json"}, "not as it was written"),
        ({"signatures": []}, "no valid signature|valid signature"),
        ({"signatures": [{"keyid": "0" * 64, "sig": "AAAA"}]}, "valid signature"),
        ({"note": "approved"}, "not as it was written"),
        ({"payload": 3}, "no certificate"),
    ],
)
def test_an_envelope_of_another_kind_is_refused(signed, tmp_path, changes, words):
    file, key, _ = signed
    with pytest.raises(EvidenceError, match=words):
        verify(forged(tmp_path, envelope_of(file) | changes), key)


def test_another_key_with_the_same_id_is_refused(signed, tmp_path):
    file, _, _ = signed
    other = load_signer(tmp_path / "other.pem").public_key
    with pytest.raises(EvidenceError, match="named key"):
        verify(file, other)
    envelope = envelope_of(file)
    envelope["signatures"][0]["keyid"] = other.keyid
    with pytest.raises(EvidenceError, match="named key"):
        verify(forged(tmp_path, envelope), other)


def test_what_the_same_key_signed_for_another_purpose_is_no_certificate(signed, tmp_path):
    _, key, signer = signed
    for payload in (b'{"device": "7"}', json.dumps(PAYLOAD | {"predicateType": "urn:other:1"}).encode()):
        envelope = Envelope(payload, PAYLOAD_TYPE, {})
        envelope.sign(signer)
        with pytest.raises(EvidenceError, match="no certificate"):
            verify(forged(tmp_path, envelope.to_dict()), key)


def test_a_model_and_a_report_must_be_those_that_are_certified(tmp_path):
    model, report_file = tmp_path / "model.onnx", tmp_path / "report.json"
    model.write_bytes(b"a model")
    from hashlib import sha256

    report = make_report()
    digest = sha256(b"a model").hexdigest()
    report = report.model_copy(update={"files": {"fp32": report.files["fp32"].model_copy(update={"sha256": digest})}})
    report_file.write_bytes(report.to_json())
    signer = load_signer(tmp_path / "key.pem")
    certificate = tmp_path / "certificate.json"
    certificate.write_bytes(issue(report, signer))
    key = signer.public_key
    assert verify(certificate, key, [model], report_file)[1] == ["model.onnx"]
    other = tmp_path / "other.onnx"
    other.write_bytes(b"a modem")
    with pytest.raises(EvidenceError, match=r"other\.onnx is not a file that"):
        verify(certificate, key, [model, other])
    report_file.write_bytes(report.to_json().replace(b"40", b"41", 1))
    with pytest.raises(EvidenceError, match="is not the report"):
        verify(certificate, key, report=report_file)
    with pytest.raises(EvidenceError, match="cannot be read"):
        verify(certificate, key, [tmp_path / "nothing.onnx"])


@pytest.mark.parametrize("file", sorted(KEPT.glob("*.json")), ids=lambda file: file.stem)
def test_a_certificate_of_each_format_verifies_for_ever(file):
    statement, _ = verify(file, load_public_key(file.with_suffix(".pub.pem")))
    assert statement.predicate.epoch == 1
    assert list(certified(statement))


def test_a_job_that_released_nothing_gets_no_certificate(tmp_path):
    with pytest.raises(EvidenceError, match="released no model"):
        issue(make_report(released=False), load_signer(tmp_path / "key.pem"))


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path):
    file = tmp_path / "keys" / "certificate.pem"
    first, again = load_signer(file), load_signer(file)
    assert first.public_key == again.public_key == load_public_key(public_key_file(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with pytest.raises(EvidenceError, match="Others may read"):
        load_signer(file)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_key_that_is_none_is_named(tmp_path, content):
    file = tmp_path / "key.pem"
    file.write_bytes(content)
    with pytest.raises(EvidenceError, match=r"key\.pem"):
        load_public_key(file)
    file.chmod(0o600)
    with pytest.raises(EvidenceError, match=r"key\.pem"):
        load_signer(file)
    assert file.read_bytes() == content
