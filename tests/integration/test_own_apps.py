"""Unlearning in somebody else's Flower apps: their network, their FedAvg, their ClientApp, with three things added."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import FedAvg
from rich.console import Console

from dlfd_fleet.data import synthesize
from dlfd_fleet.device.inference import DeviceModel, read_image
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation import FederatedUnlearning, Task, add_unlearning
from dlfd_fleet.federation.jobs.releaser import FleetReleaser
from dlfd_fleet.federation.protocol.differences import model_of
from dlfd_fleet.federation.protocol.messages import FitTask, UnlearnTask
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.rounds.exchange import array_bytes
from dlfd_fleet.ledger import RequestState, Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.models import NETWORKS, digest, permit
from dlfd_fleet.progress import ConsoleProgress
from tests import own_fleet
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    be_a_server,
    small_settings,
    trained_fleet,
)
from tests.small_networks import small_networks

TASK = own_fleet.task()
ROUNDS = 2


def own_app(task: Task = TASK, *, filtered: bool = True, **arguments) -> ClientApp:
    """An app with a training loop of its own, which asks the task for what it may train on."""
    app = add_unlearning(ClientApp(), task, **arguments)

    @app.train()
    def train(message, context):
        network = own_fleet.GreyNet()
        network.load_state_dict(message.content["arrays"].to_torch_state_dict())
        data = task.training_data(context) if filtered else everything(context)
        loss = own_fleet.train_own_way(network, data, epochs=1, learning_rate=0.02)
        metrics = MetricRecord({"loss": loss, "num-examples": len(data)})
        arrays = ArrayRecord(network.state_dict())
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def everything(context):
    """What a site has on its disk, whoever has asked."""
    from dlfd_fleet.data.dataset import load_dataset

    with Site(Path(str(context.node_config["site-folder"]))) as site:
        rows = load_dataset(site.manifest(), model_input=site.card.input)
    images = rows.images.float() / 127.5 - 1.0
    return list(zip(images, rows.labels.tolist(), strict=True))


def fed_avg(grid, arrays: ArrayRecord | None) -> ArrayRecord:
    strategy = FedAvg(fraction_evaluate=0.0)
    begin = arrays or ArrayRecord(own_fleet.GreyNet().state_dict())
    return strategy.start(grid, initial_arrays=begin, num_rounds=ROUNDS).arrays


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Settings of a fleet whose own FedAvg has trained its own network, before anybody asks."""
    folder, silent = tmp_path_factory.mktemp("own-apps"), ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=14, images_per_person=3, image_size=32, classes=2, seed=0, progress=silent
    )
    settings = small_settings(folder / "state", manifest)
    data = settings.data.model_copy(update={"channels": 1, "value_range": (-1.0, 1.0)})
    settings = settings.model_copy(
        update={"data": data, "export": settings.export.model_copy(update={"formats": ("fp32", "int8")})}
    )
    deal_to_sites(settings, silent)
    be_a_server()
    torch.manual_seed(0)
    unlearning = FederatedUnlearning(task=TASK, settings=settings, progress=silent)
    grid = InProcessGrid(settings, app=own_app())
    assert unlearning.arrays() is None
    result = unlearning.adopt(grid, fed_avg(grid, None))
    assert (result.card.epoch, result.card.architecture) == (0, "tests.own_fleet:GreyNet")
    return settings


@pytest.fixture
def trained(fleet, tmp_path, silent):
    """A copy of that fleet, and its own server's unlearning."""
    settings = fleet.model_copy(update={"state_folder": tmp_path / "state"})
    shutil.copytree(fleet.state_folder, settings.state_folder)
    return settings, FederatedUnlearning(task=TASK, settings=settings, progress=silent)


def requests_of(settings):
    """State of the first request of each site, and the epoch that the sites know."""
    states, epochs = [], set()
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            states += [request.state for request in site.ledger.requests()]
            epochs.add(site.ledger.epoch())
    return Counter(states), epochs


def test_an_own_fleet_takes_the_settings_of_its_environment(tmp_path, silent, monkeypatch):
    monkeypatch.setenv("DLFD_FLEET_STATE_FOLDER", str(tmp_path / "state"))
    monkeypatch.setenv("DLFD_FLEET_TRAINING__ROUNDS", "9")
    settings = FederatedUnlearning(task=TASK, progress=silent).settings
    assert (settings.training.rounds, settings.state_folder) == (9, tmp_path / "state")


def test_an_own_fleet_trains_forgets_trains_on_and_forgets_again(trained, tmp_path):
    settings, unlearning = trained
    grid = InProcessGrid(settings, app=own_app())
    asked = a_person_asks_at_each_site(settings)
    erased = unlearning.start(grid)
    assert (erased.card.epoch, erased.card.kind) == (1, "unlearned"), erased.sentence()
    assert erased.card.parent is not None
    assert requests_of(settings) == (Counter({RequestState.COMPLETE: len(asked)}), {1})
    assert not list(settings.state_folder.glob(f"sites/*/{HELD_MODEL_FILE}"))  # none that remembers stays at a site
    assert erased.evaluate_metrics_clientapp.keys() == {0, 1}
    assert "mia_auc" in erased.evaluate_metrics_clientapp[1]

    again = FederatedUnlearning(task=TASK, settings=settings, progress=unlearning.progress)
    begin = again.arrays()
    assert begin.to_torch_state_dict().keys() == own_fleet.GreyNet().state_dict().keys()
    trained_on = again.adopt(grid, fed_avg(grid, begin))
    assert trained_on.card.parent == digest(begin.to_torch_state_dict())
    assert (trained_on.card.epoch, trained_on.card.kind) == (1, "original")

    another_person_asks(settings)
    assert again.start(grid).card.epoch == 2
    assert "nobody asks to be forgotten" in again.start(grid).sentence().lower()


def test_a_device_runs_the_own_network_with_its_channels_its_range_and_its_classes(trained):
    settings, unlearning = trained
    store = Store(settings.state_folder)
    folder = store.folders.model(store.champions.current().job)
    store.close()
    network = own_fleet.GreyNet().eval()
    network.load_state_dict(unlearning.arrays().to_torch_state_dict())
    with Site(site_folders(settings.state_folder)[0]) as site:
        manifest = site.manifest()
        file = manifest.file_of(manifest.rows[0])
    for name in ("model.onnx", "model.int8.onnx"):
        model = DeviceModel(folder / name)
        pixels = read_image(file, model.input)
        assert (model.classes, pixels.shape) == (own_fleet.CLASSES, (32, 32, 1))
        with torch.no_grad():
            image = torch.from_numpy(pixels).permute(2, 0, 1).float()[None] / 127.5 - 1.0
            expected = network(image).softmax(dim=1)[0]
        assert model.predict(pixels[None])[0] == pytest.approx(
            expected.numpy(), abs=1e-4 if name == "model.onnx" else 0.2
        )


def another_person_asks(settings):
    """Somebody of a class that others of the site are of, too."""
    with Site(site_folders(settings.state_folder)[0]) as site:
        people = {row.identity: row.label for row in site.manifest().rows if row.split == "train"}
        most = Counter(people.values()).most_common(1)[0][0]
        request_forgetting(site, next(person for person, label in people.items() if label == most), deadline_days=30)


def test_training_past_the_task_is_refused_at_once(trained):
    """It would bring back who has asked, and leave nobody unseen."""
    settings, unlearning = trained
    before = unlearning.arrays()
    for asked in (0, 1):
        everyone = InProcessGrid(settings, app=own_app(filtered=False))
        fed_avg(everyone, before)
        refused = [message.error.reason for message in everyone.seen if message.has_error()]
        assert len(refused) == 2 * ROUNDS
        assert any(f"forgotten ({asked} people) and who is kept out of training (" in reason for reason in refused)
        if not asked:
            another_person_asks(settings)
    filtered = InProcessGrid(settings, app=own_app())
    fed_avg(filtered, before)
    assert not any(message.has_error() for message in filtered.seen)


def test_a_model_that_began_before_an_erasure_is_not_adopted(trained):
    settings, unlearning = trained
    grid = InProcessGrid(settings, app=own_app())
    begin = unlearning.arrays()
    another_person_asks(settings)
    other = FederatedUnlearning(task=TASK, settings=settings, progress=unlearning.progress)
    other.start(grid)
    with pytest.raises(JobError, match="began with a model of the erasure epoch 0, and the fleet is at 1"):
        unlearning.adopt(grid, begin)
    with pytest.raises(JobError, match=r"did not begin with the weights of FederatedUnlearning\.arrays"):
        other.adopt(grid, begin)
    with pytest.raises(JobError, match=r"The trained model is no tests\.own_fleet:GreyNet.*fc2\.weight"):
        other.adopt(grid, ArrayRecord(own_fleet.GreyNet(classes=3).state_dict()), fresh=True)


def test_an_own_loss_optimizer_and_loop_are_what_the_rounds_use(trained):
    settings, unlearning = trained
    used = Counter()

    def loss(logits, labels):
        used["loss"] += 1
        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)

    def optimizer(parameters, rate):
        used["optimizer"] += 1
        return torch.optim.Adam(parameters, rate / 10)

    def loop(network, data, *, epochs, learning_rate):
        used["loop"] += 1
        assert data[0][0].shape == (1, 32, 32)
        assert -1.0 <= data[0][0].min() < 0.0
        return own_fleet.train_own_way(network, data, epochs=epochs, learning_rate=learning_rate)

    another_person_asks(settings)
    own = own_fleet.task(loss=loss, optimizer=optimizer, train=loop)
    erased = unlearning.start(InProcessGrid(settings, app=own_app(own)))
    assert erased.card.epoch == 1, erased.sentence()
    assert used["loss"] > used["optimizer"] >= 1
    assert used["loop"] >= 2


def test_a_site_builds_no_network_that_neither_its_app_nor_its_folder_names(trained):
    settings, unlearning = trained
    another_person_asks(settings)
    with pytest.raises(JobError, match=r"builds no network 'tests\.own_fleet:GreyNet' for a message"):
        unlearning.start(InProcessGrid(settings, app=add_unlearning(ClientApp())))
    other = InProcessGrid(settings, app=own_app(own_fleet.task(arguments={"width": 4})))
    with pytest.raises(JobError, match="with other arguments than the message"):
        unlearning.start(other)


def erasure_messages(settings, silent, precision):
    """All that travels in an erasure, and the model that it began with."""
    fleet = settings.fleet.model_copy(update={"update_precision": precision})
    erasure = settings.erasure.model_copy(update={"rounds": 1})  # else rounding decides how many there are
    folder = settings.state_folder.with_name(precision)
    changed = settings.model_copy(update={"fleet": fleet, "erasure": erasure, "state_folder": folder})
    shutil.copytree(settings.state_folder, changed.state_folder)
    grid, unlearning = (
        InProcessGrid(changed, app=own_app()),
        FederatedUnlearning(task=TASK, settings=changed, progress=silent),
    )
    begin = unlearning.arrays()
    assert unlearning.start(grid).card.epoch == 1
    unlearning_and_repair = {UnlearnTask.TYPE, FitTask.TYPE}
    sent = [message for message in grid.seen if message.metadata.message_type in unlearning_and_repair]
    return sent, begin.to_torch_state_dict()


def sent_back(messages):
    """What the first site that unlearned sent back."""
    return next(
        message for message in messages if message.metadata.reply_to_message_id and message.has_content()
    ).content["model"]


@pytest.mark.parametrize(("precision", "share", "tolerance"), [("float16", 0.5, 1e-3), ("int8", 0.25, 0.5 / 127)])
def test_differences_are_a_half_or_a_quarter_of_the_bytes_both_ways(trained, silent, precision, share, tolerance):
    settings, _ = trained
    a_person_asks_at_each_site(settings)
    (exact, start), (short, _) = (erasure_messages(settings, silent, each) for each in ("float32", precision))
    whole, difference = (sent_back(messages).to_torch_state_dict() for messages in (exact, short))
    rebuilt = model_of(difference, start, precision, "site-1")
    for name, array in whole.items():
        largest = (array - start[name]).abs().max() if array.is_floating_point() else 0.0
        assert (rebuilt[name] - array).abs().max() <= tolerance * largest + 1e-6, name
    sizes = [sum(array_bytes(message.content) for message in messages) for messages in (exact, short)]
    assert share < sizes[1] / sizes[0] < share + 0.15


def test_flowers_local_differential_privacy_is_refused_where_it_breaks_batch_norm(tmp_path, silent):
    """It clips and adds its noise to everything that travels, variances and all: see docs/explanation/security.md."""
    settings = trained_fleet(tmp_path)
    a_person_asks_at_each_site(settings)
    mods = [LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=1.0, delta=1e-5)]
    grid = InProcessGrid(settings, app=add_unlearning(ClientApp(), update_mods=mods))
    with small_networks(), pytest.raises(JobError, match="sent negative variances in"):
        FederatedUnlearning(settings=settings, progress=silent).start(grid)
    assert requests_of(settings) == (Counter({RequestState.ACCEPTED: 2}), {0})


def test_a_training_that_an_erasure_overtook_is_not_adopted(trained, silent):
    """The erasure was killed, and the next job brings it to its end before it looks at the trained model."""
    settings, unlearning = trained
    grid = InProcessGrid(settings, app=own_app())
    another_person_asks(settings)
    begin = unlearning.arrays()
    fresh = FederatedUnlearning(task=TASK, settings=settings, progress=silent)
    store = Store(settings.state_folder)
    store.new_job("erase", unlearning.settings)  # as one that died before its first step
    store.close()
    with pytest.raises(JobError, match="began at the erasure epoch 0, and the fleet is at 1"):
        unlearning.adopt(grid, begin)
    with pytest.raises(JobError, match="began at the erasure epoch 0, and the fleet is at 1"):
        fresh.adopt(grid, begin, fresh=True)
    assert unlearning.start(grid).card.epoch == 1


def test_a_champion_of_another_network_is_not_replaced_unless_somebody_says_so(trained, silent):
    settings, _ = trained
    other = FederatedUnlearning(task=own_fleet.task(model=own_fleet.WiderNet), settings=settings, progress=silent)
    grid = InProcessGrid(settings, app=own_app(own_fleet.task(model=own_fleet.WiderNet)))
    weights = ArrayRecord(own_fleet.WiderNet().state_dict())
    NETWORKS.reload()  # as in a process that has never seen the other
    permit(own_fleet.WiderNet)
    with pytest.raises(JobError, match=r"which nobody has permitted here.*or begin anew"):
        other.adopt(grid, weights)
    assert other.adopt(grid, weights, fresh=True).card.architecture == "tests.own_fleet:WiderNet"
    permit(own_fleet.GreyNet)


def test_an_adoption_that_was_killed_goes_on_with_the_model_that_it_was_given(trained, monkeypatch):
    settings, unlearning = trained
    grid, given = InProcessGrid(settings, app=own_app()), own_fleet.GreyNet().state_dict()

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FleetReleaser, "audited_champion", die)
        with pytest.raises(KeyboardInterrupt):
            unlearning.adopt(grid, ArrayRecord(given))
    assert "Nobody asks" in unlearning.start(grid).sentence()
    assert digest(unlearning.arrays().to_torch_state_dict()) == digest(given)
