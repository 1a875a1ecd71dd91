"""A fleet whose people were all trained on: it works, and calls nobody unseen; nor one that moves people by hand."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import closing
from dataclasses import replace

import pytest

from dlfd_fleet.audit import Outcome
from dlfd_fleet.data import write_manifest
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import Site, request_forgetting, site_folders
from tests.integration.fleet_in_process import a_person_asks_at_each_site, run_job, trained_fleet

NOTHING_SAYS = "no unseen people were audited, nor a retrained model, so nothing says whether the forgotten people are"


def copy_of(fleet, tmp_path):
    settings = fleet.model_copy(update={"state_folder": tmp_path / "state"})
    shutil.copytree(fleet.state_folder, settings.state_folder)
    return settings


def quick(settings, **erasure):
    changes = {"rounds": 1, "relearning_rounds": 0, **erasure}
    return settings.model_copy(update={"erasure": settings.erasure.model_copy(update=changes)})


@pytest.fixture(scope="module")
def everybody_trained_on(tmp_path_factory):
    return trained_fleet(tmp_path_factory.mktemp("everybody"), unseen=False)


def test_an_erasure_goes_its_way_and_says_that_nothing_measured_whether_it_worked(everybody_trained_on, tmp_path):
    settings, out = quick(copy_of(everybody_trained_on, tmp_path), relearning_rounds=1), io.StringIO()
    a_person_asks_at_each_site(settings)
    record = run_job(settings, "erase", out=out)
    assert record.verdict.outcome is Outcome.INCONCLUSIVE
    assert NOTHING_SAYS in record.verdict.sentence()
    assert record.released  # the default policy for an INCONCLUSIVE verdict
    assert "the gate reads accuracy on retained people only" in " ".join(out.getvalue().split())
    scores = record.models["unlearned"].scores
    assert (scores.unseen_images, scores.forget_images) == (0, 6)
    assert (scores.mia_auc, scores.test_accuracy) == (None, None)
    assert scores.retain_balanced_accuracy is not None
    assert {(one.utility, one.attack_auc) for one in record.proceedings.readings} == {(None, None)}
    with closing(Store(settings.state_folder)) as store:
        made = store.folders.made(record.job)
    assert "None: no people never trained on were audited" in (made / "report.html").read_text(encoding="utf-8")
    assert json.loads((made / "certificate.json").read_text(encoding="utf-8"))
    assert (made / "people.png").exists()


def test_a_model_that_was_retrained_without_them_is_the_reference(everybody_trained_on, tmp_path):
    settings = quick(copy_of(everybody_trained_on, tmp_path), compare_retrain=True, relearning_rounds=1)
    a_person_asks_at_each_site(settings)
    record = run_job(settings, "erase")
    assert NOTHING_SAYS not in record.verdict.sentence()
    assert "no unseen people were audited" in record.verdict.sentence()
    assert "retrained model" in record.verdict.sentence()
    assert all(model.scores.retain_auc for model in record.models.values())
    if record.released:
        assert NOTHING_SAYS not in record.proceedings.files["fp32"].verdict.sentence()


def test_a_training_job_goes_on_from_the_champion_without_unseen_people(everybody_trained_on, tmp_path):
    settings = copy_of(everybody_trained_on, tmp_path)
    assert run_job(settings, "train").note.startswith("trained; accuracy on the people whom it was trained on is")


def test_who_is_moved_from_training_to_test_by_hand_is_not_unseen_and_is_forgotten_when_they_ask(tmp_path):
    settings = quick(trained_fleet(tmp_path))
    first = site_folders(settings.state_folder)[0]
    with Site(first) as site:
        rows = site.manifest().rows
        moved, stays = sorted({row.identity for row in rows if row.split == "train"})[:2]
        write_manifest(
            [replace(row, split="test") if row.identity == moved else row for row in rows], site.manifest_file
        )
        request_forgetting(site, stays, deadline_days=30)
    record = run_job(settings, "erase")
    scores = record.models["original"].scores
    assert (scores.forget_images, scores.unseen_images) == (3, 6)  # of the two test people whom both sites hold
    with Site(first) as site:
        request_forgetting(site, moved, deadline_days=30)
    waiting = 0 if record.released else 3
    assert run_job(settings, "erase").models["original"].scores.forget_images == 3 + waiting
