"""What a site says of a model, or of faces of its own, that do not fit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch
from typer.testing import CliRunner

from dlfd_fleet.audit import Role
from dlfd_fleet.cli import app
from dlfd_fleet.data import read_manifest, write_manifest
from dlfd_fleet.exceptions import DataError, JobError, MessageError
from dlfd_fleet.federation.protocol.messages import (
    AuditTask,
    CalibrateTask,
    FileAuditTask,
    FitTask,
    PendingQuery,
    SettleTask,
)
from dlfd_fleet.federation.site.audits import run_audit, run_calibration, run_file_audit
from dlfd_fleet.federation.site.requests import answer_pending, settle
from dlfd_fleet.federation.site.training import run_fit
from dlfd_fleet.ledger import init_site, request_forgetting, site_status, withdraw
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, build, state_arrays
from dlfd_fleet.settings import AugmentationSettings, TrainingSettings


@pytest.fixture
def site(tmp_path, synthetic_faces):
    with init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces, model_input=image_input(32)) as opened:
        yield opened


def test_a_model_whose_card_does_not_fit_its_arrays_is_refused_in_one_sentence(site):
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, input=image_input(32))
    arrays = state_arrays(build(card))
    arrays.pop(next(iter(arrays)))
    task = AuditTask(job="job-1", card=card, roles=("retain",))
    with pytest.raises(MessageError, match=r"^The coordinator sent arrays that are not those of a mobilenet_v3_small"):
        run_audit(site, task, arrays)


def test_a_model_from_before_a_release_is_not_audited(site):
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, input=image_input(32))
    arrays = state_arrays(build(card))
    site.raise_epoch(1)
    with pytest.raises(JobError, match="has the epoch 0, under the fleet's 1"):
        run_audit(site, AuditTask(job="job-1", card=card, roles=("retain",)), arrays)
    with pytest.raises(JobError, match="has the epoch 0, under the fleet's 1"):
        run_file_audit(site, FileAuditTask(job="job-1", card=card, roles=("retain",)), arrays, b"")


def test_a_manifest_with_another_class_is_told_to_whoever_runs_the_site_and_its_requests_go_on(site):
    person = site.manifest().identities[0]
    file = site.manifest_file
    file.write_text(file.read_text().replace("class-1", "sunglasses"))
    with pytest.raises(DataError, match="has the label 'sunglasses'; the classes are class-0, class-1"):
        answer_pending(site, PendingQuery(job="job-1"))
    wrong = site_status(site, datetime.now(UTC)).unknown_labels
    assert wrong.keys() == {"sunglasses"}
    runner = CliRunner()
    assert runner.invoke(app, ["forget", "request", person, "--site", str(site.folder)]).exit_code == 0
    shown = runner.invoke(app, ["site", "status", str(site.folder)])
    assert shown.exit_code == 0, shown.output
    assert f"{wrong['sunglasses']} images have the label 'sunglasses'" in shown.output


def test_what_a_killed_process_was_writing_of_a_model_goes_with_the_model(site):
    for name in (HELD_MODEL_FILE, f"{HELD_MODEL_FILE}.0a1b2c3d"):
        (site.folder / name).write_bytes(b"weights")
    site.drop_held_model()
    assert not list(site.folder.glob(f"{HELD_MODEL_FILE}*"))


def test_batch_norm_statistics_are_taken_anew_only_where_somebody_looks_at_the_model(site):
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, input=image_input(32))
    arrays = state_arrays(build(card))
    final = FitTask(
        job="job-1",
        purpose="repair",
        round=1,
        card=card,
        training=TrainingSettings(batch_size=8),
        augmentation=AugmentationSettings(),
        class_weights=(1.0, 1.0),
        epochs=1,
        learning_rate=0.01,
        precision="float32",
        seed=0,
    )
    turned = dict(reversed(arrays.items()))  # as a journal may give it back
    (_, seen), (_, unseen) = (run_fit(site, final.model_copy(update={"final": each}), arrays) for each in (True, False))
    assert list(run_fit(site, final, turned)[1]) == list(turned)  # mods compare the order of names
    differing = {name for name, array in seen.items() if not torch.equal(array, unseen[name])}
    assert differing == {name for name in seen if "running_" in name or "num_batches" in name}


def test_whom_an_audit_takes_for_a_member_was_trained_on_for_the_site_notes_it(site):
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, input=image_input(32))
    arrays, everybody = state_arrays(build(card)), site.manifest().identities
    request_forgetting(site, everybody[0], deadline_days=30)
    for roles, noted in ((("validation", "test"), 0), (("retain",), len(everybody))):  # as of a model from elsewhere
        run_audit(site, AuditTask(job="job-1", card=card, roles=roles), arrays)
        assert len(site.trained(everybody)) == noted
    write_manifest([replace(row, split="test") for row in site.manifest().rows], site.manifest_file)
    task = AuditTask(job="job-1", card=card, roles=("retain", "validation", "test"))
    assert len(run_audit(site, task, arrays)[1]) == 0


@pytest.fixture
def dealt(tmp_path, synthetic_faces):
    """A site with test people of its own, and with some whom every site holds."""
    manifest = read_manifest(synthetic_faces)
    parts = {"person-00000": ("test", ""), "person-00001": ("test", "clinic"), "person-00002": ("validation", "")}
    rows = [
        replace(row, split=split, site=site)
        for row in manifest.rows
        for split, site in [parts.get(row.identity, ("train", "clinic"))]
    ]
    write_manifest(rows, synthetic_faces)
    with init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces, model_input=image_input(32)) as opened:
        yield opened


def audited(site, job="job-1"):
    """How many images of each role a site audits, and how many of those whom every site holds it leaves out."""
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, input=image_input(32))
    roles = ("retain", "forget", "validation", "test")
    result, samples = run_audit(site, AuditTask(job=job, card=card, roles=roles), state_arrays(build(card)))
    return {role.value: len(samples.of(role)) for role in Role}, result.shared, result.withheld


def test_who_has_asked_counts_as_unseen_no_more_whatever_became_of_the_job(dealt):
    before = {"retain": 36, "forget": 0, "validation": 4, "test": 8}
    assert audited(dealt) == (before, 8, 0)
    request_forgetting(dealt, "Person-00000", deadline_days=30)
    request = request_forgetting(dealt, "person-00001", deadline_days=30)
    assert audited(dealt) == (before | {"test": 0}, 4, 4)
    reply = answer_pending(dealt, PendingQuery(job="job-1", take=True))
    assert (len(reply.requests), reply.forget_images, reply.retain_images) == (2, 0, 36)
    assert audited(dealt) == (before | {"test": 0}, 4, 4)
    settle(dealt, SettleTask(job="job-1", outcome="returned", reason="FAIL", epoch=0, purge=False))
    assert audited(dealt, "job-2") == (before | {"test": 0}, 4, 4)
    withdraw(dealt, request.id)
    assert audited(dealt, "job-2") == (before | {"test": 4}, 4, 4)


def test_a_row_without_a_split_is_trained_on_and_forgotten_with_its_person(dealt):
    rows = [replace(row, split="") if row.image.endswith("000.png") else row for row in dealt.manifest().rows]
    write_manifest(rows, dealt.manifest_file)
    before = {"retain": 36, "forget": 0, "validation": 4, "test": 8}
    assert audited(dealt) == (before, 8, 0)
    request_forgetting(dealt, "person-00005", deadline_days=30)
    reply = answer_pending(dealt, PendingQuery(job="job-1", take=True))
    assert (reply.forget_images, reply.retain_images) == (4, 32)
    assert audited(dealt) == (before | {"retain": 32, "forget": 4}, 8, 0)


def test_copies_of_who_asks_are_neither_trained_on_nor_unseen_from_the_request_on(dealt):
    files = {row.identity: dealt.image_root / row.image for row in dealt.manifest().rows}
    for copied in ("person-00000", "person-00001", "person-00006"):
        files[copied].write_bytes(files["person-00005"].read_bytes())
    leaky = {"retain": 36, "forget": 0, "validation": 4, "test": 6}  # who is trained on is not unseen in any case
    assert audited(dealt) == (leaky, 7, 1)
    request_forgetting(dealt, "person-00005", deadline_days=30)
    assert audited(dealt)[0] == leaky | {"retain": 31}
    reply = answer_pending(dealt, PendingQuery(job="job-1", take=True))
    assert (reply.forget_images, reply.retain_images) == (4, 31)
    assert audited(dealt)[0] == leaky | {"retain": 31, "forget": 4}


def test_an_image_that_was_trained_on_under_another_name_is_unlearned_with_who_asks(dealt):
    files = {row.identity: dealt.image_root / row.image for row in dealt.manifest().rows}
    files["person-00006"].write_bytes(files["person-00001"].read_bytes())
    request_forgetting(dealt, "person-00001", deadline_days=30)
    reply = answer_pending(dealt, PendingQuery(job="job-1", take=True))
    assert (reply.forget_images, reply.retain_images) == (1, 35)
    assert audited(dealt)[0] == {"retain": 35, "forget": 1, "validation": 4, "test": 4}


def test_a_site_that_nobody_is_left_at_says_so_and_still_answers_audits_and_calibrations(dealt):
    for person in {row.identity for row in dealt.manifest().rows if row.split == "train"}:
        request_forgetting(dealt, person, deadline_days=30)
    reply = answer_pending(dealt, PendingQuery(job="job-1", take=True))
    assert (reply.can_train, reply.forget_images) == (False, 36)
    assert audited(dealt)[0] == {"retain": 0, "forget": 36, "validation": 4, "test": 8}
    card = ModelCard(architecture="mobilenet_v3_small", classes=dealt.card.classes, input=image_input(32))
    result = run_calibration(dealt, CalibrateTask(job="job-1", card=card, images=8, seed=0), b"")
    assert (result.ranges, result.images) == ({}, 0)


def test_a_site_that_is_left_without_an_image_answers_with_none(tmp_path, synthetic_faces):
    write_manifest(
        [row for row in read_manifest(synthetic_faces).rows if row.identity < "person-00002"], synthetic_faces
    )
    with init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces, model_input=image_input(32)) as site:
        for person in site.manifest().identities:
            request_forgetting(site, person, deadline_days=30)
        done = answer_pending(site, PendingQuery(job="job-1", take=True)).requests
        settle(site, SettleTask(job="job-1", outcome="released", requests=done, reason="PASS", epoch=1, purge=True))
        assert site.manifest().rows == ()
        reply = answer_pending(site, PendingQuery(job="job-2", take=True, epoch=1))
        assert (reply.class_images, reply.forget_images, reply.can_train) == ((0, 0), 0, False)
        card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, input=image_input(32), epoch=1)
        result, samples = run_audit(
            site, AuditTask(job="job-2", card=card, roles=("retain", "test")), state_arrays(build(card))
        )
        assert (result.shared, len(samples)) == (0, 0)
        assert site_status(site, datetime.now(UTC)).remarks[0].startswith("0 images are left to train on")


def test_of_those_who_stay_a_gate_sees_some_and_the_same_at_each_look(site):
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, input=image_input(32))
    arrays = state_arrays(build(card))
    every = AuditTask(job="job-1", card=card, roles=("retain",))
    some = every.model_copy(update={"most_retain": 4})
    (_, all_of_them), (_, first), (_, again) = (run_audit(site, task, arrays) for task in (every, some, some))
    assert len(all_of_them) > len(first) == 4
    assert sorted(first.loss) == sorted(again.loss)
    assert first.loss.mean() == pytest.approx(all_of_them.loss.mean(), rel=0.1)  # each is a mean of three
    assert len(set(first.of(Role.RETAIN).label)) == len(set(all_of_them.label)) == 2
