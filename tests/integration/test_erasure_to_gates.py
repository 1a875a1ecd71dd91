"""An erasure where sites know by reference models whether their people are forgotten: few exchanges, no repair."""

from __future__ import annotations

import io
import re
import shutil
from unittest import mock

import pytest
import torch

from dlfd_fleet.audit import Outcome
from dlfd_fleet.federation.protocol.messages import Aim, AuditTask, FitTask, UnlearnResult, UnlearnTask, UnseenTask
from dlfd_fleet.federation.protocol.packing import MODEL
from dlfd_fleet.federation.rounds.audits import Audits
from dlfd_fleet.federation.rounds.erasure import Erasure
from dlfd_fleet.federation.site.images import used_images
from dlfd_fleet.federation.site.references import reference_answers
from dlfd_fleet.ledger import Site, site_folders
from dlfd_fleet.settings import ReferenceSettings
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    interrupted_before,
    run_job,
    trained_fleet,
)

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
    erasure = {"own_answers": False} | erasure
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
    assert [task.aim for task in asked_of(grid, UnlearnTask)] == [Aim.REFERENCES] * 2 + [Aim.TO_GATE] * 2
    assert not any(one.done for one, _ in answers_of(grid))


@pytest.mark.parametrize("mended", [True, False])
def test_what_retained_people_lost_is_read_where_the_last_round_has_not_reached_the_gates(fleet, mended):
    """Two sites have made the model together, and neither has read it. So both are asked, and repair by need.

    What the repair does not mend ends the attempt: nobody goes to a gate again, and nobody audits it.
    """
    settings = with_gate(fleet, 0.0, rounds=1, relearning_rounds=0)
    unlearning = settings.erasure.unlearning.model_copy(update={"max_utility_drop": 0.0})
    settings = settings.model_copy(update={"erasure": settings.erasure.model_copy(update={"unlearning": unlearning})})
    a_person_asks_at_each_site(settings)
    grid, out = InProcessGrid(settings), io.StringIO()
    retained, losses = Audits.retained, [1.5, 0.0 if mended else 1.5]

    def read(*arguments):
        """Say that retained people lost so much, whatever they lost."""
        told, lost = retained(*arguments), losses.pop(0)
        assert len(told) == 2
        assert all(images > 0 and 0.0 <= share <= 1.0 for images, share in told.values())
        return {site: (images, 1.0 - lost) for site, (images, _) in told.items()}

    with mock.patch.object(Audits, "retained", read):
        record = run_job(settings, "erase", grid, out)
    assert record.released
    assert not losses
    assert [task.roles for task in asked_of(grid, AuditTask)].count(("retain",)) == 4
    said = " ".join(out.getvalue().split())
    assert "Retained people of the sites that were asked lost" in said
    assert ("this erasure does not use them" in said) != mended
    aims = [task.aim for task in asked_of(grid, UnlearnTask)]
    assert aims == [Aim.REFERENCES] * 2 + [Aim.TO_GATE if mended else Aim.WITHOUT_REFERENCES] * 2
    # Images are changed as in training, and otherwise only where there is nothing to aim at.
    changed = [task.augmentation for kind in (UnlearnTask, FitTask) for task in asked_of(grid, kind)]
    as_in_training, without = settings.training.augmentation, settings.erasure.augmentation
    assert as_in_training != without
    assert changed == [as_in_training] * 2 + [as_in_training if mended else without] * 2 + [as_in_training] * 2 + (
        [] if mended else [without] * 2
    )
    assert record.proceedings.attempts == (1 if mended else 2)
    noted = [(one.aim, one.forgetting, one.repair, one.failed != "") for one in record.proceedings.attempts_made]
    given_up = [("references", 1, 1, True), ("fleet-gate", 1, 1, False)]
    assert noted == ([("references", 2, 1, False)] if mended else given_up)
    audited = [task.roles for task in asked_of(grid, AuditTask)].count(("retain", "forget", "validation", "test"))
    assert audited == 4  # the original, and one unlearned model, at two sites


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
    assert {task.aim for task in asked_of(grid, UnlearnTask)} == {Aim.REFERENCES}
    assert all(one.left is None for one, _ in answers_of(grid))


def test_a_job_that_is_killed_between_rounds_goes_on_to_the_gates(fleet):
    settings = with_gate(fleet, 1.0, relearning_rounds=0)
    a_person_asks_at_each_site(settings)
    with interrupted_before("distancing-2"):
        run_job(settings, "erase")
    grid = InProcessGrid(settings)
    record = run_job(settings, "erase", grid)
    assert record.released
    assert [task.aim for task in asked_of(grid, UnlearnTask)] == [Aim.TO_GATE] * 2  # the first round is not done again


def test_where_a_sites_references_are_too_poor_the_erasure_is_the_long_one_at_once(fleet, monkeypatch):
    """Whether they are is told before anybody unlearns, with both accuracies; no attempt is thrown away."""
    told = iter([1.0, 0.0])  # at one of the sites
    monkeypatch.setattr("dlfd_fleet.federation.site.references.least_drop", lambda *_: next(told))
    settings = with_gate(fleet, 1.0, rounds=1)
    grid, out = InProcessGrid(settings), io.StringIO()
    a_person_asks_at_each_site(settings)
    record = run_job(settings, "erase", grid, out)
    assert record.released
    assert record.proceedings.attempts == 1
    (made,) = record.proceedings.attempts_made
    assert made.because.startswith("the reference models are too poor to aim at, and ")
    tasks = asked_of(grid, UnlearnTask)
    assert [task.aim for task in tasks] == [Aim.WITHOUT_REFERENCES] * 2
    assert {task.unlearning.epochs for task in tasks} == {settings.erasure.unlearning.epochs}  # no stronger for it
    assert "repair" in {task.purpose for task in asked_of(grid, FitTask)}
    compared = asked_of(grid, UnseenTask)
    assert [task.max_drop for task in compared] == [settings.references.max_accuracy_drop] * 2
    said = " ".join(out.getvalue().split())
    assert re.search(
        r"At site-\w{8} reference models are right about [\d.]+% of the images of 2 people never trained on, and the "
        r"model about [\d.]+%\. They are too poor to aim at, so this erasure does not use them\.",
        said,
    )
    assert {record.models[name].sites for name in ("original", "unlearned", "relearned")} == {2}


def test_a_job_that_is_killed_after_sites_have_said_too_poor_takes_the_long_way(fleet, monkeypatch):
    monkeypatch.setattr("dlfd_fleet.federation.site.references.least_drop", lambda *_: 1.0)
    settings = with_gate(fleet, 1.0, rounds=1, relearning_rounds=0)
    a_person_asks_at_each_site(settings)
    with interrupted_before("distancing-1"):
        run_job(settings, "erase")
    grid = InProcessGrid(settings)
    assert run_job(settings, "erase", grid).released
    assert not asked_of(grid, UnseenTask)  # that is known
    assert {task.aim for task in asked_of(grid, UnlearnTask)} == {Aim.WITHOUT_REFERENCES}


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
    assert [task.aim for task in tasks] == [Aim.REFERENCES] * 2 + [Aim.WITHOUT_REFERENCES] * 2
    epochs = {task.unlearning.epochs for task in tasks}
    assert epochs == {1.0}  # the first of the long attempts is no stronger for the one before it
    assert {task.purpose for task in asked_of(grid, FitTask)} == {"repair"}
    assert [one.left is None for one, _ in answers_of(grid)] == [False] * 2 + [True] * 2
