"""What a site says of a model, or of faces of its own, that do not fit."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import torch
from typer.testing import CliRunner

from dlfd_fleet.audit import Role
from dlfd_fleet.cli import app
from dlfd_fleet.exceptions import DataError, JobError, MessageError
from dlfd_fleet.federation.messages import AuditTask, FileAuditTask, FitTask, PendingQuery
from dlfd_fleet.federation.site_tasks import answer_pending, run_audit, run_file_audit, run_fit
from dlfd_fleet.ledger import init_site, site_status
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.models import ModelCard, build, state_arrays
from dlfd_fleet.settings import AugmentationSettings, TrainingSettings


@pytest.fixture
def site(tmp_path, synthetic_faces):
    with init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces, image_size=32) as opened:
        yield opened


def test_a_model_whose_card_does_not_fit_its_arrays_is_refused_in_one_sentence(site):
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, image_size=32)
    arrays = state_arrays(build(card))
    arrays.pop(next(iter(arrays)))
    task = AuditTask(job="job-1", card=card, roles=("retain",))
    with pytest.raises(MessageError, match=r"^The coordinator sent arrays that are not those of a mobilenet_v3_small"):
        run_audit(site, task, arrays)


def test_a_model_from_before_a_release_is_not_audited(site):
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, image_size=32)
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
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, image_size=32)
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


def test_of_those_who_stay_a_gate_sees_some_and_the_same_at_each_look(site):
    card = ModelCard(architecture="mobilenet_v3_small", classes=site.card.classes, image_size=32)
    arrays = state_arrays(build(card))
    every = AuditTask(job="job-1", card=card, roles=("retain",))
    some = every.model_copy(update={"most_retain": 4})
    (_, all_of_them), (_, first), (_, again) = (run_audit(site, task, arrays) for task in (every, some, some))
    assert len(all_of_them) > len(first) == 4
    assert sorted(first.loss) == sorted(again.loss)
    assert first.loss.mean() == pytest.approx(all_of_them.loss.mean(), rel=0.1)  # each is a mean of three
    assert len(set(first.of(Role.RETAIN).label)) == len(set(all_of_them.label)) == 2
