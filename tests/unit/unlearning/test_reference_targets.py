"""What reference models say, and unlearning that aims at it."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dlfd_fleet.models import WrappedClassifier
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning import METHODS, LabelledImages, UnlearningProblem, dlfd, predict_probabilities
from dlfd_fleet.unlearning.monitor import read_shift
from dlfd_fleet.unlearning.references import (
    ReferenceAnswers,
    References,
    target_loss,
    temperature_between,
    tempered,
    unlearning_targets,
)

SETTINGS = UnlearningSettings(
    batch_size=8, learning_rate=0.05, repair_learning_rate=0.05, epochs=20, repair_epochs=30, max_utility_drop=1.0
)


def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def labelled(count, seed, labels=None):
    truth = torch.arange(count) % 2 if labels is None else torch.randint(0, 2, (count, labels))
    return LabelledImages(images(count, seed), truth)


def classifier(classes=2):
    torch.manual_seed(0)
    return WrappedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, classes)), "2")


def answers(said, models=4, *, multi_label=False, trained=None):
    """Reference models that all say the same of ``(N, C)`` logits; none was trained on anybody, unless it is said."""
    flags = torch.zeros(models, len(said), dtype=torch.bool) if trained is None else trained
    return ReferenceAnswers(said.expand(models, *said.shape), flags, multi_label)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(2, 4), st.integers(0, 1000))
def test_the_mean_is_of_the_models_that_were_not_trained_on_the_person(models, count, classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(models, count, classes)).astype(np.float32)
    trained = rng.random((models, count)) < 0.5
    lost = rng.random((models, count)) < 0.2
    logits[lost] = np.nan
    mean = ReferenceAnswers(torch.from_numpy(logits), torch.from_numpy(trained)).mean_of_out().numpy()
    for image in range(count):
        out = [torch.from_numpy(logits[k, image]).softmax(0) for k in range(models) if not (trained | lost)[k, image]]
        if out:
            np.testing.assert_allclose(mean[image], torch.stack(out).mean(0).numpy(), atol=1e-6)
        else:
            assert np.isnan(mean[image]).all()


def test_answers_that_do_not_fit_their_flags_are_refused():
    with pytest.raises(ValueError, match=r"\(K, N, C\) and \(K, N\)"):
        ReferenceAnswers(torch.zeros(2, 3, 4), torch.zeros(3, 2, dtype=torch.bool))


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.6])
def test_what_half_a_fleet_knows_less_is_read_from_people_never_trained_on(temperature, multi_label):
    torch.manual_seed(1)
    unseen, forget = (
        answers(torch.randn(200, 3), multi_label=multi_label),
        answers(torch.randn(5, 3), multi_label=multi_label),
    )
    now = tempered(unseen.mean_of_out(), temperature, multi_label=multi_label)
    assert temperature_between(unseen, now, models=2) == pytest.approx(temperature, rel=0.04)
    targets = unlearning_targets(forget, unseen, now)
    torch.testing.assert_close(
        targets, tempered(forget.mean_of_out(), temperature_between(unseen, now, 2), multi_label=multi_label)
    )


def test_without_people_never_trained_on_targets_are_the_means():
    forget = answers(torch.randn(5, 3))
    torch.testing.assert_close(unlearning_targets(forget), forget.mean_of_out())


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_loss_is_least_at_the_targets_and_zero_there(multi_label):
    logits = torch.randn(6, 3)
    targets = logits.sigmoid() if multi_label else logits.softmax(1)
    assert target_loss(logits, targets, multi_label=multi_label).item() == pytest.approx(0.0, abs=1e-4)
    assert target_loss(logits + torch.randn(6, 3), targets, multi_label=multi_label).item() > 0.01


@pytest.mark.parametrize(
    ("method", "labels"),
    [("dlfd", None), ("dlfd", 3), ("fine-tune", None), ("fine-tune", 3), ("not", None), ("not", 3), ("msg", None)],
)
def test_a_method_comes_nearer_to_the_targets_with_references_than_without(method, labels):
    model, classes = classifier(labels or 2), labels or 2
    retain, forget, validation = (labelled(count, seed, labels) for seed, count in enumerate((40, 8, 12)))
    wanted = 3.0 * torch.randn(8, classes, generator=torch.Generator().manual_seed(5))
    references = References(answers(wanted, multi_label=bool(labels)))
    targets, far = references.forget.mean_of_out(), {}
    for known in (None, references):
        problem = UnlearningProblem(
            model=copy.deepcopy(model),
            retain=retain,
            forget=forget,
            validation=validation,
            settings=SETTINGS,
            references=known,
        )
        outcome = METHODS[method].default.unlearner(problem)
        far[known is None] = np.abs(predict_probabilities(outcome.model, forget) - targets.numpy()).mean()
    assert far[False] < 0.8 * far[True]


def test_images_that_no_model_has_answered_are_aimed_at_nothing():
    model, forget = classifier(), labelled(8, 1)
    logits = torch.randn(8, 2)
    logits[3:] = torch.nan
    problem = UnlearningProblem(
        model=model, retain=labelled(40, 0), forget=forget, settings=SETTINGS, references=References(answers(logits))
    )
    outcome = METHODS["fine-tune"].default.unlearner(problem)
    said = torch.from_numpy(predict_probabilities(outcome.model, forget))
    assert torch.isfinite(said).all()
    assert (said[:3] - logits[:3].softmax(1)).abs().mean() < 0.15


def test_where_no_model_has_answered_at_all_everything_is_as_without_references():
    unknown = References(answers(torch.full((8, 2), torch.nan)), answers(torch.full((12, 2), torch.nan)))
    said = []
    for references in (None, unknown):
        problem = UnlearningProblem(
            model=classifier(),
            retain=labelled(40, 0),
            forget=labelled(8, 1),
            validation=labelled(12, 2),
            settings=SETTINGS.model_copy(update={"max_rounds": 1}),
            references=references,
        )
        said.append(predict_probabilities(dlfd(problem).model, problem.forget))
    np.testing.assert_array_equal(*said)


def test_the_gate_reads_how_far_people_are_from_models_that_never_saw_them():
    model, forget, validation = classifier(), labelled(8, 1), labelled(12, 2)
    mine, others = (torch.from_numpy(predict_probabilities(model, part)).log() for part in (forget, validation))
    as_members = torch.tensor([[False], [True]]).expand(2, 8)
    easier = torch.where(forget.labels[:, None] == torch.arange(2), 2.0, 0.0)  # IN models are two nats surer
    known = ReferenceAnswers(torch.stack([mine - easier, mine]), as_members)
    shift = read_shift(model, forget, validation, References(known, answers(others, 2)))
    assert shift.left == pytest.approx(1.0, abs=0.02)
    assert read_shift(model, forget, validation, References(known)) is None


def test_dlfd_says_how_much_is_left_where_reference_models_have_answered():
    model, forget, validation = classifier(), labelled(8, 1), labelled(12, 2)
    mine, others = (torch.from_numpy(predict_probabilities(model, part)).log() for part in (forget, validation))
    easier = torch.where(forget.labels[:, None] == torch.arange(2), 9.0, 0.0)
    known = ReferenceAnswers(torch.stack([mine - easier, mine]), torch.tensor([[False], [True]]).expand(2, 8))
    settings = SETTINGS.model_copy(update={"max_rounds": 1, "repair_epochs": 0.1, "distancing_steps": 1})
    problem = UnlearningProblem(
        model=model,
        retain=labelled(40, 0),
        forget=forget,
        validation=validation,
        settings=settings,
        references=References(known, answers(others, 2)),
    )
    outcome = dlfd(problem)
    assert not outcome.success
    assert any("left, by models that never saw them" in reason for reason in outcome.failures)


@pytest.mark.parametrize("name", ["forget", "validation"])
def test_answers_to_other_images_are_refused(name):
    count = {"forget": 8, "validation": 12} | {name: 5}
    known = References(*(answers(torch.randn(count[one], 2)) for one in ("forget", "validation")))
    problem = UnlearningProblem(
        model=classifier(),
        retain=labelled(40, 0),
        forget=labelled(8, 1),
        validation=labelled(12, 2),
        settings=SETTINGS,
        references=known,
    )
    with pytest.raises(ValueError, match=f"answered for 5 {name} images"):
        dlfd(problem)


def with_batch_norm():
    torch.manual_seed(0)
    return WrappedClassifier(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), "3"
    )


def test_a_site_trains_towards_references_and_distances_where_there_are_none():
    forget, far, noised = labelled(8, 1), {}, {}
    wanted = 3.0 * torch.randn(8, 2, generator=torch.Generator().manual_seed(5))
    for known in (True, False):
        outcome = METHODS["dlfd"].unlearner_at_site(
            UnlearningProblem(
                model=with_batch_norm(),
                retain=labelled(40, 0),
                forget=forget,
                settings=SETTINGS,
                references=References(answers(wanted)) if known else None,
            )
        )
        far[known] = np.abs(predict_probabilities(outcome.model, forget) - wanted.softmax(1).numpy()).mean()
        noised[known] = outcome.cost.noise_images
    assert far[True] < 0.8 * far[False]
    assert noised[True] == 0 < noised[False]
