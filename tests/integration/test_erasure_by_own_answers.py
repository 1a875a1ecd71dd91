"""An erasure without references: sites aim at what the model says of changed copies, and only they exchange models."""

from __future__ import annotations

import html
import json
import shutil
from contextlib import closing
from itertools import chain, repeat
from unittest import mock

import pytest
import torch

from dlfd_fleet.audit import Outcome
from dlfd_fleet.federation.protocol.messages import Aim, FitTask, UnlearnTask
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.rounds.erasure import Erasure
from dlfd_fleet.federation.rounds.rounds import Rounds
from dlfd_fleet.federation.site.own_answers import own_answers_of
from dlfd_fleet.ledger import site_folders
from dlfd_fleet.report import read
from dlfd_fleet.unlearning.own_answers import Left, OwnAnswers
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    interrupted_before,
    run_job,
    trained_fleet,
)
from tests.integration.test_erasure_to_gates import answers_of, asked_of


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A fleet of two sites with a champion."""
    return trained_fleet(tmp_path_factory.mktemp("own"))


@pytest.fixture
def fleet(known, tmp_path):
    shutil.copytree(known.state_folder, tmp_path / "state")
    return known.model_copy(update={"state_folder": tmp_path / "state"})


def with_gate(settings, share, rounds=3, **erasure):
    unlearning = settings.erasure.unlearning.model_copy(update={"own_gate": share})
    changed = {"unlearning": unlearning, "rounds": rounds, "relearning_rounds": 0, **erasure}
    return settings.model_copy(update={"erasure": settings.erasure.model_copy(update=changed)})


def reading(*shares):
    """Make the sites read these shares, one after the other, whatever they would read."""
    return mock.patch.object(
        OwnAnswers, "left", side_effect=(Left(share, 0.0) for share in chain(shares, repeat(shares[-1])))
    )


def written(settings, record):
    """Return the report and the certificate of a job, and what MLflow is to be told."""
    with closing(Store(settings.state_folder)) as store:
        folder = store.folders.made(record.job)
        page, certificate = (folder / "report.html").read_text(), read(folder / "certificate.json").predicate
        return " ".join(page.split()), certificate, (store.folder / "outbox.db").read_bytes()


def steps_of(record):
    """Return the rounds of forgetting and of repair that the job's journal has counted."""
    phases = record.proceedings.phases
    return tuple(phases[name].steps if name in phases else 0 for name in ("distancing", "repair"))


def aims_of(grid):
    return [task.aim for task in asked_of(grid, UnlearnTask)]


def test_sites_unlearn_until_they_are_done_and_no_other_site_trains(fleet):
    grid, settings = InProcessGrid(fleet), with_gate(fleet, 1.0)
    a_person_asks_at_each_site(settings)
    record = run_job(settings, "erase", grid)
    assert record.released
    assert len(record.forgotten) == 2
    assert not asked_of(grid, FitTask)  # neither repair nor anything else
    assert aims_of(grid) == [Aim.OWN_ANSWERS] * 2 + [Aim.OWN_ANSWERS_TO_GATE] * 2
    said = answers_of(grid)
    assert [(one.done, model) for one, model in said] == [(False, True)] * 2 + [(True, False)] * 2
    assert all(one.left is not None and one.retain_accuracy is not None for one, _ in said)
    # Images are changed as in training, so that retained people pay for nothing.
    assert {task.augmentation for task in asked_of(grid, UnlearnTask)} == {settings.training.augmentation}
    (made,) = record.proceedings.attempts_made
    assert (made.aim, made.because) == ("own-answers", "no reference models had answered")
    assert (made.reached, made.ended, made.failed) == (True, "Every site that was asked was within its gate.", "")
    assert (made.forgetting, made.repair) == steps_of(record) == (2, 0)
    assert made.gates == {
        share.site: one.left for share, (one, _) in zip(record.proceedings.sites, said[2:], strict=True)
    }
    page, certificate, told = written(settings, record)
    sentence = (
        "Sites aimed at what the model itself says of changed copies of the images, because no reference models had "
        "answered."
    )
    assert certificate.aimed_at == (sentence,)
    assert sentence in page
    assert "2 rounds of forgetting and 0 of repair. Every site that was asked was within its gate." in page
    assert json.dumps({"dlfd.aimed_at": "own-answers"}).encode() in told


def test_a_round_after_one_that_brought_nothing_is_the_last_and_is_not_used(fleet):
    grid, settings = InProcessGrid(fleet), with_gate(fleet, 0.0, rounds=5)
    a_person_asks_at_each_site(settings)
    made, ended = [], []
    unlearn, to_gates = Rounds.unlearning_round, Erasure._rounds_to_gates

    def noting(noted, function):
        def call(*arguments, **named):
            noted.append(function(*arguments, **named))
            return noted[-1]

        return call

    # Of the model that came, in the first round, in the second, and in the third one.
    with (
        reading(1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6, 0.6),
        mock.patch.object(Rounds, "unlearning_round", noting(made, unlearn)),
        mock.patch.object(Erasure, "_rounds_to_gates", noting(ended, to_gates)),
    ):
        record = run_job(settings, "erase", grid)
    assert record.released
    assert len(asked_of(grid, UnlearnTask)) == 2 * 3
    second, third = made[1].arrays, made[2].arrays
    assert all(torch.equal(array, second[name]) for name, array in ended[0].arrays.items())
    assert not all(torch.equal(array, third[name]) for name, array in ended[0].arrays.items())
    (noted,) = record.proceedings.attempts_made
    assert (noted.forgetting, noted.reached, noted.failed) == (3, False, "")
    assert "a round brought none of them nearer; that round is not used" in noted.ended
    assert [*noted.gates.values()] == [0.6, 0.6]
    assert len(record.forgotten) == 2


def test_a_gate_that_comes_nearer_is_gone_to_until_the_last_round(fleet):
    grid, settings = InProcessGrid(fleet), with_gate(fleet, 0.0, rounds=3)
    a_person_asks_at_each_site(settings)
    with reading(1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.2, 0.2, 0.2, 0.2):
        record = run_job(settings, "erase", grid)
    assert record.released
    assert len(asked_of(grid, UnlearnTask)) == 2 * 3
    (noted,) = record.proceedings.attempts_made
    assert (noted.forgetting, noted.reached) == (3, False)
    assert noted.ended.startswith("The last of 3 rounds (erasure.rounds) came before every site had said")


def test_where_a_site_has_nobody_unseen_the_fleet_has_the_gate(tmp_path):
    settings = with_gate(trained_fleet(tmp_path, unseen=False), 1.0)
    grid = InProcessGrid(settings)
    a_person_asks_at_each_site(settings)
    record = run_job(settings, "erase", grid)
    assert set(aims_of(grid)) == {Aim.REFERENCES}  # of which no site has any
    assert asked_of(grid, FitTask)
    (made,) = record.proceedings.attempts_made
    assert (made.aim, made.gates) == ("fleet-gate", {})
    assert made.because.endswith("and a site that was asked has nobody on whom no model was trained")


def test_it_can_be_left_to_the_fleets_gate(fleet):
    grid, settings = InProcessGrid(fleet), with_gate(fleet, 1.0, own_answers=False)
    a_person_asks_at_each_site(settings)
    record = run_job(settings, "erase", grid)
    assert set(aims_of(grid)) == {Aim.REFERENCES}
    (made,) = record.proceedings.attempts_made
    assert made.because.endswith("and the settings rule out the model's own answers (erasure.own_answers)")
    assert (made.forgetting, made.repair) == steps_of(record)


def test_where_it_fails_the_job_goes_the_long_way(fleet):
    grid, settings = InProcessGrid(fleet), with_gate(fleet, 1.0, rounds=1)
    a_person_asks_at_each_site(settings)
    judge, verdicts = Erasure._judge, []

    def failing_once(*arguments):
        verdict = judge(*arguments)
        verdicts.append(verdict)
        return verdict.model_copy(update={"outcome": Outcome.FAIL}) if len(verdicts) == 1 else verdict

    with mock.patch.object(Erasure, "_judge", failing_once):
        record = run_job(settings, "erase", grid)
    assert record.released
    assert aims_of(grid) == [Aim.OWN_ANSWERS] * 2 + [Aim.REFERENCES] * 2
    assert asked_of(grid, FitTask)
    first, second = record.proceedings.attempts_made
    assert (first.aim, first.forgetting, first.repair, first.reached) == ("own-answers", 1, 0, False)
    assert first.failed.startswith("FAIL: ")
    assert (second.aim, second.because) == ("fleet-gate", "attempt 1 had failed")
    assert (second.forgetting, second.repair, second.failed) == (1, 1, "")
    assert steps_of(record) == (2, 1)
    page, certificate, told = written(settings, record)
    assert certificate.aimed_at[0] == "A first attempt failed, and a second one ran from the beginning."
    assert certificate.aimed_at[1].endswith(f"This attempt failed: {first.failed}")
    assert all(html.escape(sentence, quote=False).replace("'", "&#39;") in page for sentence in certificate.aimed_at)
    assert json.dumps({"dlfd.aimed_at": "own-answers,fleet-gate"}).encode() in told


def test_a_job_that_was_killed_goes_on_with_the_answers_of_the_first_model(fleet):
    settings, targets = with_gate(fleet, 0.0, rounds=2), []
    a_person_asks_at_each_site(settings)

    def noted(site, *arguments):
        own = own_answers_of(site, *arguments)
        targets.append((site.card.name, own.changed))
        return own

    with mock.patch("dlfd_fleet.federation.site.training.own_answers_of", noted), reading(1.0, 1.0, 0.5):
        with interrupted_before("distancing-2"):
            run_job(settings, "erase")
        record = run_job(settings, "erase")
    assert record.released
    first, later = dict(targets[:2]), targets[2:]
    assert later
    assert all(torch.equal(first[name], changed) for name, changed in later)


def test_a_round_that_brings_one_site_nearer_goes_on_whatever_another_one_says(fleet):
    grid, settings = InProcessGrid(fleet), with_gate(fleet, 0.0, rounds=3)
    a_person_asks_at_each_site(settings)
    with reading(1.0, 0.0, 0.6, 0.6, 9.0, 9.0, 0.3, 0.3, 9.0, 9.0):
        run_job(settings, "erase", grid)
    assert len(asked_of(grid, UnlearnTask)) == 2 * 3


def test_a_site_that_was_not_there_in_the_first_round_unlearns_in_the_second(fleet):
    """Whatever its gate reads: it has not unlearned yet."""
    settings = with_gate(fleet, 1.0, rounds=2)
    a_person_asks_at_each_site(settings)
    grid = InProcessGrid(settings)
    with mock.patch("dlfd_fleet.federation.site.training.has_own_answers", return_value=False):
        run_job(settings, "erase", grid)
    done = [one.done for one, _ in answers_of(grid)]
    assert done == [False] * 4


def test_where_a_site_finds_nothing_to_aim_at_the_job_goes_the_long_way(fleet):
    grid, settings = InProcessGrid(fleet), with_gate(fleet, 1.0, rounds=1)
    a_person_asks_at_each_site(settings)
    with mock.patch.object(OwnAnswers, "of", return_value=None):
        record = run_job(settings, "erase", grid)
    assert record.released
    first, second = record.proceedings.attempts_made
    assert (first.reached, first.gates, first.failed) == (False, {}, first.ended)
    assert "so there is nothing to aim at" in first.failed
    assert second.failed == ""
    assert aims_of(grid) == [Aim.OWN_ANSWERS] * 2 + [Aim.REFERENCES] * 2
    assert asked_of(grid, FitTask)


def test_what_the_model_said_is_kept_for_the_job_and_no_longer(fleet):
    settings = with_gate(fleet, 1.0)
    a_person_asks_at_each_site(settings)
    with interrupted_before("distancing-2"):
        run_job(settings, "erase")
    folders = site_folders(settings.state_folder)
    assert all(list(folder.glob("own-answers-*")) for folder in folders)
    run_job(settings, "erase")
    assert not any(list(folder.glob("own-answers-*")) for folder in folders)
