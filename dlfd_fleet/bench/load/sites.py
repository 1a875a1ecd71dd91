"""How the coordinator's memory and time grow with its sites: the real rounds, and sites that answer without computing.

A site's answer comes into being when it is pulled and is nobody's but the coordinator's, as with Flower's grid, whose
SuperLink holds it elsewhere. What is measured is the coordinator's own: unpacking, checking and folding in.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from dlfd_fleet.bench.cost import peak_memory
from dlfd_fleet.bench.load.counts import parse_counts
from dlfd_fleet.bench.workers import worker_processes
from dlfd_fleet.federation.protocol.messages import FitResult, PendingReply
from dlfd_fleet.federation.protocol.packing import MODEL, arrays_of
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.job_context import JobContext
from dlfd_fleet.federation.rounds.rounds import Rounds
from dlfd_fleet.models import ModelCard, build, state_arrays
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings

if TYPE_CHECKING:
    from flwr.serverapp import Grid

_MEBIBYTE, _IMAGES = 2**20, 10


@dataclass(frozen=True)
class Measurement:
    """One round of plain training with this many sites.

    Attributes
    ----------
    seconds
        Of the coordinator: without the time in which sites' answers came into being.
    peak_mebibytes
        Highest resident memory of the round, above what the process had before it.
    """

    sites: int
    seconds: float
    peak_mebibytes: float
    model_mebibytes: float

    @property
    def milliseconds_a_site(self) -> float:
        """What one site costs the coordinator in a round."""
        return 1000.0 * self.seconds / self.sites

    @property
    def models(self) -> float:
        """The peak, in models."""
        return self.peak_mebibytes / self.model_mebibytes


class AnsweringGrid:
    """A grid whose sites answer at once, each with a model a little off the one that it was sent."""

    def __init__(self, sites: int) -> None:
        self.sites, self.seconds = sites, 0.0
        self._asked: dict[str, Message] = {}

    def get_node_ids(self) -> range:
        """Return the nodes."""
        return range(1, self.sites + 1)

    def get_nodes(self) -> list[NodeInfo]:
        """Return what Flower tells of them."""
        return [NodeInfo(node_id=node) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages, and return their ids."""
        self._asked = {str(number): message for number, message in enumerate(messages)}
        return list(self._asked)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the answers to messages."""
        for message_id in message_ids:
            started = time.perf_counter()
            answer = self._answer(self._asked.pop(message_id))
            self.seconds += time.perf_counter() - started
            yield answer

    def _answer(self, message: Message) -> Message:
        arrays = arrays_of(message.content, MODEL, "the coordinator")
        factor = 1.0 + 1e-4 * (message.metadata.dst_node_id % 7)
        trained = {name: array * factor if array.is_floating_point() else array for name, array in arrays.items()}
        result = FitResult(epoch=0, examples=_IMAGES, loss=1.0, seconds=0.0)
        return Message(result.to_records(model=trained), reply_to=message)


def measure_round(settings: Settings, sites: int) -> Measurement:
    """Run one round of plain training, and measure the coordinator."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # Flower names who makes a message
    card = ModelCard(architecture=settings.model.architecture, classes=("no", "yes"), input=settings.data.input)
    arrays, grid = state_arrays(build(card)), AnsweringGrid(sites)
    fleet = Fleet(cast("Grid", grid), settings.fleet.reply_timeout_seconds)
    pending = {
        node: PendingReply(
            site=f"{node:08x}",
            requests=(),
            dates={},
            forget_images=0,
            class_images=(_IMAGES // 2, _IMAGES // 2),
            classes=card.classes,
            input=card.input,
        )
        for node in grid.get_node_ids()
    }
    fleet.admit(pending)
    silent = ConsoleProgress(Console(quiet=True))
    rounds = Rounds(JobContext(fleet=fleet, card=card, settings=settings, name="bench", progress=silent))
    started = time.perf_counter()
    with peak_memory(torch.device("cpu")) as peak:
        rounds.fit_round(arrays, "train", 1, 0.1, lambda: None)
    seconds = time.perf_counter() - started - grid.seconds
    size = sum(array.numel() * array.element_size() for array in arrays.values())
    return Measurement(sites, seconds, peak.grown / _MEBIBYTE, size / _MEBIBYTE)


def sites_command(settings: Settings, sites: str, console: Console) -> None:
    """Measure a round for each number of sites, each in a process of its own; print and draw what came of it.

    Raises
    ------
    ConfigurationError
        If the numbers are none.
    """
    counts = parse_counts(sites, "sites")
    measured = []
    with ConsoleProgress(console).phase("One round with more and more sites", len(counts)) as advance:
        for count in counts:
            with worker_processes(1) as pool:
                measured.append(pool.submit(measure_round, settings, count).result())
            advance()
    folder = settings.state_folder / "bench-scale"
    _write(measured, folder)
    table = Table(
        "sites", "seconds", "ms a site", "peak MiB", "models", title=f"{settings.model.architecture}, one round"
    )
    for one in measured:
        figures = (one.seconds, one.milliseconds_a_site, one.peak_mebibytes, one.models)
        table.add_row(str(one.sites), *(f"{figure:.1f}" for figure in figures))
    console.print(table)
    console.print(f"Plot: {folder / 'scale.png'}", soft_wrap=True)


def _write(measured: list[Measurement], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "scale.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(asdict(measured[0])))
        writer.writeheader()
        writer.writerows(asdict(one) for one in measured)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2)
    sites = [one.sites for one in measured]
    time_axis.plot(sites, [one.seconds for one in measured], marker="o")
    time_axis.set(xscale="log", yscale="log", xlabel="sites", ylabel="seconds of the coordinator")
    memory_axis.plot(sites, [one.models for one in measured], marker="o")
    memory_axis.set(xscale="log", ylim=(0, None), xlabel="sites", ylabel="peak memory, models")
    figure.savefig(folder / "scale.png", dpi=110)
