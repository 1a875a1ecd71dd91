"""A model that a site holds is not sent again; one that it has lost is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from safetensors.torch import load_file, save_file

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.differences import difference_of, model_of
from dlfd_fleet.federation.protocol.held_names import MODEL_NOT_HELD
from dlfd_fleet.federation.rounds.fleet import Fleet, pseudonym
from dlfd_fleet.federation.site import held_model as module
from dlfd_fleet.federation.site.held_model import held_model, held_name
from dlfd_fleet.ledger import Site, SiteCard, create_site
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard

FIRST, SECOND = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)

pytestmark = pytest.mark.usefixtures("flower_run")


class SitesGrid:
    """Each node is a site's folder; it answers with the model that its task comes to, behind the mod."""

    def __init__(self, folders):
        self.folders = dict(enumerate(folders, start=1))
        self.replies, self.contents = {}, []

    def get_nodes(self):
        return [NodeInfo(node_id=node) for node in self.folders]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message.metadata._message_id = f"message-{len(self.contents)}"
            self.contents.append(sorted(message.content))
            node = message.metadata.dst_node_id
            place = {"site-folder": str(self.folders[node])}
            context = Context(run_id=1, node_id=node, node_config=place, state=RecordDict(), run_config={})
            # What a node is sent it cannot change for the others.
            own = Message(RecordDict(dict(message.content)), node, message.metadata.message_type)
            own.metadata._message_id = message.metadata.message_id
            try:
                reply = held_model(own, context, self.answer)
            except Exception as error:
                reply = Message(module.Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=own)
            self.replies[message.metadata.message_id] = reply
            ids.append(message.metadata.message_id)
        return ids

    def answer(self, message, _context):
        return Message(RecordDict({"seen": message.content["model"]}), reply_to=message)

    def pull_messages(self, message_ids):
        return [self.replies.pop(message_id) for message_id in message_ids]


@pytest.fixture
def grid(tmp_path):
    folders = [tmp_path / "site-1", tmp_path / "site-2"]
    for folder in folders:
        create_site(folder, SiteCard(name=folder.name, input=image_input(32), classes=("no", "yes")))
    return SitesGrid(folders)


@pytest.fixture
def fleet(grid):
    return Fleet(grid, timeout=5.0)


def ask(fleet, array, bias=None, card=None):
    """Send a model to all, and return what each node had before it when it worked."""
    bias = array[0] if bias is None else bias
    records = RecordDict({"model": ArrayRecord.from_torch_state_dict({"w": array, "b": bias})})
    replies = fleet.exchange(MessageType.TRAIN, dict.fromkeys(fleet.grid.folders, records), "1", card)
    seen = {reply.node: reply.records["seen"].to_torch_state_dict() for reply in replies}
    return {node: arrays["w"] for node, arrays in seen.items()}


def sizes(grid):
    return sum("model" in content for content in grid.contents)


def steps(grid):
    return sum("model-difference" in content for content in grid.contents)


def offer(fleet, new, old, precision="int8"):
    """Offer the step from one array to another; return what it comes to."""
    models = [{"w": array, "b": array[0]} for array in (new, old)]
    difference = difference_of(*models, precision)
    reached = model_of(difference, models[1], precision, "The coordinator")["w"]
    difference["b"] = reached[0]
    fleet.held.offer({"w": reached, "b": reached[0]}, models[1], difference, precision)
    return reached


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_model_is_sent_once(fleet, grid):
    for array, sent in ((FIRST, 2), (FIRST, 2), (SECOND, 4), (SECOND, 4), (FIRST, 6)):
        seen = ask(fleet, array)
        assert seen.keys() == {1, 2}
        assert all(torch.equal(one, array) for one in seen.values())
        assert sizes(grid) == sent
    one = ArrayRecord.from_torch_state_dict({"w": FIRST, "b": FIRST[0]}).count_bytes()
    assert (fleet.sent_bytes, fleet.received_bytes) == (6 * one, 10 * one)


def test_the_same_numbers_in_another_shape_or_type_are_another_model(fleet, grid):
    for array in (FIRST, FIRST.reshape(3, 2), FIRST.double()):
        assert torch.equal(ask(fleet, array)[1], array)
    assert sizes(grid) == 6


@pytest.mark.parametrize("spoil", ["lost", "damaged", "another's"])
def test_a_site_that_lost_its_model_is_sent_it_again(fleet, grid, spoil):
    ask(fleet, FIRST)
    file = grid.folders[2] / HELD_MODEL_FILE
    if spoil == "lost":
        file.unlink()
    elif spoil == "damaged":
        file.write_bytes(file.read_bytes()[:40])
    else:
        ask(Fleet(grid, timeout=5.0), SECOND)  # another job of the same sites
    before = sizes(grid)
    assert torch.equal(ask(fleet, FIRST)[2], FIRST)
    assert sizes(grid) - before == (2 if spoil == "another's" else 1)
    assert not fleet.absent


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_site_that_holds_the_model_before_is_sent_the_difference(fleet, grid, precision):
    ask(fleet, FIRST)
    for old in (FIRST, FIRST):  # the second time it holds the new one already
        new = offer(fleet, SECOND / 3, old, precision)
        assert not torch.equal(new, SECOND)
        assert all(torch.equal(one, new) for one in ask(fleet, new).values())
    assert (sizes(grid), steps(grid)) == (2, 2)
    after = offer(fleet, new + 0.1, new, precision)
    assert torch.equal(ask(fleet, after)[1], after)
    assert (sizes(grid), steps(grid)) == (2, 4)
    assert not fleet.absent


@pytest.mark.parametrize("spoil", ["lost", "another's", "another processor"])
def test_where_a_difference_does_not_come_to_the_model_it_is_sent_whole(fleet, grid, spoil, monkeypatch):
    ask(fleet, FIRST)
    new = offer(fleet, SECOND, FIRST)
    if spoil == "lost":
        (grid.folders[2] / HELD_MODEL_FILE).unlink()
    elif spoil == "another's":
        ask(Fleet(grid, timeout=5.0), SECOND)
    else:
        monkeypatch.setattr(module, "model_of", lambda *_: {"w": new + 1e-7, "b": new[0]})
    before = sizes(grid)
    assert all(torch.equal(one, new) for one in ask(fleet, new).values())
    assert sizes(grid) - before == (1 if spoil == "lost" else 2)
    assert not fleet.absent


def test_what_an_earlier_job_left_at_a_site_is_not_sent_again(fleet, grid):
    ask(fleet, FIRST)
    later = Fleet(grid, timeout=5.0)
    for node, folder in grid.folders.items():
        later.held.note(node, held_name(folder))
    assert torch.equal(ask(later, FIRST)[2], FIRST)
    assert (sizes(grid), held_name(grid.folders[1] / "nowhere")) == (2, "")


def test_a_site_that_never_holds_what_it_is_sent_is_absent(fleet, grid, monkeypatch):
    ask(fleet, FIRST)
    monkeypatch.setattr(
        grid,
        "answer",
        lambda message, _: Message(module.Error(MODEL_NOT_HELD, "no"), reply_to=message),
    )
    assert ask(fleet, FIRST) == {}
    assert set(fleet.absent) == {pseudonym(1), pseudonym(2)}


def test_a_disk_that_is_full_costs_a_message_and_no_round(fleet, grid, monkeypatch):
    monkeypatch.setattr(module, "save_file", full_disk)
    for _ in range(2):
        assert torch.equal(ask(fleet, FIRST)[1], FIRST)
    assert not fleet.absent
    assert not list(grid.folders[1].glob(f"{HELD_MODEL_FILE}*"))


def test_a_site_that_never_keeps_a_model_is_soon_sent_it_at_once_and_that_is_said_once(
    fleet, grid, monkeypatch, caplog
):
    monkeypatch.setattr(module, "save_file", full_disk)
    for messages in (2, 6, 10, 12, 14):  # the first, twice in vain, and then no more than there are
        assert torch.equal(ask(fleet, FIRST)[1], FIRST)
        assert len(grid.contents) == messages
    assert [record.getMessage() for record in caplog.records] == [
        f"{pseudonym(node)} keeps no model; from now on it is sent one with each task" for node in (1, 2)
    ]


def test_a_site_that_lost_its_model_now_and_then_is_not_given_up(fleet, grid, caplog):
    ask(fleet, FIRST)
    for _ in range(3):
        (grid.folders[1] / HELD_MODEL_FILE).unlink()
        ask(fleet, FIRST)
        ask(fleet, FIRST)
    assert (sizes(grid), caplog.records) == (2 + 3, [])


def test_a_model_is_not_believed_to_be_what_its_file_says(fleet, grid):
    ask(fleet, FIRST)
    file = grid.folders[2] / HELD_MODEL_FILE
    save_file(load_file(file) | {"w": SECOND}, file, {"sha256": held_name(grid.folders[2])})
    assert torch.equal(ask(fleet, FIRST)[2], FIRST)
    assert sizes(grid) == 2 + 1


def test_a_model_has_its_name_in_whatever_order_its_arrays_come(fleet, grid):
    """A journal gives them back in another one."""
    ask(fleet, FIRST)
    turned = RecordDict({"model": ArrayRecord.from_torch_state_dict({"b": FIRST[0], "w": FIRST})})
    assert len(list(fleet.exchange(MessageType.TRAIN, dict.fromkeys(grid.folders, turned), "1"))) == 2
    assert sizes(grid) == 2


def test_a_model_that_a_site_refuses_to_work_on_is_not_kept(fleet, grid, monkeypatch):
    def refuse(*_):
        assert not held_name(grid.folders[1])
        raise JobError("The model has the epoch 0, under the fleet's 1: this site does not work on it.")

    monkeypatch.setattr(grid, "answer", refuse)
    assert ask(fleet, FIRST) == {}
    assert not list(grid.folders[1].glob(f"{HELD_MODEL_FILE}*"))
    assert "under the fleet's 1" in fleet.absent[pseudonym(1)]


def test_a_model_is_not_kept_if_a_release_has_come_while_the_site_worked_on_it(fleet, grid, monkeypatch):
    def answer(message, context):
        with Site(Path(context.node_config["site-folder"])) as site:
            site.raise_epoch(1)  # another job's process
        return Message(RecordDict({"seen": message.content["model"]}), reply_to=message)

    monkeypatch.setattr(grid, "answer", answer)
    assert ask(fleet, FIRST).keys() == {1, 2}
    assert not list(grid.folders[1].glob(f"{HELD_MODEL_FILE}*"))


def test_a_folder_that_cannot_be_written_costs_no_round_and_tells_no_path(fleet, grid, monkeypatch):
    def forbidden(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(module, "save_file", full_disk)
    monkeypatch.setattr(Path, "unlink", forbidden)
    assert ask(fleet, FIRST).keys() == {1, 2}
    assert not fleet.absent


def test_whatever_goes_wrong_with_the_held_model_the_coordinator_learns_its_kind_only(fleet, grid, monkeypatch):
    ask(fleet, FIRST)

    def forbidden(file, *_):
        raise RuntimeError(f"Cannot open {file}")

    monkeypatch.setattr(module, "safe_open", forbidden)
    assert ask(fleet, FIRST) == {}
    for folder in grid.folders.values():
        with Site(folder) as site:
            words = fleet.absent.pop(f"site-{site.card.id}")  # a site's error says whose it is
        assert words.endswith(": RuntimeError at this site; its site.log says more.")
    assert not fleet.absent


def test_the_code_of_the_error_is_none_of_flowers():
    assert MODEL_NOT_HELD not in {value for value in vars(ErrorCode).values() if isinstance(value, int)}


FROZEN = ModelCard(architecture="resnet18", classes=("no", "yes"), input=image_input(32), frozen=("b",))


def test_frozen_arrays_are_sent_once_and_again_only_where_they_were_lost(fleet, grid):
    bias = torch.arange(3.0)
    ask(fleet, FIRST, bias, FROZEN)
    for array in (SECOND, FIRST):
        assert all(torch.equal(one, array) for one in ask(fleet, array, bias, FROZEN).values())
    assert (sizes(grid), steps(grid)) == (2, 4)
    (grid.folders[1] / HELD_MODEL_FILE).unlink()
    assert torch.equal(ask(fleet, SECOND, bias, FROZEN)[1], SECOND)
    assert (sizes(grid), steps(grid)) == (3, 6)
    # Others of the same names, and a card that freezes nothing, are sent whole.
    assert torch.equal(ask(fleet, FIRST, bias + 1.0, FROZEN)[1], FIRST)
    assert torch.equal(ask(fleet, SECOND, bias + 1.0, FROZEN.model_copy(update={"frozen": ()}))[1], SECOND)
    assert sizes(grid) == 7
    assert not fleet.absent
