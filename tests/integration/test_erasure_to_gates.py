"""An erasure where sites know by reference models whether their people are forgotten: few exchanges, no repair."""

from __future__ import annotations

import shutil
from unittest import mock

import pytest
import torch

from dlfd_fleet.audit import Outcome
from dlfd_fleet.federation.protocol.messages import FitTask, UnlearnResult, UnlearnTask
from dlfd_fleet.federation.protocol.packing import MODEL
from dlfd_fleet.federation.records.steps import Steps
from dlfd_fleet.federation.rounds.erasure import Erasure
from dlfd_fleet.federation.site.images import used_images
from dlfd_fleet.federation.site.references import reference_answers
from dlfd_fleet.ledger import Site, site_folders
from dlfd_fleet.settings import ReferenceSettings
from tests.integration.fleet_in_process import InProcessGrid, a_person_asks_at_each_site, run_job, trained_fleet

JUDGE = Erasure._judge


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A fleet of two sites with a champion, and what two reference models say."""
    settings = trained_fleet(tmp_path_factory.mktemp("gates"))
    settings = settings.model_copy(update={"references": ReferenceSettings(models=2)})
    run_job(settings, "references")
    return settings


@pytest.fixture
def fleet(known, tmp_path):
    shutil.copytree(known.state_folder, tmp_path / "state")
    return known.model_copy(update={"state_folder": tmp_path / "state"})


def with_gate(settings, share, rounds=3, **erasure):
    unlearning = settings.erasure.unlearning.model_copy(update={"reference_gate": share})
    changed = settings.erasure.model_copy(update={"unlearning": unlearning, "rounds": rounds, **erasure})
    return settings.model_copy(update={"erasure": changed})


def asked_of(grid, kind):
    """The tasks of a kind that the sites were sent, in their order."""
    return [
        kind.from_records(message.content, "test")
        for message in grid.seen
        if message.metadata.message_type == kind.TYPE and not message.metadata.reply_to_message_id
    ]


def answers_of(grid):
    """What the sites said of their unlearning, and whether a model came with it."""
    asked = {
        message.metadata.message_id
        for message in grid.seen
        if message.metadata.message_type == UnlearnTask.TYPE and not message.metadata.reply_to_message_id
    }
    replies = [message for message in grid.seen if message.metadata.reply_to_message_id in asked]
    return [(UnlearnResult.from_records(one.content, "test"), MODEL in one.content) for one in replies]


def test_sites_unlearn_until_they_are_done_and_no_other_site_trains(fleet):
    grid, settings = InProcessGrid(fleet), with_gate(fleet, 1.0, relearning_rounds=0)
    a_person_asks_at_each_site(settings)
    record = run_job(settings, "erase", grid)
    assert record.released
    assert not asked_of(grid, FitTask)  # neither repair nor anything else
    said = answers_of(grid)
    first, second = said[:2], said[2:]
    assert [(one.done, model) for one, model in first] == [(False, True)] * 2  # whatever a site reads at first
    assert [(one.done, model) for one, model in second] == [(True, False)] * 2
    assert all(one.left is not None for one, _ in said)
    assert len(record.forgotten) == 2


def test_a_gate_that_is_never_reached_ends_with_the_last_round(fleet):
    grid, settings = InProcessGrid(fleet), with_gate(fleet, 0.0, rounds=2, relearning_rounds=0)
    unlearning = settings.erasure.unlearning.model_copy(update={"epochs": 0.01, "learning_rate": 1e-9})
    settings = settings.model_copy(update={"erasure": settings.erasure.model_copy(update={"unlearning": unlearning})})
    with_members_far_away(settings)
    a_person_asks_at_each_site(settings)
    record = run_job(settings, "erase", grid)
    assert record.step == "settled"
    assert [task.to_gate for task in asked_of(grid, UnlearnTask)] == [False] * 2 + [True] * 2
    assert not any(one.done for one, _ in answers_of(grid))


def rewritten(site, change):
    """Keep other answers of a site's reference models: ``change(images, trained, logits)`` returns rows and logits."""
    current, used = site.references.current(), used_images(site)
    known = reference_answers(site, used.images)
    for number in range(current.models):
        rows, logits = change(used.images, known.trained[number], known.logits[number].clone())
        digests, trained = [used.digests[row] for row in rows], [bool(known.trained[number][row]) for row in rows]
        site.references.keep(current, number, digests, trained, logits[rows].numpy())


def with_members_far_away(settings):
    """Let models that never saw a person be much less sure of their images than any model is."""

    def change(images, trained, logits):
        of_members = torch.tensor([row.split == "train" for row in images.rows])
        logits[range(len(images)), images.labels] -= 20.0 * (of_members & ~trained).float()
        return list(range(len(images))), logits

    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            rewritten(site, change)


def test_someone_who_came_after_the_references_is_forgotten_the_long_way(fleet):
    """No model was ever asked about them, so the site cannot tell by itself when they are forgotten."""
    settings = with_gate(fleet, 1.0, rounds=1, relearning_rounds=0)
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            person = next(row.identity for row in site.manifest().rows if row.split == "train")
            rewritten(
                site,
                lambda images, _, logits, person=person: (
                    [row for row, name in enumerate(images.identities) if name != person],
                    logits,
                ),
            )
    grid = InProcessGrid(settings)
    a_person_asks_at_each_site(settings)
    assert run_job(settings, "erase", grid).released
    assert {task.purpose for task in asked_of(grid, FitTask)} == {"repair"}
    assert not any(task.to_gate for task in asked_of(grid, UnlearnTask))
    assert all(one.left is None for one, _ in answers_of(grid))


def test_a_job_that_is_killed_between_rounds_goes_on_to_the_gates(fleet):
    settings = with_gate(fleet, 1.0, relearning_rounds=0)
    a_person_asks_at_each_site(settings)
    finish = Steps.finish

    def stopping(self, job, finished):
        if finished.name == "distancing-2":
            raise KeyboardInterrupt
        return finish(self, job, finished)

    with mock.patch.object(Steps, "finish", stopping), pytest.raises(KeyboardInterrupt):
        run_job(settings, "erase")
    grid = InProcessGrid(settings)
    record = run_job(settings, "erase", grid)
    assert record.released
    assert [task.to_gate for task in asked_of(grid, UnlearnTask)] == [True, True]  # the first round is not done again


@pytest.mark.parametrize("how", ["the verdict is FAIL", "retained people lose too much, perhaps by chance"])
def test_where_the_way_by_references_fails_the_erasure_is_as_without_them(fleet, how):
    """Poor references spoil a model; then nobody aims at them any more, and the fleet's own gate decides."""
    settings = with_gate(fleet, 1.0, rounds=1, relearning_rounds=0)
    unlearning = settings.erasure.unlearning.model_copy(update={"epochs": 1.0})
    audit = settings.audit.model_copy(update={"max_retain_drop": 1.0})
    settings = settings.model_copy(
        update={"erasure": settings.erasure.model_copy(update={"unlearning": unlearning}), "audit": audit}
    )
    grid, judged = InProcessGrid(settings), []
    a_person_asks_at_each_site(settings)

    def failing_once(self, original, candidate):
        judged.append(candidate)
        verdict = JUDGE(self, original, candidate)
        fails = len(judged) == 1 and how == "the verdict is FAIL"
        return verdict.model_copy(update={"outcome": Outcome.FAIL}) if fails else verdict

    with (
        mock.patch.object(Erasure, "_judge", failing_once),
        mock.patch.object(Erasure, "_lost_too_much", return_value=how != "the verdict is FAIL"),
    ):
        record = run_job(settings, "erase", grid)
    assert record.released
    assert record.proceedings.attempts == 2
    tasks = asked_of(grid, UnlearnTask)
    assert [task.references for task in tasks] == [True] * 2 + [False] * 2
    epochs = {task.unlearning.epochs for task in tasks}
    assert epochs == {1.0}  # the first of the long attempts is no stronger for the one before it
    assert {task.purpose for task in asked_of(grid, FitTask)} == {"repair"}
    assert all((one.left is None) != task.references for (one, _), task in zip(answers_of(grid), tasks, strict=True))
