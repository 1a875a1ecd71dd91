"""A site that claims more images than there are, and one whose numbers overflow: neither decides nor holds a job."""

from __future__ import annotations

import io
import json
from contextlib import closing

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from rich.console import Console

from dlfd_fleet.audit import Outcome
from dlfd_fleet.data import synthesize
from dlfd_fleet.exceptions import VerdictError
from dlfd_fleet.federation.jobs import command, releaser, run
from dlfd_fleet.federation.protocol.messages import FitResult, FitTask, PendingQuery, PendingReply
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.progress import ConsoleProgress
from tests.integration.fleet_in_process import a_person_asks_at_each_site, run_job, small_settings
from tests.integration.test_misbehaving_sites import MisbehavingGrid, turned_round

LIAR = 1


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A fleet of three sites with a champion that is worth something."""
    folder, progress = tmp_path_factory.mktemp("counts"), ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=56, images_per_person=2, image_size=32, classes=2, seed=0, progress=progress
    )
    plain = small_settings(folder / "state", manifest, sites=3)
    settings = plain.model_copy(
        update={
            "data": plain.data.model_copy(update={"validation_people": 8, "test_people": 24}),
            "training": plain.training.model_copy(update={"rounds": 3, "local_epochs": 16, "learning_rate": 0.02}),
            "audit": plain.audit.model_copy(update={"max_accuracy_drop": 0.02}),
        }
    )
    deal_to_sites(settings, progress)
    assert run_job(settings, "train").models["original"].scores.test_accuracy.value > 0.7
    return settings


@pytest.fixture(scope="module")
def asked(settings):
    """The fleet once a person has asked at each site."""
    a_person_asks_at_each_site(settings)
    return settings


def champion_of(settings):
    with closing(Store(settings.state_folder)) as store:
        return store.champions.current()


def jobs_of(settings):
    with closing(Store(settings.state_folder)) as store:
        return store.jobs()


def claims(count):
    """Claim so many images, send the model with its two answers exchanged, and say the truth in audits."""

    def spoil(message, answer):
        if message.metadata.message_type == PendingQuery.TYPE:
            reply = PendingReply.from_records(answer().content, "test")
            lie = reply.model_copy(update={"class_images": (count, 54)})
            return Message(lie.to_records(), reply_to=message)
        turned = turned_round(message, answer)
        result = FitResult.from_records(turned.content, "test").model_copy(update={"examples": count})
        turned.content["body"] = result.to_records()["body"]
        return turned

    return spoil


def test_a_site_that_claims_two_thousand_million_images_is_found_and_the_champion_is_no_worse(settings):
    before, out = champion_of(settings), io.StringIO()
    grid = MisbehavingGrid(settings, LIAR, {PendingQuery.TYPE, FitTask.TYPE}, claims(2_000_000_000))
    record = run_job(settings, "train", grid, out)
    ((site, reason),) = record.absent.items()
    assert "says that it trains on 2000000054 images, and answers for" in reason
    assert "(fleet.largest_weight_ratio); it counts by" in " ".join(out.getvalue().split())
    (share,) = [share for share in record.proceedings.sites if share.site == site]
    assert share.training_images == 2_000_000_054
    assert share.counted_images < 60
    bodies = [message.content["body"]["json"] for message in grid.seen if "body" in message.content]
    weights = [json.loads(body)["class_weights"] for body in bodies if '"class_weights"' in body]
    assert len(weights) == 2 * settings.training.rounds
    assert max(max(each) for each in weights) < 3.0
    assert record.models["original"].scores.test_accuracy.value > 0.6
    assert champion_of(settings).epoch == before.epoch


class EverybodyTurned(MisbehavingGrid):
    """Every site's model comes back with its answers exchanged, as if one of them had outweighed the others."""

    def answer(self, message, context):
        self.node = message.metadata.dst_node_id
        return super().answer(message, context)


def test_a_trained_model_that_is_worse_than_the_champion_is_not_released(settings):
    before = champion_of(settings)
    grid = EverybodyTurned(settings, LIAR, {FitTask.TYPE}, turned_round)
    with pytest.raises(VerdictError, match=r"^The verdict is FAIL: .*accuracy fell by.* the champion stays\.$"):
        run_job(settings, "train", grid)
    assert champion_of(settings) == before
    record = jobs_of(settings)[-1]
    assert (record.step, record.released, record.verdict.outcome) == ("failed", False, Outcome.FAIL)
    assert "accuracy fell by" in record.note


def overflowing(message, answer):
    """Say 10**400 images, asked for before there were clocks."""
    text = answer().content["body"]["json"]
    huge = text.replace('"forget_images":', '"forget_images":1' + "0" * 400)
    return Message(RecordDict({"body": ConfigRecord({"json": huge})}), reply_to=message)


def ancient(message, answer):
    reply = PendingReply.from_records(answer().content, "test")
    dated = reply.to_records()["body"]["json"].replace('"asked_at":"2', '"asked_at":"0001-01-01T00:00:00+14:00","x":"2')
    return Message(RecordDict({"body": ConfigRecord({"json": dated})}), reply_to=message)


@pytest.mark.parametrize("spoil", [overflowing, ancient])
def test_numbers_and_dates_that_overflow_are_one_sites_own_and_the_job_goes_on(asked, spoil, monkeypatch):
    monkeypatch.setattr(
        run, "erase", lambda job, origin, _releaser: job.pending(origin.card) and job.advance("settled")
    )
    record = run_job(asked, "erase", MisbehavingGrid(asked, LIAR, {PendingQuery.TYPE}, spoil))
    assert record.step == "settled"
    ((site, reason),) = [(site, reason) for site, reason in record.absent.items() if "was refused" in reason]
    assert f"was refused: {site} sent a wrong PendingReply" in reason
    assert len(record.proceedings.sites) == 2


def test_a_report_that_cannot_be_drawn_holds_no_job_and_any_job_can_be_cancelled(asked, monkeypatch):
    calm = asked.model_copy(update={"audit": asked.audit.model_copy(update={"max_accuracy_drop": 1.0})})

    def broken(*_):
        raise OverflowError("date value out of range \x1b[2J")

    monkeypatch.setattr(releaser, "record_report", broken)
    record = run_job(calm, "erase")
    assert (record.step, record.released) == ("settled", True)
    assert record.note.endswith(r"; its report cannot be drawn: OverflowError: date value out of range \x1b[2J")

    with closing(Store(asked.state_folder)) as store:
        # As the release before left it: it fails at its report, whoever resumes it.
        store.save(record.model_copy(update={"step": "released"}))
        assert "ends when the next job starts" in command.cancel(store, record.job)
    assert run_job(calm, "erase").note == "nobody asks to be forgotten"
    assert [job.step for job in jobs_of(asked)[-2:]] == ["cancelled", "settled"]
