"""Starting weights: files and torchvision's, over fresh weights; what does not fit is said by name."""

import hashlib

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from dlfd_fleet.components import name_of
from dlfd_fleet.exceptions import ModelFileError
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, build, described, frozen_values, normalised, permit, start, state_arrays
from dlfd_fleet.settings import ModelSettings

CARD = ModelCard(architecture="mobilenet_v3_small", classes=("no", "yes", "perhaps"), input=image_input(32))


def own_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


OWN = ModelCard(architecture=name_of(own_network), classes=("no", "yes"), input=image_input(4))


@pytest.fixture(autouse=True)
def permitted():
    permit(own_network)


def arrays(seed, card=OWN):
    torch.manual_seed(seed)
    return state_arrays(build(card))


def begun(card, weights, seed=5):
    torch.manual_seed(seed)
    return state_arrays(start(card, None if weights is None else str(weights)))


def same(one, other):
    return {name for name in one if torch.equal(one[name], other[name])}


def write(arrays, file):
    save_file(arrays, file) if file.suffix == ".safetensors" else torch.save(arrays, file)
    return file


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
@pytest.mark.parametrize("card", [OWN, CARD], ids=["own", "registered"])
def test_a_file_of_the_networks_own_names_is_all_that_it_begins_with(tmp_path, name, card):
    saved = arrays(1, card)
    found = begun(card, write(saved, tmp_path / name))
    assert same(found, saved) == set(saved)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_checkpoint_holds_them_beside_other_things(tmp_path, key):
    file = tmp_path / "checkpoint.pt"
    torch.save({key: arrays(1), "epoch": 3, "optimizer": {"state": {}}}, file)
    assert same(begun(OWN, file), arrays(1)) == set(arrays(1))


def test_the_last_layer_may_be_missing_and_begins_fresh(tmp_path):
    saved = {name: array for name, array in arrays(1).items() if not name.startswith("3.")}
    found = begun(OWN, write(saved, tmp_path / "w.pt"))
    assert same(saved, found) == set(saved)
    assert torch.equal(found["3.weight"], begun(OWN, None)["3.weight"])


def test_a_fine_tuned_network_of_torchvision_begins_the_backbone(tmp_path):
    torch.manual_seed(1)
    tuned = torchvision.models.mobilenet_v3_small(num_classes=7).state_dict()
    found = begun(CARD, write(dict(tuned), tmp_path / "tuned.pth"))
    backbone = {name for name in found if name.startswith("backbone.")}
    assert all(torch.equal(found[name], tuned[name.removeprefix("backbone.")]) for name in backbone)
    fresh = begun(CARD, None)
    assert same(found, fresh) >= {name for name in found if name not in backbone}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda saved: saved.pop("1.bias"), r"they have no '1.bias', which a .*own_network of 2 classes has"),
        (lambda saved: saved.update(extra=torch.ones(1)), r"they have 'extra', which a .* has not"),
        (
            lambda saved: saved.update({"1.weight": torch.ones(8, 47)}),
            r"their '1.weight' has the shape \(8, 47\), and must have \(8, 48\)",
        ),
        (
            lambda saved: saved.update({"3.weight": torch.ones(10, 8)}),
            r"\(2, 8\), as in .*, unless that layer is left out of the file",
        ),
        (lambda saved: saved.update({"1.bias": torch.full((8,), float("nan"))}), "'1.bias' holds values .* not finite"),
        (lambda saved: saved.update({"1.bias": torch.ones(8, dtype=torch.int64)}), "'1.bias' holds torch.int64"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, change, why):
    saved = arrays(1)
    change(saved)
    with pytest.raises(ModelFileError, match=f"^The starting weights .* do not fit: .*{why}") as refused:
        begun(OWN, write(saved, tmp_path / "w.safetensors"))
    assert "\n" not in str(refused.value)


def test_frozen_layers_begin_with_what_the_file_has(tmp_path):
    saved = {name: array for name, array in arrays(1).items() if not name.startswith("3.")}
    with pytest.raises(ModelFileError, match=r"they have no '3\.weight'"):
        begun(OWN.model_copy(update={"frozen": ("3",)}), write(saved, tmp_path / "w.pt"))


class Module(nn.Module):
    pass


@pytest.mark.parametrize("content", ["nothing", "text", "a pickled module", "a list", "numbers", "cut"])
def test_files_that_are_no_arrays_are_refused_in_one_sentence(tmp_path, content):
    file = tmp_path / "w.pt"
    if content == "text":
        file.write_text("weights")
    elif content == "cut":
        write(arrays(1), file)
        file.write_bytes(file.read_bytes()[:-300])
    elif content != "nothing":
        torch.save({"a pickled module": Module(), "a list": [1], "numbers": {"a": 1}}[content], file)
    with pytest.raises(ModelFileError, match=r"starting weights .*w\.pt") as refused:
        begun(OWN, file)
    assert "\n" not in str(refused.value)


def test_no_code_of_a_file_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("exploded").mkdir, ())

    torch.save({"1.weight": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(ModelFileError, match="no named arrays alone"):
        begun(OWN, tmp_path / "w.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder where torchvision finds its weights of a mobilenet_v3_small, as if it had downloaded them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(2)
    network = torchvision.models.mobilenet_v3_small().state_dict()
    url = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.url
    torch.save(network, folder / url.rsplit("/", 1)[1])
    return network


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1", "MobileNet_V3_Small_Weights.IMAGENET1K_V1"])
def test_weights_of_torchvision_by_name(hub, name):
    found = begun(CARD, name)
    assert all(torch.equal(array, hub[key[9:]]) for key, array in found.items() if key.startswith("backbone."))


def test_their_normalisation_is_theirs_unless_the_settings_have_another(hub):
    card = normalised(CARD, "DEFAULT")
    assert (card.mean, card.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.allclose(begun(card, "DEFAULT")["mean"].flatten(), torch.tensor(card.mean))
    other = CARD.model_copy(update={"mean": (0.1,)})
    assert normalised(other, "DEFAULT") == other
    assert normalised(CARD, "w.pt") == normalised(CARD, None) == CARD


@pytest.mark.parametrize(
    ("card", "name", "why"),
    [
        (
            CARD,
            "IMAGENET9K",
            "has no weights 'IMAGENET9K' of a mobilenet_v3_small .*MobileNet_V3_Small_Weights.DEFAULT",
        ),
        (CARD, "ResNet18_Weights.DEFAULT", "has no weights 'ResNet18_Weights.DEFAULT' of a mobilenet_v3_small"),
        (OWN, "DEFAULT", "has no weights of a .*own_network; name a .safetensors or weights-only file"),
    ],
)
def test_names_that_torchvision_does_not_have(card, name, why):
    for ask in (normalised, begun):
        with pytest.raises(ModelFileError, match=why):
            ask(card, name)


def test_without_a_network_what_to_do_is_said_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_, **__):
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>\nmore")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(ModelFileError, match=r"put https://.*pth into .*hub/checkpoints, or name a file") as refused:
        begun(CARD, "DEFAULT")
    assert "\n" not in str(refused.value)


def test_a_file_is_meant_from_the_folder_where_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ModelSettings(weights="w.pt").weights == str(tmp_path / "w.pt")
    for name in ("DEFAULT", "ResNet18_Weights.IMAGENET1K_V1", None):
        assert ModelSettings(weights=name).weights == name


def test_layers_to_freeze_come_in_one_text_and_must_be_names():
    assert ModelSettings(frozen="backbone, head.0").frozen == ("backbone", "head.0")
    for wrong in ("backbone,", "a..b", "a b"):
        with pytest.raises(ValueError, match="frozen"):
            ModelSettings(frozen=wrong)


def test_what_weights_begin_with_is_said_without_the_path_of_a_file(tmp_path):
    file = write(arrays(1), tmp_path / "mine.safetensors")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert described(OWN, str(file)) == f"the file mine.safetensors (SHA-256 {sha256})"
    assert described(CARD, None) == "random weights"
    assert described(OWN, None) == f"what {OWN.architecture} makes"
    assert described(CARD, "DEFAULT") == "torchvision's MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    with pytest.raises(ModelFileError, match="Cannot read the starting weights"):
        described(OWN, str(tmp_path / "none.pt"))


def test_values_of_frozen_layers_are_counted_once_each():
    found = arrays(1)
    assert frozen_values(("1", "2.running_mean", "1.bias"), found) == {"1": 48 * 8 + 8, "2.running_mean": 8}
    assert frozen_values((), found) == {}
