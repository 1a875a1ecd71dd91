"""Classifiers: features and logits of one pass, and files that are whole or refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dlfd_fleet.exceptions import ModelFileError
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import (
    ARCHITECTURES,
    CARD_FILE,
    MODEL_FILE,
    ModelCard,
    WrappedClassifier,
    build,
    build_empty,
    digest,
    load_model,
    permit,
    save_model,
    state_arrays,
    with_frozen,
)

CARD = ModelCard(architecture="mobilenet_v3_small", classes=("no", "yes", "perhaps"), input=image_input(32))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_backbone_gives_features_and_logits_in_one_pass(architecture):
    torch.manual_seed(0)
    model = build(CARD.model_copy(update={"architecture": architecture})).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features, logits = model.features_and_logits(images)
        assert logits.shape == (2, 3)
        assert torch.allclose(model(images), logits)
        assert torch.allclose(model.features(images), features)
        assert torch.allclose(model.head(features), logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_without_weights_is_complete_once_they_are_loaded(architecture):
    card = CARD.model_copy(update={"architecture": architecture})
    model, empty = build(card).eval(), build_empty(card).eval()
    empty.load_state_dict(model.state_dict())
    assert all(array.device.type == "cpu" for array in (*empty.parameters(), *empty.buffers()))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(empty(images), model(images))


def test_normalisation_is_part_of_the_model():
    model = build(CARD).eval()
    shifted = build(CARD.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})).eval()
    weights = {name: value for name, value in state_arrays(model).items() if name not in ("mean", "std")}
    shifted.load_state_dict(weights, strict=False)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(images), shifted((images - 0.5) / 0.25), atol=1e-6)


def test_a_users_module_is_wrapped_by_naming_its_feature_layer():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2))
    model = WrappedClassifier(network, "2")
    images = torch.rand(5, 3, 4, 4)
    features, logits = model.features_and_logits(images)
    assert torch.equal(logits, network(images))
    assert torch.equal(features, network[:3](images))
    assert torch.equal(copy.deepcopy(model)(images), logits)
    assert not network[2]._forward_hooks


def test_an_unknown_feature_layer_is_named_with_those_that_exist():
    with pytest.raises(ModelFileError, match=r"no layer 'avgpool'.*it has: 0, 1"):
        WrappedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), "avgpool")


@pytest.mark.parametrize("frozen", [(), ("backbone",)])
def test_a_saved_model_reads_back_equal(tmp_path, frozen):
    asked = CARD.model_copy(update={"frozen": frozen})
    model = build(asked)
    save_model(model, asked, tmp_path)
    loaded, card = load_model(tmp_path)
    assert (card, loaded.frozen) == (asked, frozen)
    assert digest(state_arrays(loaded)) == digest(state_arrays(model))
    assert sorted(file.name for file in tmp_path.iterdir()) == [CARD_FILE, MODEL_FILE]


@pytest.mark.parametrize("damage", ["truncate", "missing", "other architecture", "unknown key"])
def test_a_damaged_model_is_refused_in_one_sentence(tmp_path, damage):
    save_model(build(CARD), CARD, tmp_path)
    card = json.loads((tmp_path / CARD_FILE).read_text())
    if damage == "truncate":
        content = (tmp_path / MODEL_FILE).read_bytes()
        (tmp_path / MODEL_FILE).write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        (tmp_path / MODEL_FILE).unlink()
    elif damage == "other architecture":
        (tmp_path / CARD_FILE).write_text(json.dumps(card | {"architecture": "resnet18"}))
    else:
        (tmp_path / CARD_FILE).write_text(json.dumps(card | {"colour": "red"}))
    with pytest.raises(ModelFileError) as failure:
        load_model(tmp_path)
    assert "\n" not in str(failure.value)


def test_a_digest_changes_with_any_value_and_not_with_order():
    arrays = state_arrays(build(CARD))
    assert digest(dict(reversed(arrays.items()))) == digest(arrays)
    name = next(iter(arrays))
    changed = dict(arrays) | {name: arrays[name] + 1e-6}
    assert digest(changed) != digest(arrays)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"classes": ("no", "yes")}, r"'head\.6\.weight' has the shape \(3, 128\).*mobilenet_v3_small of 2 classes"),
        ({"architecture": "resnet18"}, "which a resnet18 of 3 classes, which its card says it is, has"),
    ],
)
def test_a_model_is_not_saved_under_a_card_that_it_does_not_fit(tmp_path, change, why):
    folder = tmp_path / "model"
    with pytest.raises(ModelFileError, match=why) as refused:
        save_model(build(CARD), CARD.model_copy(update=change), folder)
    assert "\n" not in str(refused.value)
    assert not folder.exists()
    # Of two files that do not belong together, the same is said.
    save_model(build(CARD), CARD, folder)
    (folder / CARD_FILE).write_text(CARD.model_copy(update=change).model_dump_json())
    with pytest.raises(ModelFileError, match=why):
        load_model(folder)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda arrays: arrays.pop("mean"), "it has no 'mean'"),
        (lambda arrays: arrays.update(extra=torch.zeros(1)), "it has 'extra'"),
        (lambda arrays: arrays.update(mean=torch.zeros(1, 3, 1, 1, dtype=torch.int64)), "its 'mean' holds torch.int64"),
    ],
)
def test_weights_that_are_not_all_of_a_card_are_refused(tmp_path, damage, why):
    save_model(build(CARD), CARD, tmp_path)
    arrays = load_file(tmp_path / MODEL_FILE)
    damage(arrays)
    save_file(arrays, tmp_path / MODEL_FILE)
    with pytest.raises(ModelFileError, match=why):
        load_model(tmp_path)


def test_a_module_of_ones_own_is_not_saved_under_a_card_that_could_not_load_it(tmp_path):
    own = WrappedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Linear(8, 3)), "1")
    with pytest.raises(ModelFileError, match="it has no"):
        save_model(own, CARD, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_card_names_what_is_frozen_and_its_network_has_it_so():
    card = CARD.model_copy(update={"frozen": ("backbone", "head.0.bias")})
    for model in (build(card), build_empty(card)):
        assert model.frozen == card.frozen
        assert {name for name, each in model.named_parameters() if not each.requires_grad} == set(
            card.frozen_of(dict(model.named_parameters()))
        )
        assert not model.train().backbone.training
    arrays = state_arrays(model)
    assert {name.split(".")[0] for name in card.trained(arrays)} == {"head", "mean", "std"}
    assert card.trained(arrays) | card.frozen_of(arrays) == arrays


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (("backbon",), r"no layer 'backbon' to freeze \(model.frozen\); its outermost ones are: backbone, head"),
        (("backbone", "head"), "Every layer of the network is frozen"),
    ],
)
def test_layers_that_cannot_be_frozen_are_refused_in_one_sentence(layers, why):
    with pytest.raises(ModelFileError, match=why) as refused:
        build(CARD.model_copy(update={"frozen": layers}))
    assert "\n" not in str(refused.value)


def with_frozen_stem(width):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    network[1].requires_grad_(False)
    network[2].weight.requires_grad_(False)
    return network


def test_a_card_lists_what_its_factory_has_frozen():
    card = ModelCard(
        architecture=permit(with_frozen_stem), arguments={"width": 8}, classes=("no", "yes"), input=image_input(4)
    )
    assert with_frozen(card).frozen == ("1", "2.weight")
    named = card.model_copy(update={"frozen": ("2",)})
    assert with_frozen(named).frozen == ("1", "2.weight", "2")
    assert with_frozen(with_frozen(named)) == with_frozen(named)
