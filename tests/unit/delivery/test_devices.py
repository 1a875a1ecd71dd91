"""What devices report, what is refused of it, and what keeps an erasure open."""

from __future__ import annotations

import json
import random
import secrets
from datetime import UTC, datetime, timedelta

import pytest
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from dlfd_fleet.delivery.devices import RETIREMENT_TYPE, DeviceStore, PublishedFile
from dlfd_fleet.delivery.erasures import open_devices, published_epochs, reached, standings
from dlfd_fleet.device.contract import REPORT_TYPE, DeviceReport
from dlfd_fleet.exceptions import DeliveryError, ReportRefusedError, ReportRepeatedError

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = timedelta(days=1)
OLD, NEW = "0" * 64, "1" * 64
WRITTEN: dict[str, list[str]] = {}
"""Nonces of the reports of each signer, which is one machine unless a test says otherwise."""


def report_of(signer, time, **fields):
    written = WRITTEN.setdefault(signer.public_key.keyid, [])
    nonce = fields.pop("nonce", secrets.token_hex(16))
    values = {
        "device": signer.public_key.keyid,
        "time": time,
        "nonce": nonce,
        "follows": tuple(written[-16:]),
        "failed": (),
        "sequence": 2,
        "version": "2-abc",
        "epoch": 2,
        "floor": 2,
        "healthy": True,
        "installed": (NEW,),
        "purged": (OLD,),
        "attacks": (),
        "lease_until": None,
    }
    written.append(nonce)
    return DeviceReport(**(values | fields))


def enveloped(signer, payload, payload_type=REPORT_TYPE):
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict()).encode()


def signed_report(signer, time, **fields):
    return enveloped(signer, report_of(signer, time, **fields).model_dump_json().encode())


@pytest.fixture
def store(tmp_path):
    with DeviceStore(tmp_path / "devices.db") as store:
        store.note_file(PublishedFile(OLD, 1, 1, "1-abc", "fp32"), NOW - DAY)
        store.note_file(PublishedFile(NEW, 2, 2, "2-abc", "fp32"), NOW)
        yield store


@pytest.fixture
def camera(store):
    signer = CryptoSigner.generate_ed25519()
    store.enroll(signer.public_key, "camera-1", NOW - DAY)
    return signer


def test_a_report_is_kept(store, camera):
    received = store.receive(signed_report(camera, NOW, attacks=("a rollback",)), NOW, DAY)
    device = store.find("camera-1")
    assert device.report == received
    assert device.received_at == NOW
    (attack,) = store.attacks()
    assert (attack.device, attack.said) == (camera.public_key.keyid, "a rollback")


def test_a_report_that_comes_again_is_a_replay(store, camera):
    content = signed_report(camera, NOW, attacks=("a freeze",))
    store.receive(content, NOW, DAY)
    with pytest.raises(ReportRepeatedError, match="counts once"):
        store.receive(content, NOW + DAY / 2, DAY)
    assert len(store.attacks()) == 1
    assert store.find("camera-1").received_at == NOW


def test_a_replay_is_refused_for_ever(store, camera):
    """The nonce is forgotten after two windows, and the report's time is too far away by then."""
    content = signed_report(camera, NOW + timedelta(minutes=4))
    store.receive(content, NOW, DAY)
    for days in range(1, 6):
        now = NOW + days * DAY
        store.receive(signed_report(camera, now), now, DAY)
        with pytest.raises(ReportRefusedError, match=r"counts once|too far from now"):
            store.receive(content, now, DAY)


def test_an_earlier_report_that_comes_late_does_not_hide_a_later_one(store, camera):
    late = signed_report(camera, NOW - timedelta(hours=1), floor=1, installed=(OLD,))
    store.receive(signed_report(camera, NOW), NOW, DAY)
    store.receive(late, NOW, DAY)
    assert store.find("camera-1").report.floor == 2


def test_a_device_of_another_fleet(store):
    with pytest.raises(ReportRefusedError, match="not of this fleet"):
        store.receive(signed_report(CryptoSigner.generate_ed25519(), NOW), NOW, DAY)


def test_a_report_signed_for_another_device(store, camera):
    other = CryptoSigner.generate_ed25519()
    store.enroll(other.public_key, "camera-2", NOW)
    payload = report_of(camera, NOW).model_dump_json().encode()
    with pytest.raises(ReportRefusedError, match="another device"):
        store.receive(enveloped(other, payload), NOW, DAY)


@pytest.mark.parametrize("field", sorted(DeviceReport.model_fields))
def test_a_report_that_was_changed_on_the_way(store, camera, field):
    envelope = Envelope.from_dict(json.loads(signed_report(camera, NOW)))
    tree = json.loads(envelope.payload)
    tree[field] = {"device": OLD, "layout": 3, "time": (NOW - timedelta(hours=1)).isoformat(), "nonce": "f" * 32}.get(
        field
    )
    envelope.payload = json.dumps(tree).encode()
    with pytest.raises(ReportRefusedError, match="not signed by the device"):
        store.receive(json.dumps(envelope.to_dict()).encode(), NOW, DAY)
    assert store.find("camera-1").report is None


@pytest.mark.parametrize(
    ("days", "said"),
    [(-1.1, "too far from now"), (-400, "too far from now"), (1.1, "in the future"), (0.01, "in the future")],
)
def test_a_report_of_another_time(store, camera, days, said):
    with pytest.raises(ReportRefusedError, match=said):
        store.receive(signed_report(camera, NOW + days * DAY), NOW, DAY)
    assert store.find("camera-1").report is None


DEEP = b"[" * 10**5
TWO_SIGNATURES = b'{"payload":"AA==","payloadType":"x","signatures":[{"keyid":"a","sig":""},{"keyid":"b","sig":""}]}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b'{"payload":1,"payloadType":"x","signatures":[]}',
        b"[" * 10**5,
        TWO_SIGNATURES,
    ],
)
def test_what_is_no_envelope(store, content):
    with pytest.raises(ReportRefusedError, match="not a DSSE envelope"):
        store.receive(content, NOW, DAY)


def test_an_envelope_of_something_else(store, camera):
    with pytest.raises(ReportRefusedError, match="no device report"):
        store.receive(enveloped(camera, b"{}", RETIREMENT_TYPE), NOW, DAY)


def test_a_report_that_breaks_the_contract(store, camera):
    with pytest.raises(ReportRefusedError, match="is not valid"):
        store.receive(enveloped(camera, b'{"device": "x"}'), NOW, DAY)


def test_attacks_of_one_device_do_not_fill_the_database(store, camera):
    for hour in range(3):
        said = tuple(f"attack {hour}.{number}" for number in range(600))
        now = NOW + timedelta(hours=hour)
        store.receive(signed_report(camera, now, attacks=said), now, DAY)
    assert len(store.attacks(5000)) == 1000
    assert store.attacks(1)[0].said == "attack 2.599"


@pytest.mark.parametrize("keyid", ["", "x", "\0", "../../x", "\ud800", 5, None, [], {}, "a" * 500, "A" * 64])
def test_an_odd_key_id_is_one_sentence(store, camera, keyid):
    envelope = json.loads(signed_report(camera, NOW))
    envelope["signatures"][0]["keyid"] = keyid
    with pytest.raises(ReportRefusedError, match=r"not a DSSE envelope"):
        store.receive(json.dumps(envelope).encode(), NOW, DAY)


ABSURD = [
    ("floor", "9" * 5000),
    ("floor", str(2**31)),
    ("floor", "1e400"),
    ("epoch", "9" * 4000),
    ("sequence", str(2**63)),
    ("time", '"0001-01-01T00:00:00+14:00"'),
    ("time", "NaN"),
    ("lease_until", '"9999-12-31T23:59:59-14:00"'),
    ("version", '"' + "v" * 10**5 + '"'),
    ("attacks", '["' + "a" * 10**5 + '"]'),
    ("attacks", "[" * 10**5),
    ("installed", json.dumps([OLD] * 1000)),
    ("failed", "[-1]"),
    ("layout", "1"),
    ("follows", json.dumps(["0" * 32] * 1000)),
]


@pytest.mark.parametrize(("field", "value"), ABSURD, ids=[field for field, _ in ABSURD])
def test_absurd_numbers_texts_and_times_are_refused(store, camera, field, value):
    payload = json.dumps(report_of(camera, NOW).model_dump(mode="json") | {field: "HERE"}).replace('"HERE"', value)
    with pytest.raises(ReportRefusedError, match="is not valid"):
        store.receive(enveloped(camera, payload.encode()), NOW, DAY)
    assert store.find("camera-1").report is None


def test_control_characters_of_a_report_are_not_kept(store, camera):
    store.receive(signed_report(camera, NOW, version="\x1b[2J", attacks=("\x1b]0;x\x07\0",)), NOW, DAY)
    assert store.find("camera-1").report.version == "?[2J"
    assert store.attacks()[0].said == "?]0;x??"


# ---------------------------------------------------------------------- one key on two machines


def test_reports_of_one_machine_raise_no_alarm_whatever_is_lost_on_the_way(store, camera):
    """Of each report the coordinator takes it or not, and the device hears of that or not."""
    follows, now, generator = (), NOW, random.Random(4)
    for _ in range(200):
        now += timedelta(minutes=10)
        report = report_of(camera, now, follows=follows)
        content = enveloped(camera, report.model_dump_json().encode())
        arrives, is_heard = generator.random() < 0.6, generator.random() < 0.6
        if arrives:
            store.receive(content, now, DAY)
            if not is_heard:  # sent again, a week later for all that anybody knows
                with pytest.raises(ReportRepeatedError):
                    store.receive(content, now + 7 * DAY, DAY)
            follows = (report.nonce,)
        else:
            follows = (*follows, report.nonce)[-17:]
    assert store.find("camera-1").alarms == ()


def test_a_database_that_is_restored_from_a_copy_raises_no_alarm(store, camera):
    store.receive(signed_report(camera, NOW), NOW, DAY)  # and here it is copied
    for hours in range(1, 10):
        signed_report(camera, NOW + timedelta(hours=hours))  # taken, and forgotten with the rest
    later = NOW + timedelta(hours=10)
    store.receive(signed_report(camera, later), later, DAY)
    assert store.find("camera-1").alarms == ()


@pytest.mark.parametrize("first", [True, False])
def test_two_machines_with_one_key_raise_an_alarm_that_keeps_every_erasure_open(store, camera, first):
    nonces = []
    if first:
        nonces.append(store.receive(signed_report(camera, NOW), NOW, DAY).nonce)
    copied = {"follows": tuple(nonces)}  # the disk is copied here
    store.receive(signed_report(camera, NOW, **copied), NOW, DAY)
    assert reasons(store, 2) == {}
    store.receive(signed_report(camera, NOW + timedelta(hours=1), **copied), NOW + timedelta(hours=1), DAY)
    for epoch in (1, 2):
        assert "two machines have this key, or its disk was set back" in reasons(store, epoch)["camera-1"]
    for hours in range(2, 6):  # they go on, each by itself, and both say that they have purged
        later = NOW + timedelta(hours=hours)
        store.receive(signed_report(camera, later), later, DAY)
        assert "ALARM since 2026-11-24 13:00" in reasons(store, 2, later)["camera-1"]
    assert "1 keep it open, 1 of them with an alarm" in reached(store, 2, NOW)[1]
    assert reached(store, 2, NOW)[0] == 0
    store.retire("camera-1", "its disk was copied", NOW, camera)
    assert reasons(store, 2) == {}


def test_a_lease_that_ran_out_ends_no_alarm(store, camera):
    lease = {"lease_until": NOW + DAY}
    for _ in range(2):
        store.receive(signed_report(camera, NOW, follows=(), **lease), NOW, DAY)
    assert "ALARM" in reasons(store, 2, NOW + 9 * DAY)["camera-1"]


def test_a_floor_that_falls_raises_an_alarm(store, camera):
    store.receive(signed_report(camera, NOW), NOW, DAY)
    for floor in (1, 2):
        store.receive(signed_report(camera, NOW, floor=floor), NOW, DAY)
        assert "its floor fell from 2 to 1" in reasons(store, 2)["camera-1"]


def test_a_purged_file_that_returns_raises_an_alarm_unless_it_may_run(store, camera):
    store.receive(signed_report(camera, NOW, floor=1, installed=(NEW,), purged=(OLD,)), NOW, DAY)
    store.receive(signed_report(camera, NOW, floor=1, installed=(OLD,), purged=(NEW,)), NOW, DAY)  # an abort
    assert store.find("camera-1").alarms == ()
    store.receive(signed_report(camera, NOW, floor=2, installed=(NEW,), purged=(OLD,)), NOW, DAY)
    assert store.find("camera-1").alarms == ()
    store.receive(signed_report(camera, NOW, floor=2, installed=(NEW, OLD), purged=()), NOW, DAY)
    assert "holds 1 files again that it had purged" in reasons(store, 2)["camera-1"]


def test_a_device_whose_clock_was_put_right_is_heard_at_once(store, camera):
    """Reports are in the order of their chain, not of a clock."""
    store.receive(signed_report(camera, NOW, floor=1), NOW, DAY)
    store.receive(signed_report(camera, NOW - timedelta(hours=3), floor=2), NOW, DAY)
    assert store.find("camera-1").report.floor == 2


# ---------------------------------------------------------------------- the fleet


def test_a_device_is_enrolled_once_and_found_by_name_or_id(store, camera):
    with pytest.raises(DeliveryError, match="in the fleet already"):
        store.enroll(camera.public_key, "again", NOW)
    assert store.find(camera.public_key.keyid[:10]).name == "camera-1"
    with pytest.raises(DeliveryError, match="no device 'toaster'"):
        store.find("toaster")


def test_a_retired_device_says_no_more_and_the_reason_is_signed(store, camera):
    officer = CryptoSigner.generate_ed25519()
    assert store.retire("camera-1", "scrapped on 3 May", NOW, officer).retired == "scrapped on 3 May"
    envelope = Envelope.from_dict(json.loads(store.retirement(camera.public_key.keyid)))
    envelope.verify([officer.public_key], 1)
    assert json.loads(envelope.payload)["device"] == camera.public_key.keyid
    with pytest.raises(ReportRefusedError, match="is retired"):
        store.receive(signed_report(camera, NOW), NOW, DAY)
    with pytest.raises(DeliveryError, match="retired already: scrapped"):
        store.retire("camera-1", "again", NOW, officer)


@pytest.mark.parametrize("reason", ["", " \n"])
def test_nobody_retires_a_device_without_a_reason(store, camera, reason):
    with pytest.raises(DeliveryError, match="The reason is empty"):
        store.retire("camera-1", reason, NOW, camera)
    assert store.find("camera-1").retired is None


def test_canaries_are_those_in_service(store):
    signers = [CryptoSigner.generate_ed25519() for _ in range(3)]
    for number, signer in enumerate(signers):
        store.enroll(signer.public_key, f"device-{number}", NOW, canary=number < 2)
    store.retire("device-0", "lost", NOW, signers[2])
    assert store.canaries() == [signers[1].public_key.keyid]


def test_the_floor_never_falls(store):
    for epoch, expected in ((2, 2), (1, 2), (5, 5), (0, 5)):
        store.raise_floor(epoch)
        assert store.floor() == expected


def test_everything_is_there_after_a_restart(store, camera, tmp_path):
    store.receive(signed_report(camera, NOW), NOW, DAY)
    store.raise_floor(2)
    store.close()
    with DeviceStore(tmp_path / "devices.db") as again:
        assert again.find("camera-1").report.epoch == 2
        assert (again.floor(), again.last_sequence()) == (2, 2)
        assert again.published_at(2) == NOW


# ---------------------------------------------------------------------- erasures


def reasons(store, epoch, now=NOW):
    return {each.device.name: each.reason for each in open_devices(store, epoch, now)}


def test_a_device_that_never_reported_keeps_an_erasure_open(store, camera):
    assert published_epochs(store) == [1, 2]
    assert reasons(store, 2) == {"camera-1": "has never reported"}


def test_a_device_that_purged_closes_it(store, camera):
    store.receive(signed_report(camera, NOW), NOW, DAY)
    assert reasons(store, 2) == {}
    assert reasons(store, 1) == {}
    assert "has purged" in standings(store, 2, NOW)[0].reason


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"floor": 1, "epoch": 1, "installed": (OLD,), "purged": ()}, "was at epoch 1"),
        ({"installed": (NEW, OLD)}, "still holds 1 older"),
        ({"installed": (NEW, "a" * 64)}, "older or unknown files"),
    ],
)
def test_a_device_that_still_holds_something_keeps_it_open(store, camera, fields, why):
    store.receive(signed_report(camera, NOW, **fields), NOW, DAY)
    assert why in reasons(store, 2)["camera-1"]
    assert (reasons(store, 1) == {}) == ("a" * 64 not in fields["installed"])


def test_a_device_whose_lease_has_run_out_is_an_exception_that_is_said(store, camera):
    fields = {"floor": 1, "installed": (OLD,), "purged": (), "lease_until": NOW + DAY}
    store.receive(signed_report(camera, NOW, **fields), NOW, DAY)
    assert "camera-1" in reasons(store, 2, NOW)
    assert reasons(store, 2, NOW + 2 * DAY) == {}
    assert standings(store, 2, NOW + 2 * DAY)[0].reason.startswith("EXCEPTION")


def test_a_retired_device_closes_it(store, camera):
    store.retire("camera-1", "stolen", NOW, camera)
    assert reasons(store, 2) == {}
    assert standings(store, 2, NOW)[0].reason == "retired: stolen"


def test_sites_are_told_in_counts_how_far_an_erasure_has_come(store, camera):
    assert reached(store, 2, NOW)[0] == 0
    store.receive(signed_report(camera, NOW - DAY, floor=1, epoch=1, installed=(OLD,), purged=()), NOW, 2 * DAY)
    other = CryptoSigner.generate_ed25519()
    store.enroll(other.public_key, "camera-2", NOW)
    store.retire("camera-2", "stolen", NOW, other)
    epoch, words = reached(store, 2, NOW)
    assert epoch == 1
    assert "0 have purged, 1 are retired" in words
    assert "1 keep it open" in words
    assert "camera" not in words
    store.receive(signed_report(camera, NOW), NOW, DAY)
    assert reached(store, 2, NOW)[0] == 2


def test_a_fleet_without_devices_has_nobody_to_wait_for(tmp_path):
    with DeviceStore(tmp_path / "devices.db") as empty:
        assert reached(empty, 3, NOW)[0] is None
