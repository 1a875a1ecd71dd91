"""What a device gets from each format: speed, memory, size, accuracy and forgetting, beside torch, in one run."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from dlfd_fleet.answers import agreement
from dlfd_fleet.audit import Role, SampleScores, Scores, judge, measure
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.bench.devices.files import (
    EAGER,
    EAGER_CHANNELS_LAST,
    Subject,
    formats_to_run,
    make_subjects,
    ways_to_run,
)
from dlfd_fleet.bench.devices.report import DeviceRow, console_table, goals, write_report
from dlfd_fleet.bench.devices.turns import Turns, answers_of, take_turns
from dlfd_fleet.bench.experiment import Experiment, deal_experiment
from dlfd_fleet.bench.models import ExperimentModels
from dlfd_fleet.bench.results import log_metrics
from dlfd_fleet.data import open_source
from dlfd_fleet.data.dataset import IdentityDataset
from dlfd_fleet.formats import FP32
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings

THREADS = (1, 2)
_WIDE = 160
_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


class Evidence:
    """All images of an experiment, and what the answers of a model to them are worth."""

    def __init__(self, experiment: Experiment) -> None:
        parts: dict[Role, IdentityDataset] = {
            Role.RETAIN: experiment.retain,
            Role.FORGET: experiment.forget,
            Role.VALIDATION: experiment.validation,
            Role.TEST: experiment.test,
        }
        on_device = experiment.card.input.on_device
        self.images = np.concatenate([on_device(faces.images.numpy()) for faces in parts.values()])
        self._labels = np.concatenate([faces.labels.numpy() for faces in parts.values()])
        names = [name for faces in parts.values() for name in faces.identities]
        self._people = np.unique(names, return_inverse=True)[1].astype(np.int64)
        sizes = [len(faces) for faces in parts.values()]
        self._roles = np.repeat([ROLES.index(role) for role in parts], sizes).astype(np.uint8)
        self._audit, self._seed, self.labels = experiment.settings.audit, experiment.seed, experiment.card.labels

    def scores(self, said: NDArray[np.float32]) -> Scores:
        """Return the scores of probabilities ``(N, C)`` of all images."""
        samples = SampleScores.from_probabilities(said, self._labels, self._people, self._roles)
        return measure(samples, resamples=self._audit.resamples, seed=self._seed, labels=self.labels)

    def outcome(self, original: Scores, scores: Scores) -> str:
        """Return the verdict on answers beside those of the original."""
        return judge(original, scores, self._audit).outcome.value


def devices_command(settings: Settings, console: Console) -> None:
    """Train a model, let it forget, run it in every way that a device could; print, write and log what came of it.

    Raises
    ------
    DataError
        If there are too few people.
    ExportError
        If the fp32 file, which all others are made of, is not near enough to torch.
    """
    folder, progress = settings.state_folder / "bench-devices", ConsoleProgress(console)
    experiment = deal_experiment(open_source(settings.data), settings, settings.seed)
    with progress.phase("Training, forgetting and exporting", 1) as advance:
        original, unlearned = make_subjects(ExperimentModels(experiment, folder / "models"), folder)
        advance()
    rows = _measure(Evidence(experiment), original, unlearned, settings, progress)
    heading = f"{settings.model.architecture}, {settings.data.input.sentence()}, one image at a time; {_machine()}"
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)  # a log has no width of its own
    console.print(console_table(rows, heading))
    for line in goals(rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    page = write_report(rows, folder, heading)
    log_metrics(settings, "bench-devices", [(row.way, row.threads, row.metrics) for row in rows])
    console.print(f"Report: {page}", soft_wrap=True)


def _measure(
    evidence: Evidence, original: Subject, unlearned: Subject, settings: Settings, progress: ConsoleProgress
) -> list[DeviceRow]:
    bench, every = settings.bench, ways_to_run(settings.export)
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary) / "images.npy"
        np.save(images, evidence.images)
        turns: dict[int, dict[str, Turns]] = {}
        failed = dict(unlearned.refused)
        for threads in THREADS:
            with progress.phase(f"Timing, threads: {threads}", bench.device_rounds) as advance:
                turns[threads] = take_turns(
                    every,
                    unlearned,
                    images,
                    failed,
                    threads=threads,
                    rounds=bench.device_rounds,
                    predictions=bench.device_predictions,
                    advance=advance,
                )
            failed |= {way: taken.failure for way, taken in turns[threads].items() if taken.failure}
        ways = [way for way in (EAGER, *formats_to_run(settings.export)) if way not in original.refused]
        with progress.phase("Attacking the original", len(ways)) as advance:
            before = {}
            for way in ways:
                before[way] = evidence.scores(answers_of(way, original, images))
                advance()
    return [
        _row(evidence, unlearned, before, way, threads, of_all) for threads, of_all in turns.items() for way in every
    ]


def _row(
    evidence: Evidence, subject: Subject, before: Mapping[str, Scores], way: str, threads: int, of_all: dict[str, Turns]
) -> DeviceRow:
    taken, eager = of_all[way], of_all[EAGER].said
    if taken.said is None or eager is None:
        return DeviceRow(way=way, threads=threads, note=taken.failure)
    scores, milliseconds = evidence.scores(taken.said), 1000.0 * np.array(taken.rounds)
    metrics = {
        "latency_p50_ms": float(np.median(milliseconds)),
        "latency_p95_ms": float(np.percentile(milliseconds, 95)),
        "images_a_second": 1000.0 / float(milliseconds.mean()),
        "load_seconds": float(np.median(taken.loads)),
        "size_bytes": float(subject.size_bytes(way)),
        "size_beside_fp32": subject.size_bytes(way) / subject.size_bytes(FP32),
        "resident_bytes": float(taken.resident_bytes),
        "agreement": agreement(taken.said, eager, multi_label=evidence.labels is not None),
        "max_abs_difference": float(np.abs(taken.said - eager).max()),
        **{f"speed_beside_{other}": _speed(taken, of_all[other]) for other in (FP32, EAGER, EAGER_CHANNELS_LAST)},
        **scores.metrics(),
    }
    if way in before:
        metrics |= {f"original_{name}": value for name, value in before[way].metrics().items()}
    return DeviceRow(way=way, threads=threads, metrics=metrics, verdict=evidence.outcome(before[EAGER], scores))


def _speed(taken: Turns, other: Turns) -> float:
    """Return how many times as fast as another one a way is: the median of their rounds' ratios."""
    ratios = np.median(np.array(other.rounds), axis=1) / np.median(np.array(taken.rounds), axis=1)
    return float(np.median(ratios))


def _machine() -> str:
    """Return the CPU, its cores and its int8 instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    facts = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", facts.get("Features", "")).split()
    name = facts.get("model name", platform.machine()).strip()
    known = ", ".join(flag for flag in _INSTRUCTIONS if flag in flags)
    return f"{name}, {os.cpu_count()} cores, int8 instructions: {known or 'none known'}"
