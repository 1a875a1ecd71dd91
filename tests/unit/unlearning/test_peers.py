"""The peers: what each does to a model, and what all of them promise."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from dlfd_fleet.models import WrappedClassifier, digest, state_arrays
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning import LabelledImages, predict_probabilities
from dlfd_fleet.unlearning.methods import METHODS
from dlfd_fleet.unlearning.peers import (
    BadTeacher,
    ExactUnlearning,
    MaskedSmallGradients,
    NegateLayers,
    NegGrad,
    ReleasedDlfd,
    SalUn,
    Scrub,
    SelectiveSynapticDampening,
)

SETTINGS = UnlearningSettings(epochs=1, batch_size=8, learning_rate=0.01)
CANDIDATES = [
    pytest.param(candidate, id=f"{name}-{number}")
    for name, method in METHODS.items()
    for number, candidate in enumerate(method.candidates)
]
FIRST = [pytest.param(method.candidates[0], id=name) for name, method in METHODS.items()]


def classifier(seed=0, classes=3):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(96, classes),
    )
    return WrappedClassifier(network, "5").eval()


def faces(count, seed, classes=3):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(count) % classes)


RETAIN, FORGET, VALIDATION = faces(24, 1), faces(6, 2), faces(9, 3)


def run(unlearner, model=None, forget=FORGET, seed=0, settings=SETTINGS):
    return unlearner(model or classifier(), RETAIN, forget, VALIDATION, settings, seed=seed)


def forget_loss(model):
    truth = predict_probabilities(model, FORGET)[range(len(FORGET)), FORGET.labels]
    return -torch.tensor(truth).log().mean().item()


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_every_candidate_changes_the_model_and_leaves_it_usable(candidate):
    settings = SETTINGS.model_copy(update=dict(candidate.changes) | {"epochs": 1.0})
    before = digest(state_arrays(classifier()))
    outcome = run(candidate.unlearner, settings=settings)
    assert digest(state_arrays(outcome.model)) != before or outcome.chosen_step == 0  # a gate may keep the original
    assert not outcome.model.training
    assert all(parameter.requires_grad for parameter in outcome.model.parameters())
    assert outcome.cost.forward_images > 0


@pytest.mark.parametrize("candidate", FIRST)
def test_the_same_seed_gives_the_same_bits(candidate):
    first, second = (run(candidate.unlearner, seed=4) for _ in range(2))
    assert digest(state_arrays(first.model)) == digest(state_arrays(second.model))


@pytest.mark.parametrize("candidate", FIRST)
@pytest.mark.parametrize("count", [2, 40])
def test_two_forgotten_images_and_more_than_are_retained_both_work(candidate, count):
    outcome = run(candidate.unlearner, forget=faces(count, 5))
    assert all(torch.isfinite(value).all() for value in outcome.model.state_dict().values())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("dlfd", "ssd", "eu-k", "not", "msg")])
def test_when_the_time_is_up_nothing_more_is_trained(name):
    """Every step asks for the time first; a limit that has passed leaves no step to do."""
    settings = SETTINGS.model_copy(update={"max_seconds": 1e-9})
    weights = dict(classifier().named_parameters())
    model = run(METHODS[name].candidates[0].unlearner, settings=settings).model
    assert all(torch.equal(value, weights[key]) for key, value in model.named_parameters())


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="at least one forget image"):
        run(NegGrad(), forget=LabelledImages(FORGET.images[:0], FORGET.labels[:0]))


def test_the_last_layer_is_reset_and_the_others_stay():
    before = classifier()
    after = run(ExactUnlearning(layers=1)).model
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new) == (not name.startswith("module.6"))


def test_negation_negates():
    model = run(NegateLayers(), settings=SETTINGS.model_copy(update={"learning_rate": 1e-9})).model
    assert torch.allclose(model.module[0].weight, -classifier().module[0].weight, atol=1e-6)


def test_ascent_raises_the_loss_of_the_forget_set():
    settings = SETTINGS.model_copy(update={"epochs": 10.0})
    still = SETTINGS.model_copy(update={"learning_rate": 1e-9})
    assert forget_loss(run(NegGrad(), settings=settings).model) > forget_loss(run(NegGrad(), settings=still).model)


def test_saliency_changes_only_its_share_of_the_weights():
    before, after = classifier(), run(SalUn(share=0.2)).model
    changed = sum((old != new).sum().item() for old, new in zip(before.parameters(), after.parameters(), strict=True))
    total = sum(one.numel() for one in before.parameters())
    assert 0 < changed <= 0.2 * total + 1


def test_dampening_only_shrinks_and_keeps_signs():
    before, after = classifier(), run(SelectiveSynapticDampening(selection=1.2)).model
    shrunk = 0
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert (new.abs() <= old.abs() + 1e-7).all()
        assert (new * old >= 0).all()
        shrunk += (new.abs() < old.abs()).sum().item()
    assert shrunk > 0


def test_softening_scales_its_share_of_the_weights():
    method = MaskedSmallGradients(share=0.5, scale=0.5)
    after = run(method, settings=SETTINGS.model_copy(update={"learning_rate": 1e-9})).model
    pairs = [(a, b) for a, b in zip(classifier().parameters(), after.parameters(), strict=True) if a.ndim > 1]
    halved = sum(torch.isclose(new, old / 2, rtol=1e-3).sum().item() for old, new in pairs)
    assert halved == pytest.approx(0.5 * sum(one.numel() for one, _ in pairs), rel=0.02)


def learned():
    """Return a model that knows retained and forgotten images by heart."""
    everything = LabelledImages(torch.cat([RETAIN.images, FORGET.images]), torch.cat([RETAIN.labels, FORGET.labels]))
    settings = SETTINGS.model_copy(update={"epochs": 60.0, "learning_rate": 0.03})
    return METHODS["fine-tune"].candidates[0].unlearner(classifier(), everything, FORGET, VALIDATION, settings).model


def test_a_bad_teacher_makes_the_forget_set_look_unknown():
    before = learned()
    settings = SETTINGS.model_copy(update={"epochs": 10.0, "learning_rate": 0.02})
    after = run(BadTeacher(), model=copy.deepcopy(before), settings=settings).model
    assert forget_loss(after) > 2 * forget_loss(before)


def test_scrub_moves_forgotten_answers_further_than_retained_ones():
    before = learned()
    settings = SETTINGS.model_copy(update={"epochs": 4.0})
    after = run(Scrub(forgetting_epochs=4), model=copy.deepcopy(before), settings=settings).model
    moved = [
        abs(predict_probabilities(after, data) - predict_probabilities(before, data)).mean()
        for data in (FORGET, RETAIN)
    ]
    assert moved[0] > moved[1]


def test_the_released_codes_forget_weight_changes_nothing():
    """Its transport is computed on unperturbed images; ours changes with it, see test_dlfd.py."""
    settings = SETTINGS.model_copy(update={"learning_rate": 0.05})
    method = ReleasedDlfd(gate=-1.0, steps=2)  # noise in every batch
    digests = {
        digest(state_arrays(run(dataclasses.replace(method, forget_weight=weight), settings=settings).model))
        for weight in (0.0, 3.0, 50.0)
    }
    assert len(digests) == 1


def test_every_method_names_its_paper_and_peers_have_the_same_budget_of_tuning():
    for name, method in METHODS.items():
        assert method.citation
        assert len(method.candidates) == (1 if name.startswith("dlfd") else 3)
