"""A site's records of a period: as the ledger stood at its end, whenever they are written."""

from __future__ import annotations

import base64
import json
import zipfile
from datetime import date

import pytest

from dlfd_fleet.desk.records import KEY_FILE, write_records
from dlfd_fleet.exceptions import EvidenceError, LedgerError
from dlfd_fleet.ledger import Ground, RequestState, Site, extend, refuse, withdraw
from dlfd_fleet.report import issue, load_public_key, load_signer, public_key_file
from dlfd_fleet.report.archive import verify_archive
from tests.clinic import ask, forget, give_to_job, make_clinic, on_day
from tests.erasure_report import make_report

OCTOBER, NOVEMBER = (date(2026, 10, 1), date(2026, 10, 31)), (date(2026, 11, 1), date(2026, 11, 30))
CHANGING = ("bytes", "manifest.json")
WORDS = ("anna", "bert", "cleo", "dora", "passport", "by phone", "many requests", "a court case", "a friend")


@pytest.fixture
def site(tmp_path):
    """In October three ask and one withdraws; in November one is refused, one is extended; in December it is purged."""
    with Site(make_clinic(tmp_path / "clinic")) as opened:
        with on_day(date(2026, 10, 5)):
            ask(opened, "anna", received=date(2026, 9, 28), verified_by="passport", note="by phone", done_by="ode")
            ask(opened, "bert", done_by="ode")
            withdraw(opened, ask(opened, "cleo").id, reason="a friend asked", done_by="ode")
        with on_day(date(2026, 10, 20)):
            told = {"reason": "many requests", "noticed": date(2026, 10, 20), "done_by": "nia"}
            extend(opened, opened.find_request("anna").id, months=1, **told)
        with on_day(date(2026, 11, 2)):
            refuse(opened, opened.find_request("bert").id, Ground.LEGAL_CLAIMS, reason="a court case", done_by="nia")
            anna = opened.find_request("anna")
            give_to_job(opened, anna, "erase-1")
            opened.ledger.move(anna.id, RequestState.ACCEPTED, "FAIL", job="erase-1")
        yield opened


@pytest.fixture
def written(site, tmp_path):
    """Write the records of a period, and return them by file."""

    def write(period, today=date(2026, 12, 20), **told):
        file = tmp_path / "archive.zip"
        with on_day(today):
            write_records(site, file, *period, **told)
        verify_archive(file, load_public_key(public_key_file(site.folder / KEY_FILE)))
        with zipfile.ZipFile(file) as archive:
            found = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        return {name: json.loads(content) for name, content in found.items() if name.endswith(".json")} | {
            "bytes": file.read_bytes()
        }

    return write


def test_requests_are_as_they_stood_at_the_end_of_the_period(site, written):
    october, november = written(OCTOBER), written(NOVEMBER)
    anna, bert, cleo = october["requests.json"]
    assert anna == {
        "request": site.find_request("anna").id,
        "received": "2026-09-28",
        "recorded": "2026-10-05",
        "recorded_by": "ode",
        "identity_verified": True,
        "first_due": "2026-10-26",
        "due": "2026-11-26",
        "state": "ACCEPTED",
        "ground": None,
        "released": None,
        "purged": None,
        "closed": None,
        "overdue": False,
    }
    by_request = {row["request"]: row for row in (bert, cleo)}
    bert, cleo = (by_request[site.find_request(name).id] for name in ("bert", "cleo"))
    assert (bert["state"], bert["ground"], bert["identity_verified"]) == ("ACCEPTED", None, False)
    assert (cleo["state"], cleo["closed"]) == ("WITHDRAWN", "2026-10-05")
    later = {row["request"]: row for row in november["requests.json"]}
    assert cleo["request"] not in later  # closed before
    assert (later[bert["request"]]["state"], later[bert["request"]]["ground"]) == ("REFUSED", "legal-claims")
    assert later[anna["request"]]["overdue"]
    assert [row["action"] for row in october["history.json"]] == ["asked", "asked", "asked", "withdrawn", "extended"]
    assert [(row["action"], row["by"]) for row in october["decisions.json"]] == [
        ("withdrawn", "ode"),
        ("extended", "nia"),
    ]
    assert october["decisions.json"][1]["noticed"] == "2026-10-20"
    assert october["jobs.json"] == []
    (job,) = november["jobs.json"]
    assert (job["job"], job["first_day"], job["requests"], job["returned"]) == ("erase-1", "2026-11-02", 1, 1)


def test_a_period_is_the_same_bytes_after_the_purge_and_holds_no_name(site, written):
    before = written(OCTOBER)["bytes"]
    with on_day(date(2026, 12, 3)):
        forget(site, site.find_request("anna"), job="erase-2")
        forget(site, ask(site, "bert"), job="erase-3", epoch=2)
    assert written(OCTOBER, today=date(2027, 2, 1))["bytes"] == before
    assert not [word for word in WORDS if word.encode() in before]
    (december,) = [
        row
        for row in written((date(2026, 12, 1), date(2026, 12, 31)), date(2027, 1, 2))["jobs.json"]
        if row["job"] == "erase-2"
    ]
    assert (december["forgotten"], december["purged"], december["epoch"]) == (1, 1, 1)


def test_names_are_written_on_demand_of_those_who_are_not_purged(site, written):
    named = written(NOVEMBER, with_names=True)
    anna = next(row for row in named["requests.json"] if row["person"] == "anna")
    assert (anna["verified_by"], anna["note"]) == ("passport", "by phone")
    assert [row["remark"] for row in named["decisions.json"]] == ["a court case"]
    with on_day(date(2026, 12, 3)):
        forget(site, site.find_request("anna"))
    again = written(NOVEMBER, with_names=True)
    assert {row["person"] for row in again["requests.json"]} == {None, "bert"}
    assert b"passport" not in again["bytes"]


def test_an_export_is_noted_and_is_in_the_records_of_its_day(site, written, tmp_path):
    written(OCTOBER, today=date(2026, 11, 3), done_by="ode")
    written(OCTOBER, today=date(2026, 12, 4), done_by="nia", with_names=True, to="download")
    first, second = site.ledger.exports()
    assert (first.done_by, first.begin, first.end, first.with_names) == ("ode", *OCTOBER, False)
    assert first.destination == str(tmp_path / "archive.zip")
    assert (second.at.date(), second.destination, second.with_names) == (date(2026, 12, 4), "download", True)
    (row,) = written(NOVEMBER)["exports.json"]
    assert row == {
        "at": "2026-11-03T12:00:00+00:00",
        "by": "ode",
        "first_day": "2026-10-01",
        "last_day": "2026-10-31",
        "with_names": False,
    }
    (row,) = written(NOVEMBER, with_names=True)["exports.json"]
    assert row["to"] == str(tmp_path / "archive.zip")  # a file may be called as somebody is
    site.ledger.verify()


def test_an_export_that_is_not_noted_is_not_there_and_one_that_failed_is_not_noted(
    site, written, tmp_path, monkeypatch
):
    with on_day(date(2026, 12, 20)), pytest.raises(EvidenceError, match="Cannot write"):
        write_records(site, tmp_path / "none" / "a.zip", *OCTOBER)
    assert site.ledger.exports() == []

    def full(*_, **__):
        raise LedgerError("The ledger cannot be used: no space.")

    monkeypatch.setattr(site.ledger, "note_export", full)
    with on_day(date(2026, 12, 20)), pytest.raises(LedgerError, match="no space"):
        write_records(site, tmp_path / "a.zip", *OCTOBER)
    assert not list(tmp_path.glob("*.zip*"))


def test_who_was_unknown_is_in_the_records_as_answered(site, written):
    with on_day(date(2026, 10, 6)):
        ask(site, "Zoe", received=date(2026, 9, 1), verified_by="passport", done_by="ode", no_data=True)
    found = written(OCTOBER)
    row = next(row for row in found["requests.json"] if row["state"] == "NO_DATA")
    assert (row["received"], row["closed"], row["identity_verified"]) == ("2026-09-01", "2026-10-06", True)
    assert row["overdue"]  # it was due on 29 September
    assert "no data held" in {row["action"] for row in found["decisions.json"]}
    assert b"Zoe" not in found["bytes"]
    named = written(OCTOBER, with_names=True)
    assert "a friend asked" in {row["remark"] for row in named["decisions.json"]}
    assert "Zoe" in {row["person"] for row in named["requests.json"]}


def test_certificates_of_the_periods_jobs_are_in_it_as_they_are(site, written):
    folder = site.folder / "certificates"
    folder.mkdir()
    signer = load_signer(site.folder / "coordinator.pem")
    for job in ("erase-1", "erase-9"):
        (folder / f"{job}.json").write_bytes(issue(make_report().model_copy(update={"job": job}), signer))
    assert "certificates/erase-1.json" in written(NOVEMBER)
    assert not [name for name in written(OCTOBER) if name.startswith("certificates/")]
    assert "certificates/erase-9.json" not in written(NOVEMBER)
    (folder / "erase-1.json").write_text("{}")
    with pytest.raises(EvidenceError, match=r"erase-1\.json is no certificate"):
        written(NOVEMBER)


def test_a_period_that_goes_on_ends_today_and_its_archive_says_so(written):
    today = date(2026, 11, 29)
    found = written(NOVEMBER, today)
    again = written((NOVEMBER[0], today))
    assert [found.pop("exports.json"), len(again.pop("exports.json"))] == [[], 1]  # the first one
    assert [found[name] for name in found if name not in CHANGING] == [
        again[name] for name in again if name not in CHANGING
    ]
    manifest = json.loads(base64.b64decode(found["manifest.json"]["payload"]))
    assert manifest["predicate"]["end"] == "2026-11-29"
    assert found["requests.json"][0]["due"] == "2026-11-26"
    assert found["requests.json"][0]["overdue"]


def test_a_period_to_come_and_a_ledger_that_was_changed_are_refused(site, tmp_path):
    with (
        on_day(date(2026, 10, 31)),
        pytest.raises(EvidenceError, match="begins on 2026-11-01, after today, 2026-10-31"),
    ):
        write_records(site, tmp_path / "archive.zip", *NOVEMBER)
    with site.ledger._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM history WHERE action = 'refused'")
    with on_day(date(2026, 12, 20)), pytest.raises(LedgerError, match="was tampered with"):
        write_records(site, tmp_path / "archive.zip", *NOVEMBER)
    assert not (tmp_path / "archive.zip").exists()
