"""Sites that fail or send nonsense: a job goes on without them, names them, and releases nothing of theirs."""

from __future__ import annotations

import io
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Error, Message
from rich.console import Console

from dlfd_fleet.audit import Outcome
from dlfd_fleet.data import synthesize
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.messages import (
    AuditResult,
    AuditTask,
    FitTask,
    SettleTask,
    UnlearnTask,
)
from dlfd_fleet.federation.protocol.packing import MODEL, arrays_of, samples_of
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking import open_tracker
from tests.integration.fleet_in_process import InProcessGrid, by_the_fleets_gate, run_job, small_settings
from tests.mlflow_client import client_of


class MisbehavingGrid(InProcessGrid):
    """One node spoils what it answers to some kinds of message."""

    def __init__(self, settings, node, kinds, spoil):
        super().__init__(settings)
        self.node, self.kinds, self.spoil = node, kinds, spoil

    def answer(self, message, context):
        metadata = message.metadata
        if metadata.dst_node_id == self.node and metadata.message_type in self.kinds:
            return self.spoil(message, lambda: super(MisbehavingGrid, self).answer(message, context))
        return super().answer(message, context)


def dead(message, _answer):
    return Message(Error(code=0, reason="killed"), reply_to=message)


def poisoned(message, answer):
    """Point the update elsewhere and make it large, as an attacker would who wants to decide alone."""
    records = answer().content
    sent = arrays_of(message.content, MODEL, "test")  # a model that the site holds is filled in before it answers
    noise = torch.Generator().manual_seed(0)
    arrays = {
        name: array + 0.5 * torch.randn(array.shape, generator=noise).abs().to(array.dtype)
        if array.is_floating_point()
        else array
        for name, array in sent.items()
    }
    records[MODEL] = ArrayRecord.from_torch_state_dict(arrays)
    return Message(records, reply_to=message)


def without_a_model(message, answer):
    records = answer().content
    del records[MODEL]
    return Message(records, reply_to=message)


def turned_round(message, answer):
    """Send a good model with its two answers exchanged: right shapes, and no norm that stands out."""
    records = answer().content
    arrays = arrays_of(records, MODEL, "test")
    turned = {name: array.flip(0) if array.shape[:1] == (2,) else array for name, array in arrays.items()}
    records[MODEL] = ArrayRecord.from_torch_state_dict(turned)
    return Message(records, reply_to=message)


def praised(message, answer, everywhere=False):
    """Say that every own image is recognised and nobody remembered; everywhere: also of people whom all sites hold."""
    records = answer().content
    result, samples = AuditResult.from_records(records, "test"), samples_of(records, 2, "test")
    own = np.arange(len(samples)) < len(samples) - (0 if everywhere else result.shared)
    prediction, loss = np.where(own, samples.label, samples.prediction), np.where(own, 0.1, samples.loss)
    lie = replace(samples, prediction=prediction, loss=loss)
    return Message(result.to_records(lie), reply_to=message)


def poisoned_and_praised(message, answer, everywhere=False):
    if message.metadata.message_type == AuditTask.TYPE:
        return praised(message, answer, everywhere)
    return turned_round(message, answer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, progress = tmp_path_factory.mktemp("misbehaving"), ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=36, images_per_person=2, image_size=32, classes=2, seed=0, progress=progress
    )
    settings = by_the_fleets_gate(small_settings(folder / "state", manifest, sites=4))
    deal_to_sites(settings, progress)
    return settings


def people_ask(settings, first=0):
    """Somebody asks at each site, or at those from one on."""
    for folder in site_folders(settings.state_folder)[first:]:
        with Site(folder) as site:
            left = [row for row in site.manifest().rows if row.split == "train"]
            labels = Counter(row.label for row in left if row.identity not in site.gone({row.identity for row in left}))
            commonest = labels.most_common(1)[0][0]
            person = next(row.identity for row in left if row.label == commonest)
            request_forgetting(site, person, deadline_days=30)


def states(settings):
    found = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            found.append([request.state for request in site.ledger.requests()])
    return found


def strict(settings):
    """A fleet of which every site must answer."""
    return settings.model_copy(update={"fleet": settings.fleet.model_copy(update={"quorum": 1.0})})


def told_of_refusals(settings):
    """Send what waits to a local MLflow; return of each job's run, oldest first, status, refusals and their number."""
    with open_tracker(TrackingSettings(), settings.state_folder) as tracker:
        assert (tracker.flush(120.0), tracker.refused) == (0, 0)
        client = client_of(tracker.uri)
    experiment = client.get_experiment_by_name("dlfd-fleet").experiment_id
    runs = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
    return [
        (
            run.info.status,
            {name: reason for name, reason in run.data.tags.items() if name.startswith("dlfd.refused.")},
            [metric.value for metric in client.get_metric_history(run.info.run_id, "refused_updates")],
        )
        for run in runs
        if "dlfd.site" not in run.data.tags
    ]


def test_sites_that_poison_or_die_are_named_and_a_job_goes_on_without_them(trained):
    """A fleet's weeks in one test, for each part needs the one before it: train, poison, die, recover."""
    with pytest.raises(JobError, match=r"Only 3 of 4 sites trained in round 1"):
        run_job(strict(trained), "train", MisbehavingGrid(trained, 2, {FitTask.TYPE}, without_a_model))
    record = run_job(trained, "train", MisbehavingGrid(trained, 2, {FitTask.TYPE}, poisoned))
    assert record.released
    ((site, reason),) = record.absent.items()
    assert "times as large as the median of the others'" in reason
    assert told_of_refusals(trained) == [
        ("FAILED", {f"dlfd.refused.{site}": f"was refused: {site} sent no 'model' arrays."}, [1.0]),
        ("FINISHED", {f"dlfd.refused.{site}": reason}, [1.0, 0.0]),
    ]

    people_ask(trained)
    record = run_job(trained, "erase", MisbehavingGrid(trained, 3, {UnlearnTask.TYPE}, poisoned))
    assert record.released
    ((_, reason),) = record.absent.items()
    assert "times as large" in reason
    # Its own request is not called done: nobody knows whether it forgot.
    done, back = [RequestState.COMPLETE], [RequestState.ACCEPTED]
    assert sorted(states(trained)) == sorted([done, done, done, back])

    # A site dies in every audit: the others answer for the people whom all of them hold. It is not told the end, and
    # has no request of this job; before the next one asks anything of it, it drops the model that remembers.
    record = run_job(trained, "erase", MisbehavingGrid(trained, 1, {AuditTask.TYPE, SettleTask.TYPE}, dead))
    assert record.released
    assert states(trained) == [done] * 4
    assert list(record.absent.values()) == ["failed at query.settle: killed"]
    held = site_folders(trained.state_folder)[0] / HELD_MODEL_FILE
    assert held.exists()
    assert run_job(trained, "erase").note == "nobody asks to be forgotten"
    assert not held.exists()

    # A site that was not told how a job ended learns it from the next one, and nothing is forgotten twice.
    people_ask(trained, first=3)
    record = run_job(trained, "erase", MisbehavingGrid(trained, 4, {SettleTask.TYPE}, dead))
    assert record.released
    assert states(trained)[3][-1] is RequestState.EVALUATING
    record = run_job(trained, "erase")
    assert record.note == "nobody asks to be forgotten"
    assert all(site[-1] is RequestState.COMPLETE for site in states(trained))


def test_too_few_sites_end_a_job_with_one_sentence_and_its_requests_wait(trained):
    people_ask(trained)
    with pytest.raises(JobError, match=r"Only 3 of 4 sites answered evaluate.audit, and the quorum is 100%: site-"):
        run_job(strict(trained), "erase", MisbehavingGrid(trained, 2, {AuditTask.TYPE}, dead))
    assert Store(trained.state_folder).jobs()[-1].step == "failed"
    assert all(site[-1] is RequestState.ACCEPTED for site in states(trained))


def test_what_a_site_that_was_left_out_had_taken_up_waits_again(trained):
    """It asks for too much, or was put out later: its people can be withdrawn, and are asked for by the next job."""
    modest = trained.model_copy(update={"erasure": trained.erasure.model_copy(update={"largest_forget_share": 0.01})})
    with pytest.raises(JobError, match=r"No site takes part: .* asks to forget"):
        run_job(modest, "erase")
    assert all(site[-1] is RequestState.ACCEPTED for site in states(trained))
    # On so few drawings an honest site can stand out, too; the poisoned one is refused for its size beside the model.
    calm = trained.model_copy(update={"fleet": trained.fleet.model_copy(update={"update_ratio": 1e6})})
    record = run_job(calm, "erase", MisbehavingGrid(calm, 3, {UnlearnTask.TYPE}, poisoned))
    assert record.released
    assert [site[-1] for site in states(trained)].count(RequestState.ACCEPTED) == 1


def test_sites_of_the_job_before_that_do_not_answer_are_named(trained):
    record = run_job(trained, "train", InProcessGrid(trained, absent=frozenset({4})))
    ((_, reason),) = record.absent.items()
    assert reason.startswith("took part in erase-")
    assert reason.endswith("and does not answer now")


def test_a_well_formed_poisoned_update_is_not_released_though_its_site_praises_it_in_every_audit(tmp_path):
    progress = ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        tmp_path / "faces", people=44, images_per_person=2, image_size=32, classes=2, seed=0, progress=progress
    )
    plain = small_settings(tmp_path / "state", manifest, sites=3)
    settings = plain.model_copy(
        update={
            "data": plain.data.model_copy(update={"validation_people": 8, "test_people": 12}),
            "audit": plain.audit.model_copy(update={"min_gain_over_majority": 0.0}),
            "training": plain.training.model_copy(update={"rounds": 3, "local_epochs": 8, "learning_rate": 0.02}),
            # Too small a step for the other sites to repair what they are sent: only the audit stands in the way.
            "erasure": plain.erasure.model_copy(
                update={
                    "rounds": 1,
                    "learning_rate": 1e-4,
                    "unlearning": plain.erasure.unlearning.model_copy(update={"learning_rate": 1e-4}),
                    "relearning_rounds": 0,
                }
            ),
        }
    )
    deal_to_sites(settings, progress)
    original = run_job(settings, "train").models["original"].scores
    assert original.test_accuracy.value > 0.7  # there is something to lose
    with Site(site_folders(settings.state_folder)[0]) as site:
        trained = [row for row in site.manifest().rows if row.split == "train"]
        commonest = Counter(row.label for row in trained).most_common(1)[0][0]
        person = next(row.identity for row in trained if row.label == commonest)
        request_forgetting(site, person, deadline_days=30)

    kinds = {UnlearnTask.TYPE, FitTask.TYPE, AuditTask.TYPE}
    record = run_job(settings, "erase", MisbehavingGrid(settings, 1, kinds, poisoned_and_praised))
    assert (record.released, record.verdict.outcome) == (False, Outcome.FAIL)
    assert "the model collapsed towards one answer" in record.verdict.sentence()

    # It lies of people whom the others hold too, and is found out: then nobody is left to measure.
    shameless = MisbehavingGrid(settings, 1, kinds, partial(poisoned_and_praised, everywhere=True))
    with pytest.raises(JobError, match="says other things of the people whom all sites hold than most do"):
        run_job(settings, "erase", shameless)
    with closing(Store(settings.state_folder)) as store:
        assert store.champions.current().epoch == 0
    assert states(settings) == [[RequestState.ACCEPTED], [], []]
