"""At 80 columns, on a terminal or not, no name that somebody has to copy is cut off."""

from __future__ import annotations

import io
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pytest
from rich.console import Group
from rich.table import Table

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.federation.jobs import command
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release import promotion
from dlfd_fleet.federation.release.unsent import unsent_table
from dlfd_fleet.plain_text import PlainConsole
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking.outbox import Outbox
from dlfd_fleet.tracking.purge import Purged
from dlfd_fleet.tracking.registry import EPOCH_TAG, JOB_TAG, VERDICT_TAG, RegisteredVersion

WIDTH = 80
VERDICT = Verdict(outcome=Outcome.INCONCLUSIVE, reasons=("so few people",), margin=0.05, power=0.5)


@pytest.fixture(params=[False, True], ids=["log", "terminal"])
def shown(request):
    """Return what a console of 80 columns shows."""

    def show(renderable):
        out = io.StringIO()
        PlainConsole(file=out, width=WIDTH, force_terminal=request.param, color_system=None).print(renderable)
        assert max(map(len, out.getvalue().splitlines())) <= WIDTH
        assert "…" not in out.getvalue()
        return out.getvalue()

    return show


@pytest.fixture
def store(tmp_path):
    with closing(Store(tmp_path)) as opened:
        yield opened


@pytest.fixture
def jobs(store):
    """Return jobs of each kind, whose rows are as wide as they can be."""
    made = [store.new_job(kind, Settings()) for kind in ("train", "erase", "references", "plan", "import")]
    for record in made:
        changes = {"requests": 1000, "verdict": VERDICT, "epoch": 1000, "released": True, "seconds": 6e5}
        store.save(record.model_copy(update={"step": "exported", **changes}))
    return [record.job for record in made]


def test_jobs(store, jobs, shown):
    said = shown(command.job_table(store))
    assert [job for job in jobs if job not in said] == []
    for words in (["exported,", "interrupted"], ("INCONCLUSIVE", "10000.0")):
        assert all(said.count(word) == len(jobs) for word in words)
    assert all(job in shown(command.job_status(store, job)) for job in jobs)


def test_promotions_and_what_mlflow_lacks(store, jobs, shown, tmp_path):
    with closing(Outbox(store.folder / "outbox.db")) as outbox:
        for job in jobs:
            store.champions.move(Champion(job=job, epoch=1000), "the privacy officer", "read it all, twice")
            outbox.put(job, "tags", {"tags": {}})
    settings = Settings(state_folder=tmp_path)
    for table in (promotion.promotion_table(settings), unsent_table(settings)):
        said = shown(table)
        assert [job for job in jobs if job not in said] == []


def test_versions(store, jobs, shown, tmp_path, monkeypatch):
    class Registry:
        def versions(self):
            tags = {VERDICT_TAG: "INCONCLUSIVE", EPOCH_TAG: "1000"}
            return [RegisteredVersion("100", {**tags, JOB_TAG: job}, "", aliases=("champion",)) for job in jobs]

    @contextmanager
    def opened(*_):
        yield Registry()

    why = {"reason": f"under epoch 1000 of job {jobs[1]}", "at": datetime.now(UTC), "digests": (), "searched": 0}
    gone = Purged(version="99", job=jobs[2], epoch=999, **why)
    monkeypatch.setattr(promotion, "open_registry", opened)
    monkeypatch.setattr(promotion, "purged_versions", lambda _: [gone])
    said = shown(promotion.registry_table(Settings(state_folder=tmp_path)))
    assert [job for job in jobs if job not in said] == []
    assert said.count("champion") >= len(jobs)


def test_a_long_word_of_any_table_is_folded(shown):
    table = Table("device", "why", title="Devices")
    table.add_row("x" * 100, "y" * 100)
    said = shown(Group("Devices:", table))
    assert (said.count("x"), said.count("y")) == (100, 100 + "why".count("y"))
