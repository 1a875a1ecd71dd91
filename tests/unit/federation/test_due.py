"""When an erasure is due: by the earliest deadline, by how many wait, or by how long the last erasure is ago."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import pytest

from dlfd_fleet.federation.records.due import SiteWaiting, Waiting, erasure_due
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.settings import DueSettings

TODAY = date(2026, 12, 10)
SETTINGS = DueSettings(days_left=14, batch=8, interval_days=7)


def waiting(*sites, away=()):
    said = {
        f"site-{number}": SiteWaiting(requests=requests, first_due=first)
        for number, (requests, first) in enumerate(sites)
    }
    return Waiting(asked_at=datetime.now(UTC), sites=said, away=dict.fromkeys(away, "does not answer"))


def job(days_ago, kind="erase", **more):
    begun = datetime(2026, 12, 10, 12, tzinfo=UTC) - timedelta(days=days_ago)
    return JobRecord(job=f"{kind}-{days_ago}", kind=kind, step=more.pop("step", "settled"), started_at=begun, **more)


@pytest.mark.parametrize(
    ("sites", "earlier", "is_due", "said"),
    [
        (((0, None), (0, None)), (job(99),), False, r"^Nothing is due: nobody asks"),
        (
            ((1, date(2026, 12, 30)), (1, date(2026, 12, 27))),
            (job(2, requests=1),),
            False,
            r"2 requests wait, the first is due on 2026-12-27\. An erasure of them starts from 2026-12-13 on\.$",
        ),
        (((1, date(2026, 12, 24)),), (job(2, requests=1),), True, r"1 request waits, and the first is due on"),
        (((1, date(2026, 12, 1)),), (), True, r"the first is due on 2026-12-01"),
        (((4, date(2027, 1, 3)), (4, date(2027, 1, 3))), (job(0, requests=1),), True, r"a job is started for 8"),
        (((1, date(2027, 1, 3)),), (job(7, requests=1),), True, r"the last job for requests.* is of 2026-12-03"),
        (((1, date(2027, 1, 3)),), (job(6, requests=1),), False, r"starts from 2026-12-11 on"),
        # A job in which nobody asked, or that was cancelled, has served nobody.
        (((1, date(2027, 1, 3)),), (job(9, requests=1), job(1), job(1, step="cancelled", requests=1)), True, "is of"),
        (((1, date(2027, 1, 3)),), (job(3, "train", released=True), job(1, "train")), False, "from 2026-12-14 on"),
        (((1, date(2027, 1, 3)),), (), False, "from 2026-12-20 on"),
    ],
)
def test_whether_an_erasure_is_due(sites, earlier, is_due, said):
    due = erasure_due(SETTINGS, waiting(*sites), earlier, TODAY)
    assert due.is_due is is_due
    assert re.search(said, due.why)


def test_what_waits_at_a_site_that_is_away_is_said_to_be_unknown():
    due = erasure_due(SETTINGS, waiting((0, None), away=("site-b", "site-a")), (), TODAY)
    assert due.why.endswith("What waits at site-a, site-b is not known: they do not answer.")
    assert not due.is_due


def test_an_interval_that_never_ends_is_no_reason():
    settings = DueSettings(days_left=0, batch=10**9, interval_days=10**9)
    due = erasure_due(settings, waiting((5, date(2026, 12, 11))), (job(300, requests=1),), TODAY)
    assert not due.is_due
    assert "from 2026-12-11 on" in due.why


def test_what_was_said_last_is_kept_and_a_file_that_cannot_be_read_says_nothing(tmp_path):
    assert Waiting.read(tmp_path) is None
    known = waiting((2, TODAY), away=("site-b",))
    known.write(tmp_path)
    assert Waiting.read(tmp_path) == known
    (tmp_path / "waiting.json").write_text("{")
    assert Waiting.read(tmp_path) is None
