"""Unlearning in somebody else's Flower apps: their ServerApp starts the strategy, their ClientApp gets our handlers."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod

from dlfd_fleet.configuration import load_settings, write_settings
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation import FederatedUnlearning
from dlfd_fleet.federation.protocol.differences import model_of
from dlfd_fleet.federation.protocol.messages import UnlearnTask
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.release_rule import may_release
from dlfd_fleet.federation.rounds.exchange import array_bytes
from dlfd_fleet.federation.site.handlers import add_unlearning
from dlfd_fleet.ledger import RequestState, Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.models import build, load_model, save_model
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    trained_fleet,
)
from tests.small_networks import small_networks

README = Path(__file__).resolve().parents[2] / "README.md"


def own_app(**arguments):
    """An app that trains in its own way, and has done so before it knew of unlearning."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict({"arrays": ArrayRecord({})}), reply_to=message)

    return add_unlearning(app, **arguments)


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Settings of a trained fleet of two sites with a person each who asks."""
    settings = trained_fleet(tmp_path_factory.mktemp("own-apps"))
    a_person_asks_at_each_site(settings)
    return settings


@pytest.fixture
def trained(fleet, tmp_path):
    """A copy of that fleet, its model's card and its arrays."""
    settings = fleet.model_copy(update={"state_folder": tmp_path / "state"})
    shutil.copytree(fleet.state_folder, settings.state_folder)
    store = Store(settings.state_folder)
    model, card = load_model(store.folders.model(store.champions.current().job))
    return settings, card, ArrayRecord.from_torch_state_dict(model.state_dict())


def request_of(settings):
    with Site(site_folders(settings.state_folder)[0]) as site:
        (request,) = site.ledger.requests()
        return request.state, site.ledger.epoch()


def test_an_own_server_app_forgets_in_a_few_lines(trained, silent):
    settings, card, arrays = trained
    kept, states = {}, []

    def release(released, new_card, verdict):
        states.append(request_of(settings)[0])
        kept["model"] = new_card, released, verdict

    grid = InProcessGrid(settings, app=own_app())
    result = FederatedUnlearning(card=card, settings=settings, progress=silent).start(grid, arrays, release)
    assert may_release(result.verdict, settings), result.verdict.sentence()
    assert kept["model"] == (result.card, result.arrays, result.verdict)
    assert (result.card.epoch, result.card.kind) == (1, "unlearned")
    assert states == [RequestState.EVALUATING]  # nothing is purged before the model is kept
    assert request_of(settings) == (RequestState.COMPLETE, 1)
    assert not list(settings.state_folder.glob(f"sites/*/{HELD_MODEL_FILE}"))  # none that remembers stays at a site
    assert result.evaluate_metrics_clientapp.keys() == {0, 1}
    assert "mia_auc" in result.evaluate_metrics_clientapp[1]

    again = FederatedUnlearning(card=result.card, settings=settings, progress=silent)
    ended = again.start(InProcessGrid(settings, app=own_app()), result.arrays, release)
    assert (ended.verdict, ended.card) == (None, result.card)


def another_person_asks(settings):
    """Somebody of a class that others of the site are of, too."""
    with Site(site_folders(settings.state_folder)[0]) as site:
        people = {row.identity: row.label for row in site.manifest().rows if row.split == "train"}
        most = Counter(people.values()).most_common(1)[0][0]
        request_forgetting(site, next(person for person, label in people.items() if label == most), deadline_days=30)


def test_following_the_readme_works_again_and_again_under_the_settings_that_are_shown(trained, tmp_path, monkeypatch):
    """Its code as it stands there: each start begins with the model that the one before released."""
    settings, card, arrays = trained
    erasure = settings.erasure.model_copy(update={"rounds": 1, "relearning_rounds": 0})
    write_settings(settings.model_copy(update={"erasure": erasure}), tmp_path / "fleet.json")
    monkeypatch.setenv("DLFD_FLEET_CONFIG", str(tmp_path / "fleet.json"))
    monkeypatch.setenv("DLFD_FLEET_SEED", "3")
    monkeypatch.chdir(tmp_path)
    strategy = FederatedUnlearning(card=card)
    assert strategy.settings == load_settings().settings
    assert (strategy.settings.seed, strategy.settings.erasure.rounds) == (3, 1)
    model = build(card)
    model.load_state_dict(arrays.to_torch_state_dict())
    save_model(model, card, tmp_path / "champion")
    code = README.read_text(encoding="utf-8").split("```python\n")[1].split("```", 1)[0]
    for epoch in (1, 2):
        if epoch == 2:
            another_person_asks(settings)
        names: dict[str, object] = {}
        exec(compile(code, "README.md", "exec"), names)
        context = Context(run_id=epoch, node_id=0, node_config={}, state=RecordDict(), run_config={})
        names["app"](InProcessGrid(settings), context)
        assert load_model(tmp_path / "champion")[1].epoch == epoch
        with Site(site_folders(settings.state_folder)[0]) as site:
            assert {request.state for request in site.ledger.requests()} == {RequestState.COMPLETE}
            assert site.ledger.epoch() == epoch


def test_a_model_that_could_not_be_kept_is_not_released(trained, silent):
    settings, card, arrays = trained

    def full(*_):
        raise OSError("No space left on device")

    strategy = FederatedUnlearning(card=card, settings=settings, progress=silent)
    with pytest.raises(OSError, match="No space left"):
        strategy.start(InProcessGrid(settings, app=own_app()), arrays, full)
    assert request_of(settings) == (RequestState.ACCEPTED, 0)


def erasure_messages(settings, card, arrays, silent, precision):
    """All that travels in an erasure, until its model could be released."""
    fleet = settings.fleet.model_copy(update={"update_precision": precision})
    erasure = settings.erasure.model_copy(update={"rounds": 1})  # else rounding decides how many there are
    folder = settings.state_folder.with_name(precision)
    changed = settings.model_copy(update={"fleet": fleet, "erasure": erasure, "state_folder": folder})
    shutil.copytree(settings.state_folder, changed.state_folder)
    grid, kept = InProcessGrid(changed), []
    FederatedUnlearning(card=card, settings=changed, progress=silent).start(
        grid, arrays, lambda *all_: kept.append(all_)
    )
    assert kept
    return grid.seen


def sent_back(messages):
    """What the first site that unlearned sent back."""
    replies = (message for message in messages if message.metadata.message_type == UnlearnTask.TYPE)
    return next(reply for reply in replies if reply.metadata.reply_to_message_id).content["model"]


@pytest.mark.parametrize(("precision", "share", "tolerance"), [("float16", 0.5, 1e-3), ("int8", 0.25, 0.5 / 127)])
def test_differences_are_a_half_or_a_quarter_of_the_bytes_both_ways(trained, silent, precision, share, tolerance):
    settings, card, arrays = trained
    exact, short = (erasure_messages(settings, card, arrays, silent, each) for each in ("float32", precision))
    start = arrays.to_torch_state_dict()
    whole, difference = (sent_back(messages).to_torch_state_dict() for messages in (exact, short))
    rebuilt = model_of(difference, start, precision, "site-1")
    for name, array in whole.items():
        largest = (array - start[name]).abs().max() if array.is_floating_point() else 0.0
        assert (rebuilt[name] - array).abs().max() <= tolerance * largest + 1e-6, name
    sizes = [sum(array_bytes(message.content) for message in messages) for messages in (exact, short)]
    assert share < sizes[1] / sizes[0] < share + 0.1


def test_flowers_local_differential_privacy_is_refused_where_it_breaks_batch_norm(trained, silent):
    """It clips and adds its noise to everything that travels, variances and all: see docs/security.md."""
    settings, card, arrays = trained
    mods = [LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=1.0, delta=1e-5)]
    grid = InProcessGrid(settings, app=own_app(update_mods=mods))
    strategy = FederatedUnlearning(card=card, settings=settings, progress=silent)
    with pytest.raises(JobError, match="sent negative variances in"):
        strategy.start(grid, arrays, lambda *_: None)
    assert request_of(settings) == (RequestState.ACCEPTED, 0)
