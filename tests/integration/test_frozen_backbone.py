"""A fleet whose backbone is frozen: it is sent to each site once, never back, and stays as it began."""

from __future__ import annotations

import hashlib
import io

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from dlfd_fleet.data import synthesize
from dlfd_fleet.exceptions import JobError, ModelFileError
from dlfd_fleet.federation import FederatedUnlearning, Task, add_unlearning
from dlfd_fleet.federation.protocol.messages import FitTask, UnlearnTask
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import SiteCard, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard, build, load_model, state_arrays
from dlfd_fleet.progress import ConsoleProgress
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    be_a_server,
    by_the_fleets_gate,
    run_job,
    small_settings,
)
from tests.small_networks import small_networks

INPUT = image_input(32)


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


def fleet(folder, precision="float32", **model):
    """Two sites that are dealt a few drawn faces, and settings whose starting weights are in a file."""
    silent = ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=14, images_per_person=3, image_size=32, classes=2, seed=0, progress=silent
    )
    settings = by_the_fleets_gate(small_settings(folder / "state", manifest))
    deal_to_sites(settings, silent)
    return with_model(settings, precision, **model)


def with_model(settings, precision="float32", **model):
    updates = {
        "model": settings.model.model_copy(update=model),
        "fleet": settings.fleet.model_copy(update={"update_precision": precision}),
    }
    return settings.model_copy(update=updates)


def backbone_file(folder):
    """A backbone that some other training has made."""
    torch.manual_seed(9)
    with small_networks():
        card = ModelCard(architecture="mobilenet_v3_small", classes=("no", "yes"), input=INPUT)
        arrays = state_arrays(build(card))
    kept = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    save_file(kept, folder / "backbone.safetensors")
    return folder / "backbone.safetensors", kept


def champion(settings):
    store = Store(settings.state_folder)
    model, card = load_model(store.folders.model(store.champions.current().job))
    return card, state_arrays(model)


def travelled(grid, name="backbone."):
    """How often arrays of this beginning were sent to each node, and from any."""
    to, back = {}, 0
    for message in grid.seen:
        names = [key for record in message.content.values() if isinstance(record, ArrayRecord) for key in record]
        if any(key.startswith(name) for key in names):
            if message.metadata.reply_to_message_id:
                back += 1
            else:
                to[message.metadata.dst_node_id] = to.get(message.metadata.dst_node_id, 0) + 1
    return to, back


def untouched(settings, kept):
    card, arrays = champion(settings)
    assert card.frozen == ("backbone",)
    return all(torch.equal(arrays[name], array) for name, array in kept.items())


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_frozen_backbone_is_sent_once_and_stays_as_it_began(tmp_path, precision):
    file, kept = backbone_file(tmp_path)
    settings = fleet(tmp_path, precision, weights=str(file), frozen=("backbone",))
    settings = settings.model_copy(
        update={"erasure": settings.erasure.model_copy(update={"compare_retrain": True, "relearning_rounds": 1})}
    )
    grid = InProcessGrid(settings)
    run_job(settings, "train", grid)
    assert travelled(grid) == ({1: 1, 2: 1}, 0)
    assert untouched(settings, kept)
    a_person_asks_at_each_site(settings)
    erasing = InProcessGrid(settings)
    record = run_job(settings, "erase", erasing)
    # Sites hold the champion from the training job; retraining begins from the same backbone.
    assert travelled(erasing) == ({}, 0)
    assert {"unlearned", "relearned", "retrained"} <= set(record.models)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record.proceedings.began_with == f"the file backbone.safetensors (SHA-256 {sha256})"
    assert record.proceedings.frozen_layers == {"backbone": sum(array.numel() for array in kept.values())}
    assert untouched(settings, kept)
    # What is trained travels in every round, in both directions.
    to, back = travelled(erasing, "head.")
    assert set(to) == {1, 2}
    assert back == sum(
        message.metadata.message_type in (FitTask.TYPE, UnlearnTask.TYPE) and bool(message.metadata.reply_to_message_id)
        for message in erasing.seen
    )
    # Where a retraining may follow, starting weights that are gone are said before anybody unlearns.
    file.unlink()
    with pytest.raises(ModelFileError, match="Cannot read the starting weights"):
        run_job(settings, "erase")


def test_what_the_champion_has_trained_is_not_frozen_afterwards(tmp_path):
    settings = fleet(tmp_path)
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"rounds": 1})})
    run_job(settings, "train")
    _, before = champion(settings)
    with pytest.raises(
        JobError, match=r"'backbone\..*' is to be frozen, and has been trained: .*could not be forgotten"
    ):
        run_job(with_model(settings, frozen=("backbone",)), "train")
    assert all(torch.equal(array, before[name]) for name, array in champion(settings)[1].items())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"frozen": ("backbon",)}, r"no layer 'backbon' to freeze \(model\.frozen\)"),
        ({"frozen": ("backbone", "head")}, "Every layer of the network is frozen"),
        ({"weights": "/nowhere.pt"}, r"Cannot read the starting weights /nowhere\.pt"),
    ],
)
def test_a_job_says_in_one_sentence_what_cannot_be_frozen_or_read(tmp_path, model, why):
    with pytest.raises(ModelFileError, match=why):
        run_job(fleet(tmp_path, **model), "train")


def test_local_differential_privacy_sees_the_whole_model_and_sends_the_trained_part(tmp_path):
    settings = fleet(tmp_path, frozen=("backbone",))
    settings = settings.model_copy(update={"training": settings.training.model_copy(update={"rounds": 1})})
    noisy = add_unlearning(ClientApp(), update_mods=[LocalDpMod(1.0, 1.0, 100.0, 1e-5)])
    grid = InProcessGrid(settings, app=noisy)
    out = io.StringIO()
    run_job(settings, "train", grid, out)
    assert travelled(grid) == ({1: 1, 2: 1}, 0)
    assert champion(settings)[0].frozen == ("backbone",)
    assert "The frozen layers begin with random weights" in out.getvalue()


class TunedNet(nn.Module):
    """A network that freezes its first layers itself, as a package of somebody's would do it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 5, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 7 * 7, 16)
        self.fc2 = nn.Linear(16, 2)
        self.conv.requires_grad_(False)
        self.norm.requires_grad_(False)

    def forward(self, images):
        return self.fc2(torch.relu(self.fc1(torch.relu(self.norm(self.conv(images))).flatten(1))))


TASK = Task(model=TunedNet, classes=("class-0", "class-1"), shape=(1, 32, 32))


def test_of_a_model_that_another_loop_trained_only_what_it_left_alone_is_frozen(tmp_path, silent):
    settings = fleet(tmp_path)
    for folder in site_folders(settings.state_folder):
        card = SiteCard.model_validate_json((folder / "site.json").read_text())
        changed = card.model_copy(update={"input": TASK.input, "networks": (TASK.network,)})
        (folder / "site.json").write_text(changed.model_dump_json())
    grid = InProcessGrid(settings, app=add_unlearning(ClientApp(), TASK))
    be_a_server()
    torch.manual_seed(0)
    begun = TunedNet().state_dict()
    trained = begun | {"fc2.bias": begun["fc2.bias"] + 0.1, "norm.running_mean": torch.full((8,), 0.1)}
    unlearning = FederatedUnlearning(task=TASK, settings=settings, progress=silent)
    result = unlearning.adopt(grid, ArrayRecord.from_torch_state_dict(trained))
    assert result.card.frozen == ("conv.weight", "conv.bias", "norm.weight", "norm.bias")
    # Its statistics are measured anew, and what is frozen stays.
    a_person_asks_at_each_site(settings)
    _, arrays = unlearning.start(grid).card, champion(settings)[1]
    assert {name for name in begun if torch.equal(arrays[name], begun[name])} == set(result.card.frozen)
    # Averaging rounds them, and makes floats of counters: they are put back.
    begun = unlearning.arrays().to_torch_state_dict()
    averaged = {name: sum(array * share for share in (0.3, 0.3, 0.4)) for name, array in begun.items()}
    assert not torch.equal(averaged["conv.weight"], begun["conv.weight"])
    unlearning.adopt(grid, ArrayRecord.from_torch_state_dict(averaged))
    arrays = unlearning.arrays().to_torch_state_dict()
    assert all(torch.equal(arrays[name], begun[name]) for name in result.card.frozen)
    assert {name: array.dtype for name, array in arrays.items()} == {name: array.dtype for name, array in begun.items()}
    unfrozen = unlearning.arrays().to_torch_state_dict() | {"conv.bias": torch.zeros(8)}
    with pytest.raises(JobError, match=r"'conv\.bias' is to be frozen, and has been trained"):
        unlearning.adopt(grid, ArrayRecord.from_torch_state_dict(unfrozen))
