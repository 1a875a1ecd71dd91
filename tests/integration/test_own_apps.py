"""Unlearning in somebody else's Flower apps: their ServerApp starts the strategy, their ClientApp gets our handlers."""

from __future__ import annotations

import contextlib
import shutil

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.handlers import add_unlearning
from dlfd_fleet.federation.messages import UnlearnTask
from dlfd_fleet.federation.release_rule import may_release
from dlfd_fleet.federation.store import Store
from dlfd_fleet.federation.strategy import FederatedUnlearning
from dlfd_fleet.ledger import RequestState, Site, site_folders
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.models import load_model
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    trained_fleet,
)


def own_app(**arguments):
    """An app that trains in its own way, and has done so before it knew of unlearning."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(RecordDict({"arrays": ArrayRecord({})}), reply_to=message)

    return add_unlearning(app, **arguments)


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
    model, card = load_model(store.model_folder(store.champion().job))
    return settings, card, ArrayRecord.from_torch_state_dict(model.state_dict())


def request_of(settings):
    with Site(site_folders(settings.state_folder)[0]) as site:
        (request,) = site.ledger.requests()
        return request.state, site.ledger.epoch()


def test_an_own_server_app_forgets_in_a_few_lines(trained, silent):
    settings, card, arrays = trained
    kept, states = {}, []

    def publish(released, new_card, verdict):
        states.append(request_of(settings)[0])
        kept["model"] = new_card, released, verdict

    grid = InProcessGrid(settings, app=own_app())
    result = FederatedUnlearning(card=card, settings=settings, progress=silent).start(grid, arrays, publish)
    assert may_release(result.verdict, settings), result.verdict.sentence()
    assert kept["model"] == (result.card, result.arrays, result.verdict)
    assert (result.card.epoch, result.card.kind) == (1, "unlearned")
    assert states == [RequestState.EVALUATING]  # nothing is purged before the model is kept
    assert request_of(settings) == (RequestState.COMPLETE, 1)
    assert not list(settings.state_folder.glob(f"sites/*/{HELD_MODEL_FILE}"))  # none that remembers stays at a site
    assert result.evaluate_metrics_clientapp.keys() == {0, 1}
    assert "mia_auc" in result.evaluate_metrics_clientapp[1]

    again = FederatedUnlearning(card=result.card, settings=settings, progress=silent)
    ended = again.start(InProcessGrid(settings, app=own_app()), result.arrays, publish)
    assert (ended.verdict, ended.card) == (None, result.card)


def test_a_model_that_could_not_be_kept_is_not_released(trained, silent):
    settings, card, arrays = trained

    def full(*_):
        raise OSError("No space left on device")

    strategy = FederatedUnlearning(card=card, settings=settings, progress=silent)
    with pytest.raises(OSError, match="No space left"):
        strategy.start(InProcessGrid(settings, app=own_app()), arrays, full)
    assert request_of(settings) == (RequestState.ACCEPTED, 0)


def first_update(grid):
    """What the first site that unlearned sent back."""
    replies = (message for message in grid.seen if message.metadata.message_type == UnlearnTask.TYPE)
    return next(reply for reply in replies if reply.metadata.reply_to_message_id).content["model"]


def test_float16_differences_are_half_the_bytes_and_the_same_update(trained, silent):
    settings, card, arrays = trained
    sent = {}
    for precision in ("float32", "float16"):
        changed = settings.model_copy(
            update={"fleet": settings.fleet.model_copy(update={"update_precision": precision})}
        )
        grid = InProcessGrid(changed)

        def stop(*_):
            raise InterruptedError  # the requests wait for the next start

        with contextlib.suppress(InterruptedError):
            FederatedUnlearning(card=card, settings=changed, progress=silent).start(grid, arrays, stop)
        sent[precision] = first_update(grid)
    assert 0.5 < sent["float16"].count_bytes() / sent["float32"].count_bytes() < 0.56
    start, exact = arrays.to_torch_state_dict(), sent["float32"].to_torch_state_dict()
    for name, difference in sent["float16"].to_torch_state_dict().items():
        if difference.dtype == torch.float16:
            assert torch.allclose(difference.float(), exact[name] - start[name], rtol=1e-3, atol=1e-6), name
        else:
            assert torch.equal(difference, exact[name]), name


def test_flowers_local_differential_privacy_is_refused_where_it_breaks_batch_norm(trained, silent):
    """It clips and adds its noise to everything that travels, variances and all: see docs/security.md."""
    settings, card, arrays = trained
    mods = [LocalDpMod(clipping_norm=1.0, sensitivity=1e-4, epsilon=1.0, delta=1e-5)]
    grid = InProcessGrid(settings, app=own_app(update_mods=mods))
    strategy = FederatedUnlearning(card=card, settings=settings, progress=silent)
    with pytest.raises(JobError, match="sent negative variances in"):
        strategy.start(grid, arrays, lambda *_: None)
    assert request_of(settings) == (RequestState.ACCEPTED, 0)
