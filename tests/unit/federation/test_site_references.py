"""A site's side of reference models: it trains on its half, keeps what they say, and purges that with the images."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dlfd_fleet.cli import app
from dlfd_fleet.components import Component
from dlfd_fleet.data import read_manifest, write_manifest
from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.protocol.messages import (
    FitTask,
    PendingQuery,
    Reference,
    ReferenceTask,
    UnseenTask,
)
from dlfd_fleet.federation.site.images import labelled, used_images
from dlfd_fleet.federation.site.references import (
    TooFewInHalfError,
    compare_on_unseen,
    reference_answers,
    run_reference,
)
from dlfd_fleet.federation.site.requests import answer_pending
from dlfd_fleet.federation.site.training import run_fit
from dlfd_fleet.ledger import RequestState, init_site, purge_request, refresh_rows, request_forgetting, withdraw
from dlfd_fleet.model_input import ModelInput, image_input
from dlfd_fleet.models import ModelCard, build, load_arrays, permit, state_arrays
from dlfd_fleet.settings import AugmentationSettings, TrainingSettings
from dlfd_fleet.unlearning.training import predict_logits
from tests.loaders import VALUES, write_database
from tests.small_networks import small_networks

JOB = "references-1"


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


@pytest.fixture
def site(tmp_path, synthetic_faces):
    with init_site(
        tmp_path / "clinic", name="clinic", manifest=synthetic_faces, model_input=image_input(32), test_people=2
    ) as opened:
        yield opened


def card_of(site):
    named = {"architecture": "mobilenet_v3_small"}
    for network in site.card.networks:
        named = {"architecture": permit(network.name), "arguments": network.arguments}
    return ModelCard(**named, classes=site.card.classes, input=site.card.input)


def arrays_of(site, seed):
    torch.manual_seed(seed)
    return state_arrays(build(card_of(site)))


def fit(site, number, models=2, job=JOB, own=None):
    task = FitTask(
        job=job,
        purpose="reference",
        reference=Reference(number=number, models=models),
        round=1,
        card=card_of(site),
        training=TrainingSettings(batch_size=8),
        augmentation=AugmentationSettings(),
        class_weights=(1.0, 1.0),
        epochs=1,
        learning_rate=0.01,
        precision="float32",
        seed=0,
    )
    return run_fit(site, task, arrays_of(site, number), own)[0]


def answer(site, number, models=2, job=JOB):
    reference = Reference(number=number, models=models)
    task = ReferenceTask(job=job, card=card_of(site), reference=reference)
    return run_reference(site, task, arrays_of(site, number))


def make(site, job=JOB):
    """Let a site train two models, and keep what they say."""
    for number in range(2):
        fit(site, number, job=job)
        result = answer(site, number, job=job)
    return result


def released(site, person):
    """A request of a person whom a released model has forgotten."""
    request = request_forgetting(site, person, deadline_days=30)
    for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED):
        site.ledger.move(request.id, state, "as a job does", job="job-1", epoch=1)
    return site.ledger.get(request.id)


def images_of(site):
    return used_images(site).images


def of_person(images, person):
    return torch.tensor([name == person for name in images.identities])


def a_person(site, number=0, split="train"):
    return sorted({row.identity for row in site.manifest().rows if row.split == split})[number]


def test_a_site_trains_each_of_a_pair_on_the_people_that_the_other_is_not_trained_on(site):
    first, second = (fit(site, number) for number in (0, 1))
    assert first.examples + second.examples == 40
    assert first.examples == second.examples
    assert reference_answers(site, images_of(site)) is None
    assert (answer(site, 0).missing, answer(site, 1).missing) == (1, 0)
    images = images_of(site)
    trained = reference_answers(site, images).trained
    train = torch.tensor([row.split == "train" for row in images.rows])
    assert (trained.sum(dim=0) == train).all()
    assert all(len(set(trained[0, of_person(images, person)].tolist())) == 1 for person in set(images.identities))


def test_answers_are_those_of_the_models_for_images_in_any_order(site):
    make(site)
    images = images_of(site)
    turned = images.select(list(reversed(range(0, len(images), 2))))
    answers = reference_answers(site, turned)
    assert answers.logits.shape == (2, len(turned), 2)
    for number in range(2):
        model = build(card_of(site))
        load_arrays(model, arrays_of(site, number))
        expected = torch.from_numpy(predict_logits(model, labelled(turned)))
        torch.testing.assert_close(answers.logits[number], expected, rtol=1e-4, atol=1e-5)
    assert CliRunner().invoke(app, ["site", "status", str(site.folder)]).output.count(f"2 of {JOB}") == 1


def test_who_has_asked_is_trained_on_by_none_and_a_withdrawn_request_changes_nothing(site):
    person = a_person(site)
    request = request_forgetting(site, person, deadline_days=30)
    make(site)
    images = images_of(site)
    asked = reference_answers(site, images)
    assert not asked.trained[:, of_person(images, person)].any()
    assert not asked.logits.isnan().any()
    withdraw(site, request.id)
    again = reference_answers(site, images)
    assert torch.equal(again.logits, asked.logits)
    assert torch.equal(again.trained, asked.trained)


def test_of_an_image_that_came_later_no_answer_is_known_and_its_person_was_trained_on_or_not(site):
    rows = site.manifest().rows
    person, newcomer = a_person(site), a_person(site, 1)
    later = {next(row for row in rows if row.identity == person), *(row for row in rows if row.identity == newcomer)}
    write_manifest([row for row in rows if row not in later], site.manifest_file)
    make(site)
    write_manifest(rows, site.manifest_file)
    images = images_of(site)
    answers = reference_answers(site, images)
    unknown = torch.tensor([row in later for row in images.rows])
    assert (answers.logits.isnan().all(dim=2) == unknown).all()
    assert not answers.trained[:, of_person(images, newcomer)].any()
    assert (answers.trained[:, of_person(images, person)].sum(dim=0) == 1).all()


def test_an_image_that_two_people_share_was_trained_on_with_either_of_them(site):
    first, second = (next(row for row in site.manifest().rows if row.identity == a_person(site, n)) for n in (0, 1))
    (site.image_root / second.image).write_bytes((site.image_root / first.image).read_bytes())
    make(site)
    images = images_of(site)
    rows = [row.image for row in images.rows]
    trained = reference_answers(site, images).trained
    people = [reference_answers(site, images.of_people([row.identity])).trained[:, -1] for row in (first, second)]
    expected = people[0] | people[1]
    assert all(torch.equal(trained[:, rows.index(row.image)], expected) for row in (first, second))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_purge_overwrites_what_is_said_of_the_person_and_nothing_else(site, split):
    make(site)
    person, images = a_person(site, split=split), images_of(site)
    answers, here = reference_answers(site, images), of_person(images, person)
    said = [row.numpy().tobytes() for row in answers.logits[:, here].flatten(0, 1)]
    said.append(bytes.fromhex(site.person_digest(person)))
    request = released(site, person)
    files = list(site.folder.glob("references-*.npy"))
    assert all(any(one in file.read_bytes() for file in files) for one in said if split == "train" or one != said[-1])
    purge_request(site, request)
    assert not any(one in file.read_bytes() for one in said for file in files)
    left = images_of(site)
    after = reference_answers(site, left)
    assert torch.equal(after.logits, answers.logits[:, ~here])
    assert torch.equal(after.trained, answers.trained[:, ~here])


def test_a_purge_between_a_prediction_and_its_file_leaves_nothing_of_the_person(site, monkeypatch):
    fit(site, 0)
    person, images = a_person(site), images_of(site)
    digests = [
        digest for row, digest in zip(images.rows, used_images(site).digests, strict=True) if row.identity == person
    ]
    request = released(site, person)
    keep = type(site.references).keep

    def purge_first(*arguments):
        purge_request(site, request)
        keep(*arguments)

    monkeypatch.setattr(type(site.references), "keep", purge_first)
    answer(site, 0)
    content = b"".join(file.read_bytes() for file in site.folder.glob("references-*.npy"))
    assert not any(bytes.fromhex(digest) in content for digest in digests)


def test_an_expired_set_goes_with_the_first_question_of_the_next_job(site):
    make(site)
    answer_pending(site, PendingQuery(job="erase-1", take=True))
    assert reference_answers(site, images_of(site)) is not None
    answer_pending(site, PendingQuery(job="erase-2", take=True, expired=(JOB,)))
    assert reference_answers(site, images_of(site)) is None
    assert not list(site.folder.glob("references-*"))


def test_a_newer_set_takes_the_place_of_the_one_before_as_a_whole(site):
    make(site)
    first = reference_answers(site, images_of(site))
    fit(site, 0, job="references-2")
    answer(site, 0, job="references-2")
    assert torch.equal(reference_answers(site, images_of(site)).trained, first.trained)
    assert make(site, job="references-2").missing == 0
    assert site.references.current().job == "references-2"


def test_a_site_that_was_away_for_one_model_has_none_and_says_so(site):
    fit(site, 1)
    assert answer(site, 1).missing == 1
    assert reference_answers(site, images_of(site)) is None


def test_answers_of_other_classes_are_none(site):
    make(site)
    site.card = site.card.model_copy(update={"classes": tuple(reversed(site.card.classes))})
    assert reference_answers(site, images_of(site)) is None


def test_a_damaged_file_is_none(site):
    make(site)
    next(site.folder.glob("references-*-00.npy")).write_bytes(b"\x93NUMPY")
    assert reference_answers(site, images_of(site)) is None


def test_an_only_person_is_trained_on_in_one_of_the_pair_and_the_site_takes_no_part_in_the_other(
    tmp_path, synthetic_faces
):
    rows = read_manifest(synthetic_faces).rows
    people = sorted({row.identity for row in rows})[:3]
    kept = [
        replace(row, split="train" if row.identity == people[0] else "test") for row in rows if row.identity in people
    ]
    write_manifest(kept, synthetic_faces)
    with init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces, model_input=image_input(32)) as site:
        taken = []
        for number in range(2):
            try:
                taken.append(fit(site, number).examples)
            except TooFewInHalfError:
                taken.append(0)
            answer(site, number)
        assert sorted(taken) == [0, 4]
        images = images_of(site)
        trained = reference_answers(site, images).trained
        assert trained.sum(dim=1).tolist() == taken
        assert not trained[:, ~of_person(images, people[0])].any()
        assert len(site.trained(people)) == 1


def test_rows_of_a_loader_keep_their_answers_when_they_are_read_again_and_lose_them_by_a_purge(tmp_path):
    write_database(tmp_path / "hospital.db")
    with init_site(
        tmp_path / "site",
        name="clinic",
        loader=Component(name="tests.loaders:database"),
        model_input=ModelInput(shape=(VALUES,), low=-4.0, high=4.0),
        networks=(Component(name="tests.loaders:VisitNet", arguments={"width": 16}),),
        test_people=2,
    ) as site:
        make(site)
        before = reference_answers(site, images_of(site))
        assert before.logits.isfinite().all()
        with sqlite3.connect(tmp_path / "hospital.db") as database:
            database.execute("insert into visit values ('p90', ?, 1)", (np.zeros(VALUES, np.float32).tobytes(),))
            database.execute("update visit set rowid = rowid + 1000 where person > 'p05'")
        database.close()
        assert refresh_rows(site) == (1, 0)
        images = images_of(site)
        after = reference_answers(site, images)
        came = of_person(images, "p90")
        assert after.logits[:, came].isnan().all()
        assert sorted(after.logits[:, ~came].flatten().tolist()) == sorted(before.logits.flatten().tolist())
        person = a_person(site)
        said = after.logits[0, of_person(images, person)]
        request = released(site, person)
        purge_request(site, request)
        content = b"".join(file.read_bytes() for file in site.folder.glob("references-*"))
        assert not any(row.numpy().tobytes() in content for row in said)
        left = images_of(site)
        assert reference_answers(site, left).logits[:, ~of_person(left, "p90")].isfinite().all()


def arrays_that_say(site, number):
    """A model that says the same class of every image."""
    arrays = arrays_of(site, 0)
    bias = [name for name in arrays if name.endswith("bias")][-1]
    arrays[bias] = torch.tensor([1e3 * (each == number) for each in range(2)])
    return arrays


def unseen_of_one_class(site, people):
    """Let so many people be validation people, with their images of the first class alone."""
    rows, first = site.manifest().rows, site.card.classes[0]
    chosen = sorted({row.identity for row in rows if row.split == "train" and row.label == first})[:people]
    theirs = [replace(row, split="validation") for row in rows if row.identity in chosen and row.label == first]
    write_manifest([*theirs, *(row for row in rows if row.identity not in chosen)], site.manifest_file)


def compare(site, says, max_drop=0.1):
    task = UnseenTask(job="erase-1", card=card_of(site), max_drop=max_drop)
    return compare_on_unseen(site, task, arrays_that_say(site, says)).unseen


def status_of(site):
    return " ".join(CliRunner().invoke(app, ["site", "status", str(site.folder)]).output.split())


def references_that_say(site, says):
    for number in range(2):
        fit(site, number)
        task = ReferenceTask(job=JOB, card=card_of(site), reference=Reference(number=number, models=2))
        run_reference(site, task, arrays_that_say(site, says))


def test_a_site_says_how_good_its_references_are_and_its_status_shows_it(site):
    unseen_of_one_class(site, 3)
    references_that_say(site, 1)
    assert "trained on" not in status_of(site)
    found = compare(site, 0)
    assert (found.people, found.model, found.references, found.too_poor) == (3, 1.0, 0.0, True)
    assert (
        "reference models are right about 0.0% of the images of 3 people never trained on, and the model about 100.0%"
        in status_of(site).replace("Reference models are", "reference models are")
    )
    assert "does not use the references" in status_of(site)
    assert not compare(site, 0, max_drop=1.0).too_poor
    assert "does not use the references" not in status_of(site)
    assert reference_answers(site, images_of(site)) is not None  # they stay: a later champion may be worse


def test_references_that_are_as_good_as_the_model_are_good_enough(site):
    unseen_of_one_class(site, 3)
    references_that_say(site, 0)
    found = compare(site, 0)
    assert (found.model, found.references, found.too_poor) == (1.0, 1.0, False)
    assert not compare(site, 1).too_poor  # nor are they where they are better


def test_one_person_does_not_decide(site):
    unseen_of_one_class(site, 1)
    references_that_say(site, 1)
    assert not compare(site, 0).too_poor


def test_without_validation_people_or_references_a_site_cannot_compare(site):
    make(site)
    assert compare(site, 0) is None
    unseen_of_one_class(site, 2)  # they came after the references, which were trained on them
    assert compare(site, 0) is None


def test_a_training_loop_of_ones_own_sees_the_half_alone(site):
    seen = []
    own = SimpleNamespace(network=None, train=lambda network, data, **_: seen.append(len(data)))
    assert [fit(site, number, own=own).examples for number in range(2)] == [20, 20]
    assert seen == [20, 20]


@pytest.mark.parametrize(("number", "models"), [(2, 2), (0, 3), (0, 0), (0, 66), (-1, 2)])
def test_a_reference_that_is_none_of_a_job_is_refused(site, number, models):
    task = ReferenceTask(job=JOB, card=card_of(site), reference=Reference(number=0, models=2))
    records = task.to_records()
    text = str(records["body"]["json"]).replace('"number":0,"models":2', f'"number":{number},"models":{models}')
    records["body"]["json"] = text
    with pytest.raises(MessageError, match="'reference"):
        ReferenceTask.from_records(records, "The coordinator")
