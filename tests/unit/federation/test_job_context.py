"""What a job does next follows from what its sites said when it began, not from who is there now."""

from __future__ import annotations

from datetime import date

import pytest

from dlfd_fleet.federation.protocol.messages import PendingReply
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.job_context import JobContext
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard
from dlfd_fleet.settings import Settings

CARD = ModelCard(architecture="resnet18", classes=("no", "yes"), input=image_input(32))


def site(number, *, asks=False, references=False):
    request = f"{number:016x}"
    day = {"asked_at": date(2026, 11, 3), "deadline": date(2026, 12, 3)}
    return PendingReply(
        site=f"{number:08x}",
        requests=(request,) if asks else (),
        dates={request: day} if asks else {},
        forget_images=4 if asks else 0,
        answered_images=4 if references else 0,
        class_images=(5, 5),
        classes=CARD.classes,
        input=CARD.input,
    )


@pytest.fixture
def job(silent):
    """Make the context of a job of these sites, some of which are away since; nodes are others in each process."""

    def made(said, away=(), first_node=1):
        fleet = Fleet(grid=None, timeout=1.0)
        present = {first_node + place: reply for place, reply in enumerate(said) if reply.site not in away}
        fleet.admit(present, said=said)
        settings = Settings(erasure={"repair_share": 0.4})
        return JobContext(fleet=fleet, card=CARD, settings=settings, name="erase-1", progress=silent)

    return made


def sites_of(job, nodes):
    return {job.fleet.admitted[node].reply.site for node in nodes}


def test_a_site_without_references_that_is_away_does_not_turn_a_job_to_another_way(job):
    said = [site(1, asks=True, references=True), site(2, asks=True), site(3)]
    assert not job(said).sites_can_tell
    assert not job(said, away={site(2).site}).sites_can_tell
    assert job([said[0], said[2]]).sites_can_tell


def test_the_same_sites_are_drawn_under_other_nodes_and_another_one_for_a_site_that_is_away(job):
    said = [site(1, asks=True, references=True), *map(site, range(2, 12))]
    first, again = job(said), job(said, first_node=50)
    drawn = sites_of(first, first.sampled("repair-1"))
    assert len(drawn) == 1 + 4
    assert sites_of(again, again.sampled("repair-1")) == drawn
    away = max(drawn - {said[0].site})
    without = job(said, away={away})
    redrawn = sites_of(without, without.sampled("repair-1"))
    assert len(redrawn) == len(drawn)
    assert drawn - redrawn == {away}
