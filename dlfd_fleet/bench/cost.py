"""What an unlearning costs, in units measured beside it: seconds of one pass, and memory of one ordinary step."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.unlearning import Cost, LabelledImages
from dlfd_fleet.unlearning.training import trained

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_REPEATS = 2


@dataclass
class PeakMemory:
    """Highest memory of this process while a block ran, and what it had before it, bytes; 0 where nothing tells."""

    bytes: int = 0
    before: int = 0

    @property
    def grown(self) -> int:
        """What the block took beside what was there, bytes."""
        return max(0, self.bytes - self.before)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the highest memory while the block runs: of the GPU where there is one, else resident (Linux)."""
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak.before = torch.cuda.memory_allocated(device)
    elif _CLEAR.exists():
        _give_back_freed()
        _CLEAR.write_text("5", encoding="ascii")  # resets the high-water mark, proc(5)
        peak.before = _status("VmRSS")
    yield peak
    if device.type == "cuda":
        peak.bytes = torch.cuda.max_memory_allocated(device)
    elif _CLEAR.exists():
        peak.bytes = _status("VmHWM")


def _give_back_freed() -> None:
    """Let glibc give freed memory back: what it keeps for later would hide what comes next."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(key: str) -> int:
    """Return a size that Linux tells of this process, bytes."""
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def resident_memory() -> int:
    """Return the resident memory of this process, bytes, without what it has freed; 0 where nothing tells."""
    if not _STATUS.exists():
        return 0
    _give_back_freed()
    return _status("VmRSS")


@dataclass(frozen=True)
class PassSeconds:
    """Seconds that one image takes: a training step, noise (forward and back to the pixels), a prediction."""

    train: float
    noise: float
    predict: float

    def mean_with(self, other: PassSeconds) -> PassSeconds:
        """Return the mean of two measurements, such as one before and one after."""
        return PassSeconds(
            (self.train + other.train) / 2, (self.noise + other.noise) / 2, (self.predict + other.predict) / 2
        )

    def least_seconds(self, cost: Cost) -> float:
        """Return the seconds that an unlearning's image passes take by themselves."""
        trained = cost.backward_images - cost.noise_images
        predicted = cost.forward_images - cost.backward_images
        return trained * self.train + cost.noise_images * self.noise + predicted * self.predict


def measure_passes(model: FeatureClassifier, data: LabelledImages, batch_size: int) -> PassSeconds:
    """Time each kind of pass on a batch; the model is trained by it, so give a copy."""
    device = next(model.parameters()).device
    images, labels = data.batch(torch.arange(min(batch_size, len(data))), device)
    optimizer = torch.optim.SGD(trained(model), 1e-6, momentum=0.9)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(model(images), labels))
        optimizer.step()

    def noise() -> None:
        moved = images.clone().requires_grad_(True)
        torch.autograd.grad(functional.cross_entropy(model(moved), labels), moved)

    @torch.inference_mode()
    def predict() -> None:
        model(images)

    model.train()
    train_seconds = _seconds(train, device)
    model.eval()
    model.requires_grad_(False)
    return PassSeconds(
        *(value / len(images) for value in (train_seconds, _seconds(noise, device), _seconds(predict, device)))
    )


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Return the mean seconds of a call, after one that warms up."""
    times = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return sum(times[1:]) / _REPEATS
