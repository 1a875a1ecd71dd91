"""A site with a few people whose image files are a few bytes each, and the ways of its requests."""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import UTC, date, datetime

import pytest

from dlfd_fleet.data import Row, write_manifest
from dlfd_fleet.ledger import RequestState, SiteCard, create_site, purge_request, request_forgetting
from dlfd_fleet.model_input import image_input

PEOPLE = ("anna", "bert", "cleo", "dora")


def make_clinic(folder, people=PEOPLE, secret=None):
    """Make a site's folder; two images of each person."""
    folder.mkdir(parents=True)
    rows = [
        Row(f"{number}-{label}.png", person, label, "clinic", "train")
        for number, person in enumerate(people)
        for label in ("no", "yes")
    ]
    for row in rows:
        (folder / row.image).write_bytes(f"the picture {row.image}".encode())
    write_manifest(rows, folder / "manifest.csv")
    create_site(folder, SiteCard(name="clinic", input=image_input(32), classes=("no", "yes")), secret)
    return folder


def ask(site, person="anna", **told):
    return request_forgetting(site, person, **{"deadline_days": 28, **told})


def give_to_job(site, request, job="erase-1"):
    site.ledger.move(request.id, RequestState.UNLEARNING, "a job took it up", job=job)


def forget(site, request, job="erase-1", epoch=1):
    """Bring a request to where its images are purged."""
    give_to_job(site, request, job)
    for state in (RequestState.EVALUATING, RequestState.RELEASED):
        site.ledger.move(request.id, state, "as a job does", job=job, epoch=epoch)
    purge_request(site, site.ledger.get(request.id))
    return site.ledger.get(request.id)


@contextmanager
def in_zone(name):
    """Let this machine be in a time zone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", name)
        time.tzset()
        yield
    time.tzset()


@contextmanager
def on_day(day: date, hour: int = 12):
    """Let the clock of ledgers, decisions and the desk stand at an hour of a day (UTC)."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(day.year, day.month, day.day, hour, tzinfo=UTC).astimezone(tz)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("ledger.ledger", "ledger.requests", "desk.letters", "desk.records"):
            patch.setattr(f"dlfd_fleet.{module}.datetime", Clock)
        yield
