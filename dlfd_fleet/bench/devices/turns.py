"""Processes that each run a model in their own way, and take turns.

The order is drawn anew for each round, so that whatever else the machine does hits all of them, and speeds are compared
within a round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from dlfd_fleet.bench.devices.files import COMPILED, Subject
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.progress import Advance

_CHILD = Path(__file__).with_name("process.py")
_LOADS = 5


class WayFailedError(JobError):
    """A way to run the model does not work on this machine; the message is what it said."""


@dataclass(frozen=True)
class DeviceProcess:
    """A process that runs a model in one way."""

    way: str
    process: subprocess.Popen[str]
    requests: IO[str]
    answers: IO[str]

    def ask(self, do: str, **request: object) -> Any:
        """Send a request, and return the seconds of the answer.

        Raises
        ------
        WayFailedError
            If the process says that it failed, or says nothing.
        """
        try:
            self.requests.write(json.dumps({"do": do} | request) + "\n")
            self.requests.flush()
        except BrokenPipeError:
            pass  # it has failed before, and said so
        line = self.answers.readline()
        answer = json.loads(line) if line else {"error": f"the process of {self.way} died"}
        if "error" in answer:
            raise WayFailedError(answer["error"])
        return answer.get("seconds")

    def resident_bytes(self) -> int:
        """Return the resident memory of the whole process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def device_process(way: str, subject: Subject, images: Path, threads: int) -> Iterator[DeviceProcess]:
    """Start a process that runs a model in one way until the context is left.

    Parameters
    ----------
    images
        ``.npy`` of uint8 ``(N, S, S, 3)``.
    """
    # Nothing that was compiled before is found: a device's first start has no cache.
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": cache}
        process = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, "-P", str(_CHILD), way, str(subject.loaded_by(way)), str(images), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert process.stdin is not None  # noqa: S101 - for mypy: both are pipes
        assert process.stdout is not None  # noqa: S101
        try:
            yield DeviceProcess(way, process, process.stdin, process.stdout)
        finally:
            process.kill()
            process.communicate()


@dataclass
class Turns:
    """What one way took, and what it says.

    Attributes
    ----------
    loads
        Seconds from the file to the first answer.
    rounds
        Seconds of the predictions of each round.
    resident_bytes
        Of the whole process, after its first predictions.
    said
        Probabilities ``(N, C)`` of all images.
    failure
        Why there is nothing.
    """

    loads: list[float] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)
    resident_bytes: int = 0
    said: NDArray[np.float32] | None = None
    failure: str = ""


def answers_of(way: str, subject: Subject, images: Path) -> NDArray[np.float32]:
    """Return the probabilities that a way gives for all images, in a process of its own."""
    with device_process(way, subject, images, threads=1) as process:
        process.ask("load")
        return _said(process)


def take_turns(
    ways: Sequence[str],
    subject: Subject,
    images: Path,
    failed: Mapping[str, str],
    *,
    threads: int,
    rounds: int,
    predictions: int,
    advance: Advance,
) -> dict[str, Turns]:
    """Time every way, one prediction of one image at a time, in rounds in which each has its turn; then hear them all.

    A way that has failed before, or does not work on this machine, has a reason and nothing else.
    """
    turns = {way: Turns(failure=failed.get(way, "")) for way in ways}
    order = np.random.default_rng(threads)
    with ExitStack() as stack:
        running: dict[str, DeviceProcess] = {}
        for way, taken in turns.items():
            if taken.failure:
                continue
            process = stack.enter_context(device_process(way, subject, images, threads))
            try:
                taken.loads.append(process.ask("load"))
                process.ask("time", count=predictions)
            except WayFailedError as error:
                taken.failure = str(error)
            else:
                taken.resident_bytes = process.resident_bytes()
                running[way] = process
        for number in range(rounds):
            for way in order.permutation(list(running)):
                # Compiling again would take longer than all the rest.
                if number < _LOADS and way != COMPILED:
                    turns[way].loads.append(running[way].ask("load"))
                turns[way].rounds.append(running[way].ask("time", count=predictions))
            advance()
        for way, process in running.items():
            turns[way].said = _said(process)
    return turns


def _said(process: DeviceProcess) -> NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as folder:
        process.ask("answer", file=f"{folder}/said.npy")
        said: NDArray[np.float32] = np.load(f"{folder}/said.npy")
        return said
