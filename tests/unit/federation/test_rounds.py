"""A round over nodes that answer as a test says: which updates count, and what becomes of batch norm's statistics."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo

from dlfd_fleet.federation.protocol.messages import FitResult, PendingReply
from dlfd_fleet.federation.rounds.fleet import Fleet, pseudonym
from dlfd_fleet.federation.rounds.job_context import JobContext, Unrecorded
from dlfd_fleet.federation.rounds.rounds import Rounds
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard
from dlfd_fleet.settings import Settings

CARD = ModelCard(architecture="resnet18", classes=("no", "yes"), input=image_input(32))
BEFORE = {"w": torch.zeros(2), "norm.running_mean": torch.zeros(1), "norm.running_var": torch.ones(1)}

pytestmark = pytest.mark.usefixtures("flower_run")


class TrainedGrid:
    """Each node has the model that it answers with; one may send bytes that are no array."""

    def __init__(self, models, images, garbles):
        self.models, self.images, self.garbles, self.sent = models, images, garbles, {}

    def get_nodes(self):
        return [NodeInfo(node_id=node) for node in self.models]

    def push_messages(self, messages):
        for message in messages:
            message.metadata._message_id = f"message-{len(self.sent)}"
            self.sent[message.metadata.message_id] = message
        return list(self.sent)[-len(messages) :]

    def pull_messages(self, message_ids):
        for message_id in message_ids:
            message = self.sent[message_id]
            node = message.metadata.dst_node_id
            result, model = FitResult(epoch=0, examples=self.images[node], loss=0.5, seconds=1.0), self.models[node]
            records = result.to_records(model=model)
            if node == self.garbles:
                records["model"]["w"].data = b""  # numpy says EOFError
            yield Message(records, reply_to=message)


def trained(weight, mean=1.0, variance=1.0):
    return {
        "w": torch.full((2,), weight),
        "norm.running_mean": torch.tensor([mean]),
        "norm.running_var": torch.tensor([variance]),
    }


def fit_round(models, silent, *, final, garbles=None, most_images=4, card=CARD):
    """Return the merged model, the norms that were recorded by node, and the fleet; the last node has most images."""
    images = dict.fromkeys(models, 4) | {max(models): most_images}
    fleet, norms = Fleet(TrainedGrid(models, images, garbles), timeout=5.0), {}
    pending = {
        node: PendingReply(
            site="0a1b2c3d",
            requests=(),
            dates={},
            forget_images=0,
            class_images=(2, count - 2),
            classes=CARD.classes,
            input=image_input(32),
        )
        for node, count in images.items()
    }

    class Norms(Unrecorded):
        def update(self, update):
            norms[update.site] = update.metrics()["train_weights_norm"]

    fleet.admit(pending)
    job = JobContext(fleet=fleet, card=card, settings=Settings(), name="job-1", progress=silent, recorder=Norms())
    merged = Rounds(job).fit_round(dict(BEFORE), "train", 1, 0.1, lambda: None, final=final)
    return merged, norms, fleet


def test_sites_whose_weights_alone_differ_are_honest(silent):
    """In the demo honest ones go up to seven times as far as the median, beside statistics that are far larger."""
    models = {node: trained(0.1, 100.0) for node in (1, 2)} | {3: trained(0.7, 100.0)}
    merged, norms, fleet = fit_round(models, silent, final=False)
    assert not fleet.absent
    assert norms[pseudonym(3)] == pytest.approx(0.7 * 2**0.5)  # what is recorded is what was trained
    assert torch.equal(merged["w"], torch.full((2,), 0.3))


def test_statistics_that_stand_out_where_they_are_measured_are_found(silent):
    models = {node: trained(0.1) for node in (1, 2)} | {3: trained(0.1, 1e9)}
    merged, norms, fleet = fit_round(models, silent, final=True)
    assert list(fleet.absent) == [pseudonym(3)]
    assert torch.equal(merged["norm.running_mean"], torch.ones(1))
    assert norms[pseudonym(1)] == pytest.approx(0.1 * 2**0.5)  # what is trained has one norm in every round


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("spoilt", [{"mean": float("inf")}, {"variance": -1e-9}])
def test_statistics_that_are_none_are_refused_in_every_round(silent, final, spoilt):
    _, _, fleet = fit_round({1: trained(0.1), 2: trained(0.1, **spoilt)}, silent, final=final)
    assert fleet.absent[pseudonym(2)].startswith("was refused")


def test_an_array_that_cannot_be_read_names_its_site_and_ends_no_round(silent):
    merged, _, fleet = fit_round({1: trained(0.1), 2: trained(0.3)}, silent, final=True, garbles=2)
    assert fleet.absent == {
        pseudonym(2): f"was refused: {pseudonym(2)} sent 'model' arrays that cannot be read (EOFError)."
    }
    assert torch.equal(merged["w"], torch.full((2,), 0.1))


def test_an_update_without_frozen_arrays_is_whole_and_its_norm_is_of_what_is_trained(silent):
    card = CARD.model_copy(update={"frozen": ("norm",)})
    merged, norms, fleet = fit_round({1: {"w": torch.ones(2)}, 2: {"w": torch.ones(2)}}, silent, final=True, card=card)
    assert not fleet.absent
    assert merged.keys() == BEFORE.keys()
    assert all(torch.equal(merged[name], BEFORE[name]) for name in ("norm.running_mean", "norm.running_var"))
    assert norms == pytest.approx({pseudonym(1): 2**0.5, pseudonym(2): 2**0.5})


@pytest.mark.parametrize(
    ("update", "why"),
    [
        (trained(0.1), "sent 'norm.running_mean', which is frozen; its update was refused."),
        ({}, "sent a model with other arrays than ours, 'w' for one; it was refused."),
    ],
)
def test_an_update_that_holds_a_frozen_array_or_lacks_a_trained_one_is_refused_by_name(silent, update, why):
    card = CARD.model_copy(update={"frozen": ("norm",)})
    merged, _, fleet = fit_round({1: {"w": torch.ones(2)}, 2: update}, silent, final=True, card=card)
    assert fleet.absent == {pseudonym(2): f"was refused: {pseudonym(2)} {why}"}
    assert torch.equal(merged["w"], torch.ones(2))
