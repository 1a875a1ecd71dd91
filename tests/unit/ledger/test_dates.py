"""Days of a request: the law's month, leap years, and whose day it is."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.ledger.dates import (
    MOST_MONTHS,
    add_months,
    day_of,
    end_of,
    first_deadline,
    refuse_extension,
    refuse_notice,
    site_day,
)
from dlfd_fleet.settings import ErasureSettings
from tests.clinic import in_zone

DAYS = st.dates(date(2001, 1, 1), date(2090, 12, 31))
ZONES = ("UTC", "Pacific/Auckland", "Pacific/Honolulu", "Europe/Berlin", "Asia/Kathmandu", "America/Sao_Paulo")
USUAL_DAYS = ErasureSettings().deadline_days


@pytest.mark.parametrize(
    ("day", "months", "later"),
    [
        (date(2026, 11, 20), 1, date(2026, 12, 20)),
        (date(2026, 12, 31), 1, date(2027, 1, 31)),
        (date(2027, 1, 31), 1, date(2027, 2, 28)),
        (date(2027, 12, 31), 2, date(2028, 2, 29)),
        (date(2028, 2, 29), 12, date(2029, 2, 28)),
        (date(2026, 3, 31), -1, date(2026, 2, 28)),
    ],
)
def test_a_month_later_is_the_same_day_or_the_last_one(day, months, later):
    assert add_months(day, months) == later


@given(day=DAYS, months=st.integers(0, 40))
def test_months_are_never_too_long_and_keep_the_day_where_it_exists(day, months):
    later = add_months(day, months)
    assert (later.year * 12 + later.month) - (day.year * 12 + day.month) == months
    assert later.day == day.day or (later.day < day.day and (later + timedelta(days=1)).day == 1)


@given(received=DAYS)
def test_the_usual_deadline_is_never_after_a_month_nor_an_extended_one_after_three(received):
    first = first_deadline(received, USUAL_DAYS, received)
    assert received < first <= add_months(received, 1)
    assert add_months(first, MOST_MONTHS) <= add_months(received, 1 + MOST_MONTHS)


@given(received=DAYS, after=st.integers(0, 2000))
def test_a_request_is_received_today_or_before_but_not_years_ago(received, after):
    today = received + timedelta(days=after)
    if add_months(today, -36) <= received:
        assert first_deadline(received, 10, today) == received + timedelta(days=10)
    else:
        with pytest.raises(LedgerError, match="more than 3 years ago"):
            first_deadline(received, 10, today)
    with pytest.raises(LedgerError, match="is in the future"):
        first_deadline(today + timedelta(days=1 + after), 10, today)


@given(first=DAYS, days=st.lists(st.integers(-10, 100), max_size=5))
def test_however_often_it_is_extended_a_deadline_only_rises_and_never_by_more_than_two_months(first, days):
    current, latest = first, add_months(first, 2)
    for step in days:
        due = current + timedelta(days=step)
        try:
            refuse_extension(due, first, current)
        except LedgerError:
            assert due <= current or due > latest
        else:
            assert current < due <= latest
            current = due


def test_a_person_is_told_after_the_request_before_the_deadline_and_not_tomorrow():
    received, current, today = date(2026, 11, 20), date(2026, 12, 18), date(2026, 12, 20)
    for noticed in (received, current):
        refuse_notice(noticed, received, current, today)
    with pytest.raises(LedgerError, match="before the request was received, on 2026-11-20"):
        refuse_notice(date(2026, 11, 19), received, current, today)
    with pytest.raises(LedgerError, match="is after the deadline 2026-12-18"):
        refuse_notice(date(2026, 12, 19), received, current, today)
    with pytest.raises(LedgerError, match="is in the future; tell the person first"):
        refuse_notice(date(2026, 12, 21), received, current, today)


@pytest.mark.parametrize("name", ZONES)
@given(day=DAYS)
def test_a_day_is_the_sites_own_wherever_it_is(name, day):
    with in_zone(name):
        deadline = end_of(day)
        assert deadline.date() == day  # as it is stored, with its offset: what the coordinator is told
        assert datetime.fromisoformat(deadline.isoformat()).date() == day
        assert site_day(deadline.astimezone(UTC)) == day
        assert site_day(deadline.astimezone(UTC) + timedelta(microseconds=1)) > day
    assert deadline == datetime(day.year, day.month, day.day, 23, 59, 59, 999999, ZoneInfo(name))


@pytest.mark.parametrize(
    "text", ["20.11.2026", "2026-11-31", "2026-1-1", "20261120", "2026-W47-5", "", "\u0662\u0660\u0662\u0666-11-20"]
)
def test_what_is_no_day_is_one_sentence(text):
    with pytest.raises(LedgerError, match=r"^--received is '.*', not a day; write it as YEAR-MONTH-DAY"):
        day_of(text, "--received")
    assert day_of("2028-02-29", "--received") == date(2028, 2, 29)
