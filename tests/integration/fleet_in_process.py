"""A fleet whose sites answer in this process: the real ServerApp code, ClientApp, ledgers and files, without Ray.

Their networks are small ones.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console

from client.app import app as client_app
from dlfd_fleet.data import synthesize, write_manifest
from dlfd_fleet.federation.jobs.run import run_jobs
from dlfd_fleet.federation.records.steps import Steps
from dlfd_fleet.ledger import Ledger, Site, request_forgetting, site_folders
from dlfd_fleet.ledger.ledger import ForgetRequest
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings
from tests.small_networks import small_networks

KILLED = 9


def small_settings(state: Path, manifest: Path, sites: int = 2) -> Settings:
    return Settings(
        state_folder=state,
        data={
            "source": "manifest",
            "manifest": manifest,
            "image_size": 32,
            "sites": sites,
            "validation_people": 2,
            "test_people": 2,
        },
        model={"architecture": "mobilenet_v3_small"},
        training={"rounds": 2, "local_epochs": 1, "batch_size": 8},
        erasure={
            "rounds": 2,
            "unlearning": {"batch_size": 8, "max_utility_drop": 1.0},
            "repair_epochs": 1,
            "largest_forget_share": 1.0,
        },
        # A dozen drawings cannot show anything: what is tested is the way, so the bounds are wide.
        audit={
            "resamples": 200,
            "margin": 0.49,
            "max_accuracy_drop": 1.0,
            "max_retain_drop": 1.0,
            "min_gain_over_majority": -1.0,
        },
        # Nobody listens there: the outbox keeps what is told.
        tracking={"uri": "http://127.0.0.1:9"},
    )


def by_the_fleets_gate(settings: Settings) -> Settings:
    """The same with erasures that aim at nothing: all sites repair, and answer the gate of the fleet."""
    return settings.model_copy(update={"erasure": settings.erasure.model_copy(update={"own_answers": False})})


def trained_fleet(folder: Path, *, unseen: bool = True) -> Settings:
    """Settings of a fleet of two sites that has trained a model on a few drawn faces, perhaps with nobody unseen."""
    silent = ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=14, images_per_person=3, image_size=32, classes=2, seed=0, progress=silent
    )
    settings = small_settings(folder / "state", manifest)
    deal_to_sites(settings, silent)
    for site_folder in () if unseen else site_folders(settings.state_folder):
        with Site(site_folder) as site:
            write_manifest([row for row in site.manifest().rows if row.split == "train"], site.manifest_file)
    run_job(settings, "train")
    return settings


def a_person_asks_at_each_site(settings: Settings) -> list[ForgetRequest]:
    """What the sites' ledgers have of it."""
    asked = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            person = next(row.identity for row in site.manifest().rows if row.split == "train")
            asked.append(request_forgetting(site, person, deadline_days=30))
    return asked


class InProcessGrid:
    """Answers each message at once, with the fleet's own ClientApp on the site folder of its node."""

    def __init__(self, settings: Settings, absent: frozenset[int] = frozenset(), first_node: int = 1, app=client_app):
        folders = site_folders(settings.state_folder)
        self.nodes = {first_node + number: folder for number, folder in enumerate(folders)}
        self.absent, self.app = absent, app
        self.replies: dict[str, Message] = {}
        self.seen: list[Message] = []

    def get_nodes(self):
        return [NodeInfo(node_id=node) for node in self.nodes if node not in self.absent]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            message.metadata._message_id = f"message-{len(self.seen)}"
            self.seen.append(message)
            node = message.metadata.dst_node_id
            context = Context(
                run_id=1,
                node_id=node,
                node_config={"site-folder": str(self.nodes[node])},
                state=RecordDict(),
                run_config={},
            )
            if node not in self.absent:
                # As over a network: what a node does to its message nobody else sees.
                own = Message(RecordDict(dict(message.content)), node, message.metadata.message_type)
                own.metadata._message_id = message.metadata.message_id
                self.replies[message.metadata.message_id] = self.answer(own, context)
            ids.append(message.metadata.message_id)
        return ids

    def answer(self, message, context):
        try:
            return self.app(message, context)
        except Exception as error:
            from flwr.app import Error

            return Message(Error(code=0, reason=str(error)), reply_to=message)

    def get_node_ids(self):
        return [node.node_id for node in self.get_nodes()]

    def send_and_receive(self, messages, *, timeout=None):
        return list(self.pull_messages(self.push_messages(messages)))

    def pull_messages(self, message_ids):
        for message_id in message_ids:
            reply = self.replies.pop(message_id, None)
            if reply is not None:
                self.seen.append(reply)
                yield reply


def answer_here(settings: Settings, jobs, app=client_app) -> None:
    """Run jobs as ``simulate`` does, but in this process; virtual nodes have tests of their own."""
    be_a_server()
    with small_networks():
        jobs(InProcessGrid(settings, app=app))


def be_a_server() -> None:
    torch.set_num_threads(1)
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, 1)


def run_job(settings: Settings, kind: str, grid: InProcessGrid | None = None, out: io.StringIO | None = None):
    """Run a job to its end, in a process that may be killed on the way; ``out`` takes what it prints."""
    be_a_server()
    progress = ConsoleProgress(Console(file=out or io.StringIO()))
    with small_networks():
        return run_jobs(grid or InProcessGrid(settings), kind, settings, progress)


@contextmanager
def interrupted_before(step: str) -> Iterator[None]:
    """Interrupt the job in this block just before it writes a step, as a signal would."""
    finish = Steps.finish

    def stopping(self, job, finished):
        if finished.name == step:
            raise KeyboardInterrupt
        return finish(self, job, finished)

    with mock.patch.object(Steps, "finish", stopping), pytest.raises(KeyboardInterrupt):
        yield


def run_and_die(settings: Settings, kind: str, what: str, number: int) -> None:
    """Run a job in a process that dies, as by SIGKILL, just before its n-th write of one kind; or exits with 0."""
    owner, name = {"step": (Steps, "finish"), "ledger": (Ledger, "move")}[what]
    write, count = getattr(owner, name), 0

    def dying(*arguments, **named):
        nonlocal count
        count += 1
        if count == number:
            os._exit(KILLED)
        return write(*arguments, **named)

    with mock.patch.object(owner, name, dying):
        # Another process has other node ids, as SuperNodes that were started again have.
        run_job(settings, kind, InProcessGrid(settings, first_node=10 * os.getpid()))
    os._exit(0)
