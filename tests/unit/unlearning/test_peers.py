"""The peers: what each does to a model, and what all of them promise."""

import copy
import dataclasses
import itertools
import time
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from dlfd_fleet.models import WrappedClassifier, digest, state_arrays
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning import METHODS, LabelledImages, UnlearningProblem, dlfd, predict_probabilities
from dlfd_fleet.unlearning.peers import (
    BadTeacher,
    CatastrophicForgetting,
    ExactUnlearning,
    FineTune,
    MaskedSmallGradients,
    NegateLayers,
    NegGrad,
    NegGradPlus,
    ProjectedGradientAscent,
    ReleasedDlfd,
    SalUn,
    Scrub,
    SelectiveSynapticDampening,
    Unsir,
)

SETTINGS = UnlearningSettings(epochs=1, batch_size=8, learning_rate=0.01)
STILL = SETTINGS.model_copy(update={"learning_rate": 1e-9})
# DLFD has tests of its own.
PEERS = {name: method for name, method in METHODS.items() if method.candidates[0].unlearner is not dlfd}
FIRST = [
    pytest.param(ReleasedDlfd(steps=2) if name == "dlfd-released" else method.candidates[0].unlearner, id=name)
    for name, method in PEERS.items()
]
NEED_EVERY_GRADIENT = {"salun", "msg", "ssd", "dlfd-released"}
CANDIDATES = [
    pytest.param(candidate, id=f"{name}-{number}")
    for name, method in PEERS.items()
    for number, candidate in enumerate(method.candidates)
]


def classifier(seed=0, classes=3):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(96, classes),
    )
    return WrappedClassifier(network, "6").eval()


def perceptron():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    return WrappedClassifier(network, "2").eval()


def faces(count, seed, classes=3):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.arange(count) % classes)


RETAIN, FORGET, VALIDATION = faces(24, 1), faces(6, 2), faces(9, 3)


def run(unlearner, model=None, forget=FORGET, seed=0, settings=SETTINGS, retain=RETAIN, validation=VALIDATION):
    return unlearner(
        UnlearningProblem(
            model=model or classifier(),
            retain=retain,
            forget=forget,
            validation=validation,
            settings=settings,
            seed=seed,
        )
    )


def loss_of(model, data):
    truth = predict_probabilities(model, data)[range(len(data)), data.labels]
    return -torch.tensor(truth).log().mean().item()


def moved(model, other, data):
    return abs(predict_probabilities(model, data) - predict_probabilities(other, data)).mean()


def changed(model, other):
    """Return the names of the parameters that differ."""
    others = dict(other.named_parameters())
    return {name for name, value in model.named_parameters() if not torch.equal(value, others[name])}


@pytest.fixture(scope="module")
def learned():
    """A model that knows retained and forgotten images by heart."""
    everything = LabelledImages(torch.cat([RETAIN.images, FORGET.images]), torch.cat([RETAIN.labels, FORGET.labels]))
    settings = SETTINGS.model_copy(update={"epochs": 8.0, "learning_rate": 0.02})
    model = run(FineTune(), settings=settings, retain=everything).model
    assert loss_of(model, FORGET) < 0.3
    return model


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_every_candidate_changes_the_model_and_leaves_it_usable(candidate):
    settings = SETTINGS.model_copy(update=dict(candidate.changes) | {"epochs": 1.0})
    outcome = run(candidate.unlearner, settings=settings)
    assert changed(outcome.model, classifier())
    assert not outcome.model.training
    assert all(parameter.requires_grad for parameter in outcome.model.parameters())
    assert outcome.cost.forward_images >= outcome.cost.backward_images > 0


def test_the_step_of_fine_tuning_falls_to_nothing(monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    run(FineTune(), settings=SETTINGS.model_copy(update={"epochs": 4.0}))
    assert len(rates) == 4 * 3
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.01
    assert rates[-1] < 0.001


@pytest.mark.parametrize("unlearner", FIRST)
def test_the_same_seed_gives_the_same_bits(unlearner):
    digests = set()
    for disturbance in (1, 2):
        model = classifier()
        torch.manual_seed(disturbance)
        digests.add(digest(state_arrays(run(unlearner, model=model, seed=4).model)))
    assert len(digests) == 1


@pytest.mark.parametrize("unlearner", FIRST)
@pytest.mark.parametrize("count", [2, 40])
def test_two_forgotten_images_and_more_than_are_retained_both_work(unlearner, count):
    model = run(unlearner, forget=faces(count, 5)).model
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert changed(model, classifier()) or isinstance(unlearner, SelectiveSynapticDampening)


@pytest.mark.parametrize("unlearner", FIRST)
def test_a_network_without_convolutions_or_batch_norm_works(unlearner):
    assert changed(run(unlearner, model=perceptron()).model, perceptron())


@pytest.mark.parametrize("unlearner", FIRST)
def test_when_the_time_is_up_before_the_start_nothing_is_trained(unlearner, monkeypatch):
    monkeypatch.setattr("dlfd_fleet.unlearning.session.time", SimpleNamespace(perf_counter=lambda: float("inf")))
    outcome = run(unlearner, settings=SETTINGS.model_copy(update={"max_seconds": 60.0}))
    assert outcome.cost.backward_images == 0
    assert outcome.chosen_step == 0
    assert isinstance(unlearner, ReleasedDlfd) or "the time was up" in outcome.failures[0]


@pytest.mark.parametrize("unlearner", FIRST)
def test_when_the_time_is_up_on_the_way_the_loops_end(unlearner, monkeypatch):
    """A clock that a second passes on at every look; a full run of any method looks at it more than 12 times."""
    ticks, now = itertools.count(), time.perf_counter()
    clock = SimpleNamespace(perf_counter=lambda: now + next(ticks))
    monkeypatch.setattr("dlfd_fleet.unlearning.session.time", clock)
    settings = SETTINGS.model_copy(update={"epochs": 50.0, "max_seconds": 12.0})
    outcome = run(unlearner, settings=settings, forget=faces(40, 5))
    assert outcome.chosen_step <= 12
    assert next(ticks) < 30


def test_passes_are_counted():
    settings = SETTINGS.model_copy(update={"epochs": 2.0})
    cost = run(FineTune(), settings=settings).cost
    look = 24 + 6 + 9 + 24  # batch-norm statistics and a look, at the end
    assert (cost.forward_images, cost.backward_images, cost.noise_images) == (2 * 24 + look, 2 * 24, 0)
    cost = run(Unsir(matrices=2, noise_steps=5), settings=settings).cost
    assert cost.noise_images == 5 * 2 * 3  # three classes in the forget set


@pytest.mark.parametrize("unlearner", FIRST)
def test_a_model_that_answers_the_same_to_everybody_is_no_success(unlearner):
    model = classifier()
    with torch.no_grad():
        model.module[7].weight.zero_()
        model.module[7].bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-9})
    outcome = run(unlearner, model=model, settings=settings)
    answers = predict_probabilities(outcome.model, VALIDATION).argmax(axis=1)
    assert outcome.success == (balanced_accuracy_score(VALIDATION.labels, answers) >= 1 / 3 + 0.1)
    assert outcome.success is False or isinstance(unlearner, ExactUnlearning)  # which has reset the layer
    if not outcome.success:
        assert "near a constant answer's: the model collapsed" in outcome.failures[0]


@pytest.mark.parametrize("unlearner", FIRST)
def test_a_method_of_one_class_an_image_says_so_and_the_others_take_several_labels(unlearner):
    data = {
        name: LabelledImages(one.images, torch.stack([one.labels == place for place in range(3)], dim=1).float())
        for name, one in (("retain", RETAIN), ("forget", FORGET), ("validation", VALIDATION))
    }
    if getattr(unlearner, "one_class_only", False) or isinstance(unlearner, ReleasedDlfd):
        with pytest.raises(ValueError, match="is defined for one class an image, not for several labels"):
            run(unlearner, **data)
    else:
        outcome = run(unlearner, **data)
        assert all(torch.isfinite(value).all() for value in outcome.model.state_dict().values())


@pytest.mark.parametrize("unlearner", [one for one in FIRST if one.id not in NEED_EVERY_GRADIENT])
def test_layers_that_were_not_trained_before_are_not_afterwards(unlearner):
    model = classifier()
    model.module[0].requires_grad_(False)
    outcome = run(unlearner, model=model)
    assert [parameter.requires_grad for parameter in outcome.model.module[0].parameters()] == [False, False]
    assert all(parameter.requires_grad for parameter in outcome.model.module[7].parameters())


def test_an_empty_set_is_refused():
    for unlearner in (NegGrad(), ReleasedDlfd()):
        with pytest.raises(ValueError, match="at least one forget image"):
            run(unlearner, forget=LabelledImages(FORGET.images[:0], FORGET.labels[:0]))


@pytest.mark.parametrize("unlearner", [one for one in FIRST if one.id != "dlfd-released"])
def test_without_validation_people_a_peer_does_the_same_and_does_not_look(unlearner):
    looked, alone = (run(unlearner, validation=people, seed=2) for people in (VALIDATION, None))
    assert digest(state_arrays(alone.model)) == digest(state_arrays(looked.model))
    assert alone.cost.monitor_seconds == 0.0
    assert alone.success


def test_cf_k_changes_the_last_layers_only():
    assert changed(run(CatastrophicForgetting(layers=1)).model, classifier()) == {"module.7.weight", "module.7.bias"}


def test_eu_k_resets_the_last_layers_of_all_kinds_and_leaves_the_others():
    original = classifier()
    original.module[4].weight.data.fill_(7.0)
    model = run(ExactUnlearning(layers=2), model=copy.deepcopy(original), settings=STILL).model
    assert not changed(model, original) & {"module.0.weight", "module.0.bias", "module.1.weight", "module.1.bias"}
    assert torch.allclose(model.module[4].weight, torch.ones(6))
    for place in (3, 7):
        assert not torch.isclose(model.module[place].weight, original.module[place].weight).any()


def test_as_many_layers_as_there_are_or_more_means_all():
    assert len(changed(run(ExactUnlearning(layers=9)).model, classifier())) == 10
    with pytest.raises(ValueError, match="At least one layer"):
        run(CatastrophicForgetting(layers=0))


def test_frozen_batch_norms_stay_in_eval_mode_while_the_rest_is_trained():
    model, modes = classifier(), []
    model.module[7].register_forward_hook(
        lambda *_: modes.append((model.module[1].training, model.module[4].training, model.module[7].training))
    )
    run(CatastrophicForgetting(layers=1), model=model)
    assert modes[0] == (False, False, True)


def test_not_negates_the_chosen_layers_and_repairs():
    model = run(NegateLayers(), settings=STILL).model
    assert torch.allclose(model.module[0].weight, -classifier().module[0].weight, atol=1e-6)
    model = run(NegateLayers(layers=(1, 2)), settings=STILL).model
    assert torch.allclose(model.module[0].weight, classifier().module[0].weight, atol=1e-6)
    assert torch.allclose(model.module[3].weight, -classifier().module[3].weight, atol=1e-6)


def test_ascent_raises_the_loss_of_the_forget_set(learned):
    settings = SETTINGS.model_copy(update={"epochs": 5.0})
    assert loss_of(run(NegGrad(), copy.deepcopy(learned), settings=settings).model, FORGET) > loss_of(learned, FORGET)


def test_neggrad_plus_ascends_the_more_the_less_it_weighs_the_retain_set(learned):
    settings = SETTINGS.model_copy(update={"epochs": 3.0, "learning_rate": 0.02})
    models = [run(NegGradPlus(alpha), copy.deepcopy(learned), settings=settings).model for alpha in (1.0, 0.9, 0.6)]
    losses = [loss_of(model, FORGET) for model in models]
    assert losses == sorted(losses)
    assert loss_of(models[2], RETAIN) < losses[2]


def test_msg_resets_its_share_of_each_convolution_and_holds_the_others_back():
    model = run(MaskedSmallGradients(share=0.25), settings=STILL).model
    for place in (0, 3):
        old, new = classifier().module[place].weight, model.module[place].weight
        assert (~torch.isclose(old, new, atol=1e-6)).sum() == round(0.25 * old.numel())
    assert torch.allclose(model.module[7].weight, classifier().module[7].weight, atol=1e-6)
    settings = SETTINGS.model_copy(update={"weight_decay": 0.0})
    held = run(MaskedSmallGradients(share=0.0, slow=0.0), settings=settings).model
    assert not {"module.0.weight", "module.3.weight"} & changed(held, classifier())


def test_unsir_learns_noise_that_the_model_gets_wrong_and_damages_with_it(learned, monkeypatch):
    noise = {}
    learn = Unsir._noise
    monkeypatch.setattr(Unsir, "_noise", lambda self, session: noise.setdefault("seen", learn(self, session)))
    model = run(Unsir(matrices=3, noise_steps=3), copy.deepcopy(learned), settings=STILL).model
    assert noise["seen"].labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert loss_of(learned, noise["seen"]) > 2.0
    assert loss_of(model, noise["seen"]) < loss_of(learned, noise["seen"])


def test_salun_leaves_weights_outside_the_mask_as_they_are():
    before, after = classifier(), run(SalUn(share=0.2)).model
    different = sum((old != new).sum().item() for old, new in zip(before.parameters(), after.parameters(), strict=True))
    total = sum(one.numel() for one in before.parameters())
    assert 0.1 * total < different <= 0.2 * total + 1


def test_salun_teaches_other_labels(learned):
    settings = SETTINGS.model_copy(update={"epochs": 5.0})
    model = run(SalUn(), copy.deepcopy(learned), settings=settings).model
    assert loss_of(model, FORGET) > loss_of(learned, FORGET) + 0.5
    assert loss_of(model, RETAIN) < loss_of(model, FORGET)


def test_ssd_only_shrinks_the_weights_it_selects(learned):
    counts = []
    for selection in (1.2, 3.0, 5.1):
        model = run(SelectiveSynapticDampening(selection), copy.deepcopy(learned)).model
        pairs = list(zip(learned.parameters(), model.parameters(), strict=True))
        assert all((new.abs() <= old.abs()).all() and (new * old >= 0).all() for old, new in pairs)
        counts.append(sum((new != old).sum().item() for old, new in pairs))
    assert counts[0] > counts[1] > counts[2] == 0  # a fifth of the training set cannot matter five times as much


def test_a_bad_teacher_makes_the_forget_set_look_unknown(learned):
    settings = SETTINGS.model_copy(update={"epochs": 10.0, "learning_rate": 0.02})
    model = run(BadTeacher(), copy.deepcopy(learned), settings=settings).model
    assert loss_of(model, FORGET) > 2 * loss_of(learned, FORGET)
    assert moved(model, learned, FORGET) > moved(model, learned, RETAIN)


def test_scrub_disobeys_its_teacher_on_the_forget_set_only(learned):
    settings = SETTINGS.model_copy(update={"epochs": 4.0, "learning_rate": 0.05})
    obeyed, disobeyed = (run(Scrub(msteps=steps), copy.deepcopy(learned), settings=settings).model for steps in (0, 4))
    assert moved(disobeyed, learned, FORGET) > 2 * moved(obeyed, learned, FORGET)
    assert moved(disobeyed, learned, FORGET) > 2 * moved(disobeyed, learned, RETAIN)


def test_the_released_codes_forget_weight_changes_nothing():
    """Its transport is computed on unperturbed images; ours changes with it, see test_dlfd.py."""
    settings = SETTINGS.model_copy(update={"learning_rate": 0.05})
    method = ReleasedDlfd(gate=-1.0, bound=-1.0, steps=2)  # noise in every batch, the last weights stay
    outcomes = [
        run(dataclasses.replace(method, forget_weight=weight), settings=settings) for weight in (0.0, 3.0, 50.0)
    ]
    assert outcomes[0].chosen_step == 4  # as many as a forget set of six images has room for
    assert len({digest(state_arrays(outcome.model)) for outcome in outcomes}) == 1


def test_the_released_code_looks_at_every_image_after_every_batch_and_skips_batches_of_another_size():
    outcome = run(ReleasedDlfd(gate=1.0, bound=-1.0), forget=faces(11, 2))
    # Eleven forget images are two batches of 5, so the last of 24 retain images make one of another size.
    assert outcome.chosen_step == 4
    assert outcome.cost.backward_images == 4 * 5
    assert outcome.cost.forward_images == 4 * 5 + 5 * (24 + 11 + 9)  # and one look for its outcome, at the end
    assert 0.0 < outcome.cost.monitor_seconds < outcome.cost.seconds


def test_the_released_code_is_in_train_mode_for_one_batch():
    model, modes = classifier(), []
    model.module[1].register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    run(ReleasedDlfd(gate=1.0, bound=-1.0), model=model)
    assert [training for training, gradients in modes if gradients] == [True, False, False, False]


def test_every_method_names_its_paper_and_peers_have_the_same_budget_of_tuning():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.citation
        assert len(method.candidates) == (1 if name.startswith("dlfd") else 3)
        for candidate in method.candidates:
            assert set(candidate.changes) <= set(UnlearningSettings.model_fields)


def test_projected_ascent_climbs_inside_its_ball(learned):
    fast = SETTINGS.model_copy(update={"learning_rate": 1.0, "epochs": 4.0})
    bounded = run(ProjectedGradientAscent(radius=0.01), copy.deepcopy(learned), settings=fast).model
    # A model of fresh weights is about as far away as any other one.
    assert 0.0 < distance_of(bounded, learned) < 0.03 * distance_of(classifier(seed=1), learned)

    slow = SETTINGS.model_copy(update={"epochs": 4.0})
    climbed = run(ProjectedGradientAscent(), copy.deepcopy(learned), settings=slow).model
    assert loss_of(climbed, FORGET) > loss_of(learned, FORGET)


def distance_of(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return sum(float((one - two).detach().square().sum()) for one, two in pairs) ** 0.5
