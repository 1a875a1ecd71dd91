"""How much memory a site takes: its folder is made, and a first epoch is trained, in a process of their own.

The images are drawn by a loader that has no disk, so all that there is of them is the site's file of decoded rows.
"""

from __future__ import annotations

import csv
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dlfd_fleet.bench.cost import peak_memory
from dlfd_fleet.bench.load.counts import parse_counts
from dlfd_fleet.bench.workers import worker_processes
from dlfd_fleet.components import Component
from dlfd_fleet.data import PersonDataset
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.federation.protocol.messages import FitTask
from dlfd_fleet.federation.site.training import run_fit
from dlfd_fleet.ledger import init_site
from dlfd_fleet.models import ModelCard, build, state_arrays
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings

_MEBIBYTE, _IMAGES_A_PERSON, _CLASSES = 2**20, 20, ("no", "yes")


@dataclass(frozen=True)
class SiteMemory:
    """What a site of so many images took.

    Attributes
    ----------
    data_mebibytes
        Of the images, decoded.
    peak_mebibytes
        Highest resident memory of the process, with Python, torch and the model.
    decode_seconds, epoch_seconds
        To make the site's folder, and to train for one epoch on all images.
    """

    images: int
    data_mebibytes: float
    peak_mebibytes: float
    decode_seconds: float
    epoch_seconds: float

    @property
    def share(self) -> float:
        """The peak, in sizes of the data."""
        return self.peak_mebibytes / self.data_mebibytes


def drawn_images(images: int, channels: int, height: int, width: int) -> PersonDataset:
    """Return images of noise on a level that tells their class: a loader."""
    people = [f"person-{number // _IMAGES_A_PERSON:06d}" for number in range(images)]
    return PersonDataset(_Drawn(images, (channels, height, width)), people, classes=_CLASSES)


class _Drawn:
    def __init__(self, images: int, shape: tuple[int, int, int]) -> None:
        self._images, self._shape = images, shape

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        label = index % len(_CLASSES)
        drawn = np.random.default_rng(index).integers(0, 192, self._shape, dtype=np.uint8)
        return drawn + np.uint8(63 * label), label


def measure_site(settings: Settings, images: int, folder: Path) -> SiteMemory:
    """Make a site of drawn images in a folder, and train on them for one epoch.

    Raises
    ------
    ConfigurationError
        If the model takes no images, or the system does not tell a process's memory.
    """
    taken, training = settings.data.input, settings.training
    if not taken.is_image:
        raise ConfigurationError("This bench draws images; do not set data.numbers.")
    with peak_memory(torch.device("cpu")) as peak:
        started = time.perf_counter()
        size = dict(zip(("channels", "height", "width"), taken.shape, strict=True))
        loader = Component(name=f"{__name__}:{drawn_images.__name__}", arguments={"images": images, **size})
        with init_site(folder, name="bench", loader=loader, model_input=taken) as site:
            decoded = time.perf_counter()
            card = ModelCard(architecture=settings.model.architecture, classes=_CLASSES, input=taken)
            task = FitTask(
                job="bench",
                purpose="train",
                round=1,
                card=card,
                training=training,
                augmentation=training.augmentation,
                class_weights=(1.0, 1.0),
                epochs=1,
                learning_rate=training.learning_rate,
                final=False,
                precision="float32",
                seed=settings.seed,
            )
            run_fit(site, task, state_arrays(build(card)))
        ended = time.perf_counter()
    if not peak.bytes:
        raise ConfigurationError("Only Linux reports the peak memory of a process; run this bench there.")
    data = images * int(np.prod(taken.shape)) / _MEBIBYTE
    return SiteMemory(images, data, peak.bytes / _MEBIBYTE, decoded - started, ended - decoded)


def memory_command(settings: Settings, images: str, console: Console) -> None:
    """Measure a site for each number of images, each in a process of its own; print and write what came of it.

    Raises
    ------
    ConfigurationError
        If the numbers are none, or nothing can be measured here.
    """
    counts = parse_counts(images, "images", least=len(_CLASSES))
    measured = list[SiteMemory]()
    folder = settings.state_folder / "bench-memory"
    folder.mkdir(parents=True, exist_ok=True)
    with ConsoleProgress(console).phase("The first epoch at a site", len(counts)) as advance:
        for count in counts:
            with tempfile.TemporaryDirectory(dir=folder) as scratch, worker_processes(1) as pool:
                measured.append(pool.submit(measure_site, settings, count, Path(scratch) / "site").result())
            advance()
    with (folder / "memory.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(asdict(measured[0])))
        writer.writeheader()
        writer.writerows(asdict(one) for one in measured)
    title = f"{settings.model.architecture}, {settings.data.input.sentence()}, one epoch"
    table = Table("images", "data MiB", "peak MiB", "peak / data", "decoding s", "epoch s", title=title)
    for one in measured:
        figures = (f"{one.data_mebibytes:.0f}", f"{one.peak_mebibytes:.0f}", f"{one.share:.2f}")
        table.add_row(str(one.images), *figures, f"{one.decode_seconds:.0f}", f"{one.epoch_seconds:.0f}")
    console.print(table)
