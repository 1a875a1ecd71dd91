"""Reference models of a fleet: trained on halves, asked once, and deleted everywhere, whatever ends the job."""

from __future__ import annotations

import io
import re
import shutil
from unittest import mock

import pytest
import torch
from flwr.app import Error, Message
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from dlfd_fleet.cli import app
from dlfd_fleet.data import write_manifest
from dlfd_fleet.exceptions import JobCancelledError, JobError
from dlfd_fleet.federation import FederatedUnlearning
from dlfd_fleet.federation.jobs import command
from dlfd_fleet.federation.protocol.held_names import DIFFERENCE, NOTHING_TO_TRAIN_ON
from dlfd_fleet.federation.protocol.messages import FitTask, PendingQuery, ReferenceResult, ReferenceTask
from dlfd_fleet.federation.protocol.packing import MODEL
from dlfd_fleet.federation.records.steps import Steps
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.site.held_model import held_name
from dlfd_fleet.federation.site.images import used_images
from dlfd_fleet.federation.site.references import reference_answers
from dlfd_fleet.ledger import Site, request_forgetting, site_folders
from dlfd_fleet.models import digest
from dlfd_fleet.settings import ReferenceSettings
from tests.integration.fleet_in_process import InProcessGrid, be_a_server, interrupted_before, run_job, trained_fleet
from tests.small_networks import small_networks

WEIGHTS = "backbone.features.3.weight"
ROUNDS = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A fleet of two sites with a champion; two reference models are wanted."""
    return trained_fleet(tmp_path_factory.mktemp("references"))


@pytest.fixture
def fleet(trained, tmp_path):
    shutil.copytree(trained.state_folder, tmp_path / "state")
    return wanting(trained.model_copy(update={"state_folder": tmp_path / "state"}))


def wanting(settings, **changes):
    """Want two reference models, whose bytes a test finds again: they travel whole."""
    wanted = {"models": 2, "update_precision": "float32"} | changes
    return settings.model_copy(update={"references": ReferenceSettings(**wanted)})


def answers(settings):
    """What each site has: its answers to all of its images, and the splits of these."""
    found = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            images = used_images(site).images
            found.append((reference_answers(site, images), [row.split for row in images.rows]))
    return found


def sent_weights(message):
    """What a message has of a reference model: the model, or its difference from the champion."""
    records = message.content.array_records
    return records[MODEL if MODEL in records else DIFFERENCE].to_torch_state_dict()[WEIGHTS]


def tasks_of(grid, kind=FitTask):
    """The tasks of reference models that the coordinator sent, and the weights in each."""
    for message in grid.seen:
        if message.metadata.message_type == kind.TYPE and not message.metadata.reply_to_message_id:
            task = kind.from_records(message.content, "test")
            if task.reference:
                yield task, sent_weights(message)


def weights_of(grid, number=None):
    """Bytes of reference models, as they were sent to sites and came back."""
    sent = {
        weights.numpy().tobytes()
        for kind in (FitTask, ReferenceTask)
        for task, weights in tasks_of(grid, kind)
        if number in (None, task.reference.number)
    }
    asked = {
        message.metadata.message_id
        for message in grid.seen
        if message.metadata.message_type == FitTask.TYPE
        and not message.metadata.reply_to_message_id
        and (reference := FitTask.from_records(message.content, "test").reference)
        and number in (None, reference.number)
    }
    back = {
        sent_weights(message).numpy().tobytes()
        for message in grid.seen
        if message.metadata.reply_to_message_id in asked and message.has_content()
    }
    return sent | back


def digest_of_champion(settings):
    store = Store(settings.state_folder)
    arrays = load_file(store.folders.model(store.champions.current().job) / "model.safetensors")
    store.close()
    return digest(arrays)


def is_on_disk(settings, contents):
    """Which of some bytes are in a file of the coordinator or of a site."""
    files = [file.read_bytes() for file in settings.state_folder.rglob("*") if file.is_file()]
    return {one for one in contents if any(one in content for content in files)}


def record_of(settings, kind="references"):
    store = Store(settings.state_folder)
    *_, record = (each for each in store.jobs() if each.kind == kind)
    names = store.steps.names(record.job)
    store.close()
    return record, names


class Failing(InProcessGrid):
    """A grid on which some sites fail at some tasks."""

    def __init__(self, settings, fails, code=0):
        super().__init__(settings)
        self.fails, self.code = fails, code

    def answer(self, message, context):
        if self.fails(message, context.node_id):
            return Message(Error(code=self.code, reason="out of memory"), reply_to=message)
        return super().answer(message, context)


def is_about(message, kind, number):
    return (
        message.metadata.message_type == kind.TYPE
        and (reference := kind.from_records(message.content, "test").reference) is not None
        and reference.number == number
    )


def interrupted(settings, step):
    """Run a references job in a process that is stopped just before it writes a step."""
    grid = InProcessGrid(settings)
    with interrupted_before(step):
        run_job(settings, "references", grid)
    return grid


def test_a_references_job_leaves_answers_at_each_site_and_its_models_nowhere(fleet):
    grid = InProcessGrid(fleet)
    record = run_job(fleet, "references", grid)
    assert (record.kind, record.step, record.released) == ("references", "settled", False)
    for said, splits in answers(fleet):
        assert said.logits.shape == (2, len(splits), 2)
        assert said.logits.isfinite().all()
        assert said.trained.sum(dim=0).tolist() == [int(split == "train") for split in splits]
        assert not torch.equal(said.logits[0], said.logits[1])
    heard = [m for m in grid.seen if m.metadata.reply_to_message_id]
    replies = [m.content for m in heard if m.metadata.message_type == ReferenceTask.TYPE]
    assert [ReferenceResult.from_records(reply, "test").missing for reply in replies] == [1, 1, 0, 0]
    assert all(list(reply) == ["body"] for reply in replies)  # counts, and no array
    models = weights_of(grid)
    assert len(models) == 2 * (1 + ROUNDS + 2 * ROUNDS)  # fresh and merged ones, and two sites' updates
    assert not is_on_disk(fleet, models)
    champion = Store(fleet.state_folder).champions.current()
    folder = fleet.state_folder / "coordinator" / "jobs" / champion.job
    assert any(file.suffix == ".safetensors" for file in folder.rglob("*"))
    # The search would find them: the champion's weights are at the coordinator.
    own = Store(fleet.state_folder).folders.model(champion.job) / "model.safetensors"
    assert is_on_disk(fleet, {own.read_bytes()[-64:]})


def test_its_record_and_status_say_what_it_took(fleet):
    grid = InProcessGrid(fleet)
    record = run_job(fleet, "references", grid)
    made = record.references
    assert (made.models, made.made, made.rounds, made.sites, made.of_sites) == (2, 2, 2 * ROUNDS, 2, 2)
    assert 0 < made.seconds <= record.seconds
    size = sum(array.count_bytes() for m in grid.seen if m.has_content() for array in m.content.array_records.values())
    assert made.bytes_sent == size
    assert record.note == made.sentence()
    assert record.note.startswith("2 reference models made and deleted (4 rounds, ")
    assert record.note.endswith(" MB); 2 of 2 sites keep their answers, and 2 can aim at them")
    console = Console(record=True, width=200)
    console.print(command.job_status(Store(fleet.state_folder), record.job))
    assert record.note in console.export_text()


def test_no_two_models_and_not_the_champion_have_a_seed_in_common(fleet):
    grid = InProcessGrid(fleet)
    run_job(fleet, "references", grid)
    seeds = {(task.reference.number, task.round): task.seed for task, _ in tasks_of(grid)}
    assert len(set(seeds.values())) == 2 * ROUNDS
    assert not set(seeds.values()) & {fleet.seed * 1000 + number for number in range(10)}
    first = {task.reference.number: weights for task, weights in reversed(list(tasks_of(grid)))}
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(("precision", "share"), [("float16", 0.55), ("int8", 0.45)])
def test_rounded_models_travel_as_differences_and_are_nowhere_either(fleet, precision, share):
    exact = run_job(fleet, "references", InProcessGrid(fleet)).references
    settings, grid = (
        wanting(fleet, update_precision=precision),
        InProcessGrid(wanting(fleet, update_precision=precision)),
    )
    rounded = run_job(settings, "references", grid).references
    assert (rounded.sites, rounded.made) == (2, 2)
    assert rounded.bytes_sent < share * exact.bytes_sent
    kinds = {str(weights.dtype) for _, weights in tasks_of(grid)}
    assert kinds == {"torch.float16"}, "sites hold the champion, so no model goes out whole"
    assert weights_of(grid)
    assert not is_on_disk(settings, weights_of(grid))
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            assert held_name(site.folder) == digest_of_champion(settings), "the champion is what sites hold, as before"


def test_an_interrupted_job_goes_on_with_the_next_model(fleet):
    first = interrupted(fleet, f"reference-{ROUNDS + 2}")
    # What the first model said is kept, so it is gone; the second one is where it was.
    assert not is_on_disk(fleet, weights_of(first, 0))
    assert is_on_disk(fleet, weights_of(first, 1))
    again = InProcessGrid(fleet, first_node=7)
    record = run_job(fleet, "references", again)
    assert (record.step, record.references.made, record.references.sites) == ("settled", 2, 2)
    assert [(task.reference.number, task.round) for task, _ in tasks_of(again)] == [(1, 2 * ROUNDS)] * 2
    assert not is_on_disk(fleet, weights_of(first) | weights_of(again))
    assert all(said is not None for said, _ in answers(fleet))
    whole = run_job(fleet, "references")
    assert (whole.references.rounds, record.references.rounds) == (2 * ROUNDS, 2 * ROUNDS)
    assert record.references.bytes_sent == whole.references.bytes_sent


def test_a_job_that_is_stopped_before_it_notes_the_answers_asks_for_them_again(fleet):
    interrupted(fleet, "answers-1")
    again = InProcessGrid(fleet)
    assert run_job(fleet, "references", again).references.sites == 2
    assert not list(tasks_of(again))
    assert len(list(tasks_of(again, ReferenceTask))) == 2


def test_a_cancelled_job_keeps_no_model(fleet):
    first = interrupted(fleet, f"reference-{ROUNDS + 2}")
    store = Store(fleet.state_folder)
    record, _ = record_of(fleet)
    assert "is not running" in command.cancel(store, record.job)
    assert not is_on_disk(fleet, weights_of(first))
    assert run_job(fleet, "erase").note == "nobody asks to be forgotten"
    assert store.load(record.job).step == "cancelled"
    assert all(said is None for said, _ in answers(fleet))
    # It is over: the next one makes all models anew.
    with pytest.raises(JobError, match=f"{record.job} was cancelled"):
        command.reopen(store, record.job)
    again = InProcessGrid(fleet)
    assert run_job(fleet, "references", again).job != record.job
    assert {task.reference.number for task, _ in tasks_of(again)} == {0, 1}
    assert all(said is not None for said, _ in answers(fleet))


def test_a_failed_job_keeps_no_model(fleet):
    grid = Failing(fleet, lambda message, _: is_about(message, ReferenceTask, 1))
    with pytest.raises(JobError, match=r"Only 0 of 2 sites answered evaluate.reference"):
        run_job(fleet, "references", grid)
    record, steps = record_of(fleet)
    assert (record.step, record.references.made) == ("failed", 1)
    assert not is_on_disk(fleet, weights_of(grid))
    assert [name for name in steps if name.startswith("reference-")] == ["reference-1", "reference-2"]


def test_a_site_that_was_away_for_one_model_has_none_and_the_job_says_so(fleet):
    grid = Failing(fleet, lambda message, node: node == 2 and is_about(message, ReferenceTask, 0))
    record = run_job(fleet, "references", grid)
    assert record.note.endswith("1 of 2 sites keep their answers, and 1 can aim at them")
    ((_, reason),) = record.absent.items()
    assert reason.startswith("failed at evaluate.reference")
    assert [said is None for said, _ in answers(fleet)] == [False, True]
    assert not is_on_disk(fleet, weights_of(grid))


def test_a_site_with_an_only_person_sits_out_half_of_the_models_and_is_not_absent(fleet):
    with Site(site_folders(fleet.state_folder)[1]) as site:
        rows = site.manifest().rows
        person = next(row.identity for row in rows if row.split == "train")
        write_manifest([row for row in rows if row.split != "train" or row.identity == person], site.manifest_file)
    grid = InProcessGrid(fleet)
    record = run_job(fleet, "references", grid)
    assert (record.absent, record.references.sites) == ({}, 2)
    sat_out = [m for m in grid.seen if m.has_error()]
    assert [m.error.code for m in sat_out] == [NOTHING_TO_TRAIN_ON] * ROUNDS
    said, splits = answers(fleet)[1]
    assert said.trained.sum(dim=0).tolist() == [int(split == "train") for split in splits]
    assert sorted(said.trained.any(dim=1).tolist()) == [False, True]


def test_a_job_says_at_its_end_where_its_models_are_too_poor_to_aim_at(fleet, monkeypatch):
    beyond_chance = iter([1.0, 0.0])  # one site's models are right by so much less often than the champion
    monkeypatch.setattr("dlfd_fleet.federation.site.references.least_drop", lambda *_: next(beyond_chance))
    grid, out = InProcessGrid(fleet), io.StringIO()
    record = run_job(fleet, "references", grid, out)
    assert record.note.endswith("and 1 can aim at them; at 1 they are too poor to aim at")
    assert (record.references.aiming, record.references.too_poor) == (1, 1)
    said = " ".join(out.getvalue().split())
    assert re.search(r"At site-\w+ reference models are right about [\d.]+% of the images of 2 people", said)
    # Sites hold the champion, which they were sent to train on and to audit.
    compared = [m for m in grid.seen if m.metadata.message_type == "evaluate.unseen" and m.has_content()]
    assert not any(MODEL in message.content for message in compared)
    poor = [folder for folder in site_folders(fleet.state_folder) if "does not use the references" in status_of(folder)]
    assert len(poor) == 1


def status_of(folder):
    return CliRunner().invoke(app, ["site", "status", str(folder)]).output


def test_halves_without_people_at_any_site_are_one_sentence(fleet):
    grid = Failing(fleet, lambda message, _: is_about(message, FitTask, 1), NOTHING_TO_TRAIN_ON)
    with pytest.raises(
        JobError, match=r"^No site has two images or more in its half for reference model 2: add people"
    ):
        run_job(fleet, "references", grid)
    assert not is_on_disk(fleet, weights_of(grid))


def test_an_own_server_app_makes_them_by_one_call(fleet, silent):
    be_a_server()
    unlearning = FederatedUnlearning(settings=fleet, progress=silent)
    with small_networks():
        result = unlearning.make_references(InProcessGrid(fleet))
        assert torch.equal(
            result.arrays.to_torch_state_dict()[WEIGHTS], unlearning.arrays().to_torch_state_dict()[WEIGHTS]
        )
    assert result.sentence().startswith("2 reference models made and deleted")


def test_where_no_site_has_all_answers_the_job_fails(fleet):
    grid = Failing(fleet, lambda message, node: is_about(message, ReferenceTask, node - 1))
    with pytest.raises(JobError, match=r"^No site has the answers of all 2 reference models: site-.* failed at"):
        run_job(fleet, "references", grid)


@pytest.mark.parametrize("kind", ["none wanted", "no champion"])
def test_what_cannot_be_made_is_one_sentence(fleet, kind):
    if kind == "none wanted":
        with pytest.raises(JobError, match=r"^references\.models is 0; set how many"):
            run_job(wanting(fleet, models=0), "references")
        assert all(record.kind != "references" for record in Store(fleet.state_folder).jobs())
    else:
        shutil.rmtree(fleet.state_folder / "coordinator")
        with pytest.raises(JobError, match="There is no champion model to make reference models of"):
            run_job(fleet, "references")


def test_without_reference_models_everything_is_as_ever(fleet):
    grid = InProcessGrid(fleet)
    record = run_job(wanting(fleet, models=0, with_training=True), "train", grid)
    assert (record.step, record.references) == ("settled", None)
    assert not list(tasks_of(grid))


def test_answers_stay_through_an_erasure_but_for_who_is_forgotten(fleet):
    run_job(fleet, "references")
    before = answers(fleet)
    with Site(site_folders(fleet.state_folder)[0]) as site:
        images = used_images(site).images
        person = next(row.identity for row in images.rows if row.split == "train")
        request_forgetting(site, person, deadline_days=30)
        asked = torch.tensor([name == person for name in images.identities])
    assert run_job(fleet, "erase").released
    after = answers(fleet)
    assert torch.equal(after[1][0].logits, before[1][0].logits)
    assert torch.equal(after[0][0].logits, before[0][0].logits[:, ~asked])
    assert torch.equal(after[0][0].trained, before[0][0].trained[:, ~asked])
    gone = {row.numpy().tobytes() for row in before[0][0].logits[:, asked].flatten(0, 1)}
    assert not is_on_disk(fleet, gone)


def test_with_training_the_models_are_made_once_the_new_one_is_released(fleet):
    grid = InProcessGrid(fleet)
    settings = wanting(fleet, with_training=True)
    record = run_job(settings, "train", grid)
    assert record.released
    assert record.note.startswith("trained; test accuracy is ")
    assert record.note.endswith("2 of 2 sites keep their answers, and 2 can aim at them")
    # Each of the two is trained as long as the champion, which went on from an earlier training.
    assert record.references.rounds == 2 * 2 * ROUNDS
    assert not is_on_disk(fleet, weights_of(grid))
    # The next training makes others; answers of the ones before are dropped with the next question.
    first = [said.logits for said, _ in answers(fleet)]
    run_job(fleet, "train")
    kept = [said.logits for said, _ in answers(fleet)]
    assert all(map(torch.equal, kept, first))
    run_job(wanting(fleet, expire="never"), "erase")
    assert all(said is not None for said, _ in answers(fleet))
    asking = InProcessGrid(fleet)
    run_job(fleet, "erase", asking)
    assert all(said is None for said, _ in answers(fleet))
    queries = [m for m in asking.seen if m.metadata.message_type == PendingQuery.TYPE]
    assert PendingQuery.from_records(queries[0].content, "test").expired == (record.job,)


def test_a_training_whose_references_fail_is_a_training_all_the_same(fleet):
    grid = Failing(fleet, lambda message, _: is_about(message, FitTask, 1))
    record = run_job(wanting(fleet, with_training=True), "train", grid)
    assert (record.step, record.released) == ("settled", True)
    assert "; there are no reference models: Only 0 of 2 sites trained in round " in record.note
    assert not is_on_disk(fleet, weights_of(grid))


def test_a_cancelled_training_that_had_released_its_model_keeps_no_reference_model(fleet):
    settings = wanting(fleet, with_training=True)
    finish, grid = Steps.finish, InProcessGrid(settings)

    def cancelling(self, job, finished):
        finish(self, job, finished)
        if finished.name == f"reference-{ROUNDS + 1}":
            Store(settings.state_folder).ask_to_cancel(job)

    with (
        mock.patch.object(Steps, "finish", cancelling),
        pytest.raises(JobCancelledError, match=r"train-\S+ was cancelled after the release"),
    ):
        run_job(settings, "train", grid)
    record = Store(settings.state_folder).jobs()[-1]
    assert (record.step, record.released) == ("cancelled", True)
    assert not is_on_disk(fleet, weights_of(grid))


def test_frozen_layers_are_not_sent_with_reference_models_and_updates_are_rounded_as_ever(fleet):
    settings = fleet.model_copy(
        update={
            "model": fleet.model.model_copy(update={"frozen": ("backbone",)}),
            "training": fleet.training.model_copy(update={"start": "fresh"}),
            "fleet": fleet.fleet.model_copy(update={"update_precision": "int8"}),
        }
    )
    run_job(settings, "train")
    for folder in site_folders(fleet.state_folder):
        with Site(folder) as site:
            site.drop_held_model()
    grid = InProcessGrid(settings)
    assert run_job(settings, "references", grid).references.sites == 2
    sent = [
        name
        for message in grid.seen
        if message.metadata.message_type in (FitTask.TYPE, ReferenceTask.TYPE) and message.has_content()
        for record in message.content.array_records.values()
        for name in record
    ]
    assert sent
    assert not [name for name in sent if name.startswith("backbone.")]
