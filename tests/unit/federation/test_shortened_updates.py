"""Shortened updates round by round, by nodes that answer as a test says: of a site with many images, and of a liar."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dlfd_fleet.federation.protocol.messages import PendingReply
from dlfd_fleet.federation.records.journal import Journal
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.rounds.fleet import Fleet, site_name
from dlfd_fleet.federation.rounds.job_context import JobContext, Unrecorded
from dlfd_fleet.federation.rounds.rounds import Rounds
from dlfd_fleet.model_input import image_input
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings
from tests.unit.federation.test_rounds import CARD, TrainedGrid, trained

pytestmark = pytest.mark.usefixtures("flower_run")

BEFORE = trained(0.0, 0.0)
IMAGES = {"a": 10, "b": 10, "c": 10, "d": 10, "large": 60}
LIMIT = Settings().fleet.update_ratio


class Job:
    """A job over five sites, the last of which has six times the images of each other one."""

    def __init__(self, journal=None, first_node=1):
        self.nodes = {site: first_node + number for number, site in enumerate(IMAGES)}
        images = {self.nodes[site]: count for site, count in IMAGES.items()}
        self.grid = TrainedGrid(dict.fromkeys(images), images, None)
        self.out, self.recorded = io.StringIO(), []
        fleet = Fleet(self.grid, timeout=5.0)
        pending = {
            node: PendingReply(
                site=f"{number:08x}",
                requests=(),
                dates={},
                forget_images=0,
                class_images=(2, images[node] - 2),
                classes=CARD.classes,
                input=image_input(32),
            )
            for number, node in enumerate(images)
        }
        for node, reply in pending.items():
            fleet.introduce(node, reply)
        fleet.admit(pending)
        recorded = self.recorded

        class Updates(Unrecorded):
            def update(self, update):
                recorded.append((update.round, update.site))

        self.context = JobContext(
            fleet=fleet,
            card=CARD,
            settings=Settings(),
            name="job-1",
            progress=ConsoleProgress(Console(file=self.out, width=300)),
            journal=journal or Journal(),
            recorder=Updates(),
        )

    def round(self, usual, large):
        """Return by how many of the others' updates the large site's counts in a round, if it still takes part."""
        self.grid.models = {
            node: trained(large if site == "large" else usual, 0.0)
            for site, node in self.nodes.items()
            if node in self.context.fleet.members
        }
        mean = Rounds(self.context).fit_round(dict(BEFORE), "train", 1, 0.1, lambda: None, final=False)["w"][0].item()
        shares = sum(IMAGES.values())
        return (mean * shares - usual * (shares - IMAGES["large"])) / IMAGES["large"] / usual

    @property
    def absent(self):
        return self.context.fleet.absent


def test_a_long_update_of_a_site_with_few_images_is_shortened_and_the_site_stays(monkeypatch):
    monkeypatch.setitem(IMAGES, "large", 10)
    job = Job()
    assert job.round(0.1, 0.1 * (LIMIT**2 - 1.0)) == pytest.approx(LIMIT)
    assert not job.absent
    assert f"the others': it is shortened to {LIMIT:g} times." in job.out.getvalue()
    job.round(0.1, 0.1 * (LIMIT**2 + 1.0))
    ((_, reason),) = job.absent.items()
    assert "times as large as the median of the others'" in reason


def test_a_site_that_was_shortened_once_may_not_send_anything_from_then_on():
    job = Job()
    assert job.round(0.1, 0.8) == pytest.approx(LIMIT)
    assert not job.absent
    job.round(0.1, -1e6)
    ((site, reason),) = job.absent.items()
    assert site == site_name("00000004")
    assert "times as large as the median of the others'" in reason


def test_a_shortened_update_counts_for_little_more_than_any_may_while_those_of_the_others_get_smaller():
    job = Job()
    job.round(0.1, 0.8)
    assert job.round(0.07, 0.5) == pytest.approx(LIMIT / 0.7, rel=1e-4)
    assert job.round(0.04, 0.3) == pytest.approx(LIMIT)  # smaller by more than a third: the round is done again
    assert not job.absent


def test_a_job_that_is_resumed_under_other_nodes_shortens_the_same_sites_alike(tmp_path):
    def journal(name):
        store = Store(tmp_path / name)
        known = [record.job for record in store.jobs()]
        return Journal(store, known[0] if known else store.new_job("train", Settings()).job)

    whole, killed = Job(journal("whole")), Job(journal("killed"))
    first = [job.round(0.1, 0.8) for job in (whole, killed)]
    resumed = Job(journal("killed"), first_node=101)
    assert [*first, resumed.round(0.1, 0.8)] == [pytest.approx(LIMIT)] * 3  # the journal has it
    assert resumed.recorded == []
    assert resumed.round(0.09, 0.7) == whole.round(0.09, 0.7) == pytest.approx(LIMIT / 0.9, rel=1e-4)


def test_a_round_that_is_done_again_logs_the_update_of_each_site_once():
    job = Job()
    job.round(0.1, 0.8)
    assert sorted(job.recorded) == [(1, site_name(f"{number:08x}")) for number in range(len(IMAGES))]
