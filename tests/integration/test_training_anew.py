"""An erasure by training anew: exact, judged as ever, and cheap where most of the network is frozen."""

from __future__ import annotations

import io
import json
import re
import shutil
from contextlib import closing

import pytest
import torch
from PIL import Image, ImageOps
from rich.console import Console

from dlfd_fleet.audit import Outcome
from dlfd_fleet.data import synthesize
from dlfd_fleet.federation.protocol.messages import FitTask, UnlearnTask
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.models import MODEL_FILE
from dlfd_fleet.progress import ConsoleProgress
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    interrupted_before,
    run_job,
    small_settings,
)
from tests.integration.test_frozen_backbone import backbone_file, champion, travelled, with_model
from tests.small_networks import small_networks

EXACT = "The procedure is exact"


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


def dealt(folder, asked=(), **model):
    """A fleet of drawn faces; the images of some people are other ones."""
    silent = ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=14, images_per_person=3, image_size=32, classes=2, seed=0, progress=silent
    )
    settings = with_model(small_settings(folder / "state", manifest), **model)
    for person in asked:
        files = [file for file in (folder / "faces").rglob("*.png") if person in str(file.relative_to(folder))]
        assert files
        for file in files:
            with Image.open(file) as image:
                ImageOps.invert(image.convert("RGB")).save(file)
    deal_to_sites(settings, silent)
    return settings


def by(settings, way, **changes):
    erasure = settings.erasure.model_copy(update={"way": way, "relearning_rounds": 1, **changes})
    return settings.model_copy(update={"erasure": erasure})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A fleet with a frozen backbone that somebody else has trained, and a person at each site who asks."""
    folder = tmp_path_factory.mktemp("anew")
    file, kept = backbone_file(folder)
    settings = dealt(folder, weights=str(file), frozen=("backbone",))
    run_job(settings, "train")
    people = [request.identity for request in a_person_asks_at_each_site(settings)]
    return settings, kept, people


@pytest.fixture
def fleet(trained, tmp_path):
    settings = trained[0]
    shutil.copytree(settings.state_folder, tmp_path / "state")
    return settings.model_copy(update={"state_folder": tmp_path / "state"})


def files_of(settings, record):
    with closing(Store(settings.state_folder)) as store:
        return store.folders.of(record.job)


def states(settings):
    found = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            found += [request.state for request in site.ledger.requests()]
    return set(found)


def test_the_cheaper_way_is_said_and_taken_and_the_evidence_says_that_it_is_exact(fleet, trained):
    grid, out = InProcessGrid(fleet), io.StringIO()
    record = run_job(by(fleet, "cheapest"), "erase", grid, out)
    noted, said = record.proceedings, " ".join(out.getvalue().split())
    assert (noted.way, noted.retrained, noted.exact) == ("retrain", True, True)
    assert noted.way_chosen in said
    expected = re.search(r"training anew is expected to take ([\d.]+) MB and [\d.]+ s of the sites' work", said)
    assert expected is not None
    assert "and unlearning" in noted.way_chosen
    took = sum(noted.phases[name].sent_bytes for name in ("retrain", "audit-retrained"))
    assert float(expected[1]) == pytest.approx(took / 1e6, abs=0.05)
    assert list(record.models) == ["original", "retrained"]
    assert not any(message.metadata.message_type == UnlearnTask.TYPE for message in grid.seen)
    assert travelled(grid) == ({}, 0)
    card, arrays = champion(fleet)
    assert (card.kind, card.epoch, card.frozen) == ("retrained", 1, ("backbone",))
    assert all(torch.equal(arrays[name], array) for name, array in trained[1].items())
    # The verdict is what was measured, and says how the model was made.
    assert record.released
    assert record.verdict.exact
    assert EXACT in record.verdict.sentence()
    assert "AUC" in record.verdict.sentence()
    assert record.verdict.power == record.proceedings.files["fp32"].verdict.power
    page = (files_of(fleet, record) / "report.html").read_text(encoding="utf-8")
    assert noted.way_chosen.split(":")[0] in page
    assert "as its operator says" in page
    assert "ran DLFD" not in page
    report = json.loads((files_of(fleet, record) / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"]["exact"] is True
    assert states(fleet) == {RequestState.ROLLING_OUT} or states(fleet) == {RequestState.COMPLETE}


def test_nothing_of_the_people_who_asked_is_in_the_model_to_the_bit(fleet, trained, tmp_path):
    """Their images are other ones in a second fleet: its original is another model, and its retrained one the same."""
    before = champion(fleet)[1]
    model = {"weights": fleet.model.weights, "frozen": ("backbone",)}
    other = dealt(tmp_path / "other", asked=trained[2], **model)
    run_job(other, "train")
    assert any(not torch.equal(before[name], array) for name, array in champion(other)[1].items())
    assert [request.identity for request in a_person_asks_at_each_site(other)] == trained[2]
    for settings in (fleet, other):
        assert run_job(by(settings, "retrain"), "erase").released
    one, two = champion(fleet)[1], champion(other)[1]
    assert one.keys() == two.keys()
    assert all(torch.equal(array, two[name]) for name, array in one.items())


def test_a_frozen_part_that_the_fleet_has_trained_is_not_exact_and_says_so(fleet, tmp_path):
    anew = {"training": fleet.training.model_copy(update={"start": "fresh"})}
    unfrozen = with_model(fleet, weights=None, frozen=()).model_copy(update=anew)
    first = run_job(unfrozen, "train").job
    with closing(Store(fleet.state_folder)) as store:
        shutil.copy(store.folders.model(first) / MODEL_FILE, tmp_path / MODEL_FILE)
    settings = with_model(fleet, weights=str(tmp_path / MODEL_FILE), frozen=("backbone",)).model_copy(update=anew)
    run_job(settings, "train")
    out = io.StringIO()
    record = run_job(by(settings, "cheapest", rounds=1), "erase", out=out)
    assert record.proceedings.way == "unlearn"
    doubt = f"its frozen layers are those of {first}, which were trained on this fleet's people"
    assert f"training anew would not be exact: {doubt}" in record.proceedings.way_chosen
    assert not record.verdict.exact


def test_training_anew_from_what_the_fleet_has_trained_is_judged_and_never_called_exact(fleet, tmp_path):
    with closing(Store(fleet.state_folder)) as store:
        first = store.champions.current().job
        shutil.copy(store.folders.model(first) / MODEL_FILE, tmp_path / MODEL_FILE)
    settings = with_model(fleet, weights=str(tmp_path / MODEL_FILE))
    record = run_job(by(settings, "retrain"), "erase")
    assert (record.proceedings.retrained, record.proceedings.exact, record.verdict.exact) == (True, False, False)
    assert "Training anew is not exact: the starting weights (model.weights) are those of" in (
        record.proceedings.exactness
    )
    assert EXACT not in record.verdict.sentence()


@pytest.mark.parametrize(("policy", "released"), [("release", True), ("retrain", True), ("hold", False)])
def test_an_inconclusive_verdict_of_an_exact_model_is_released_unless_policy_holds_it(fleet, policy, released):
    settings = by(fleet, "retrain").model_copy(
        update={
            "release": fleet.release.model_copy(update={"on_inconclusive": policy}),
            "audit": fleet.audit.model_copy(update={"margin": 0.01}),
        }
    )
    record = run_job(settings, "erase")
    assert (record.verdict.outcome, record.verdict.exact) == (Outcome.INCONCLUSIVE, True)
    assert record.released is released
    assert list(record.models) == ["original", "retrained"]  # nothing is trained twice


def test_a_job_that_died_goes_on_the_way_that_it_had_taken(fleet):
    with interrupted_before("audit-retrained"):
        run_job(by(fleet, "cheapest"), "erase")
    grid = InProcessGrid(fleet)
    record = run_job(by(fleet, "unlearn"), "erase", grid)  # settings of now do not count
    assert (record.proceedings.way, record.released, record.verdict.exact) == ("retrain", True, True)
    assert not any(message.metadata.message_type in (FitTask.TYPE, UnlearnTask.TYPE) for message in grid.seen)


def test_a_model_that_fails_its_audit_is_not_released_though_it_is_exact(fleet):
    collapsed = fleet.audit.model_copy(update={"min_gain_over_majority": 0.51})
    record = run_job(by(fleet, "retrain").model_copy(update={"audit": collapsed}), "erase")
    assert (record.verdict.outcome, record.verdict.exact, record.released) == (Outcome.FAIL, True, False)
    assert states(fleet) == {RequestState.ACCEPTED}


def _failing(verdict, *_):
    return verdict.model_copy(update={"outcome": Outcome.FAIL, "reasons": ("without the people of one site",)})


def test_where_training_anew_fails_the_job_unlearns_and_it_is_not_tried_again_before_the_next_training(
    fleet, monkeypatch
):
    """Else each job would fail in the same way, and nobody who asks would be forgotten."""
    monkeypatch.setattr("dlfd_fleet.federation.jobs.erase.judge_without_each", _failing)
    settings, out = by(fleet, "cheapest", rounds=2, relearning_rounds=0, own_answers=False), io.StringIO()
    record = run_job(settings, "erase", out=out)
    noted = record.proceedings
    assert (noted.way, noted.retrained, noted.exact, record.released) == ("unlearn", False, False, True)
    assert set(record.models) == {"original", "retrained", "unlearned"}
    assert champion(fleet)[0].kind == "unlearned"
    for told in (noted.way_chosen, (files_of(fleet, record) / "report.html").read_text(encoding="utf-8")):
        assert "without the people of one site" in told
        assert "so the model is unlearned" in told
    a_person_asks_at_each_site(fleet)
    second = run_job(settings, "erase").proceedings
    assert (second.way, "retrain" in second.phases) == ("unlearn", False)
    assert f"Training it anew failed in {record.job}" in second.way_chosen
    run_job(settings, "train")
    monkeypatch.undo()
    a_person_asks_at_each_site(fleet)
    assert run_job(settings, "erase").proceedings.way == "retrain"


def test_a_model_is_trained_anew_for_as_many_rounds_as_are_in_the_one_that_it_replaces(fleet):
    run_job(fleet, "train")
    record = run_job(by(fleet, "retrain"), "erase")
    assert record.proceedings.phases["retrain"].steps == 2 * fleet.training.rounds


@pytest.mark.parametrize("way", ["unlearn", "retrain"])
def test_a_file_is_judged_without_each_site_too(fleet, monkeypatch, way):
    monkeypatch.setattr("dlfd_fleet.federation.jobs.releaser.judge_without_each", _failing)
    record = run_job(by(fleet, way, rounds=1, relearning_rounds=0), "erase")
    assert (record.released, record.verdict.outcome) == (False, Outcome.FAIL)
    assert record.proceedings.files["fp32"].verdict.reasons == ("without the people of one site",)
    assert states(fleet) == {RequestState.ACCEPTED}


def test_a_model_that_is_trained_anew_in_place_of_an_unlearned_one_is_judged_without_each_site_too(fleet, monkeypatch):
    """Pooled accuracy may hide what the model does to everybody but one site's people, however it was made."""
    monkeypatch.setattr("dlfd_fleet.federation.jobs.erase.judge_without_each", _failing)
    settings = by(fleet, "unlearn", rounds=1, relearning_rounds=0).model_copy(
        update={
            "release": fleet.release.model_copy(update={"on_inconclusive": "retrain"}),
            "audit": fleet.audit.model_copy(update={"margin": 0.01}),
        }
    )
    record = run_job(settings, "erase")
    assert (record.proceedings.way, record.proceedings.retrained) == ("unlearn", True)
    assert (record.verdict.outcome, record.released) == (Outcome.FAIL, False)
