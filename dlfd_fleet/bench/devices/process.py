"""One way to run a model, alone in a process: it loads a model, answers and takes times when its parent asks.

It is run by its path, ``python -P process.py WAY MODEL IMAGES THREADS``: as a module of the bench it would load
all that the bench needs beside a device's runtime. One request a line comes in, one answer a line goes out, both JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Predict = Callable[[Images], Probabilities]
_WARM_UP = 3


class Runner:
    """A model that is loaded and run in one way.

    Parameters
    ----------
    way
        A format of the fleet's files, or torch, torch_channels_last, torch_compile.
    model
        The file; for torch, the folder of ``model.safetensors``.
    images
        uint8 ``(N, S, S, 3)``.
    """

    def __init__(self, way: str, model: Path, images: Images, threads: int) -> None:
        opened = open_in_torch if way.startswith("torch") else open_file
        self._open = opened(way, threads)  # imports the runtime, so that loading is timed without it
        self._model, self._images = model, images
        self._predict: Predict | None = None

    def reply(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what was asked for."""
        if self._predict is None or request["do"] == "load":
            return self._load()
        if request["do"] == "time":
            return self._take_times(self._predict, request["count"])
        said = [self._predict(self._images[number : number + 1]) for number in range(len(self._images))]
        np.save(request["file"], np.concatenate(said))  # one by one, as a device predicts them
        return {}

    def _load(self) -> dict[str, Any]:
        started = time.perf_counter()
        self._predict = self._open(self._model)
        self._predict(self._images[:1])
        return {"seconds": time.perf_counter() - started}

    def _take_times(self, predict: Predict, count: int) -> dict[str, Any]:
        seconds = []
        for number in range(_WARM_UP + count):
            started = time.perf_counter()
            predict(self._images[:1])
            if number >= _WARM_UP:
                seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}


def open_file(_way: str, threads: int) -> Callable[[Path], Predict]:
    """Return what opens an exported file as a device does."""
    from dlfd_fleet.device.inference import DeviceModel

    return lambda file: DeviceModel(file, threads).predict


def open_in_torch(way: str, threads: int) -> Callable[[Path], Predict]:
    """Return what opens a model in torch, with the same preprocessing and softmax."""
    import torch

    from dlfd_fleet.models import load_model

    torch.set_num_threads(threads)

    def opened(folder: Path) -> Predict:
        model = load_model(folder)[0].eval()
        if way == "torch_channels_last":
            model.to(memory_format=torch.channels_last)

        def probabilities(images: torch.Tensor) -> torch.Tensor:
            unit = images.permute(0, 3, 1, 2).float() / 255.0
            logits: torch.Tensor = model(unit if way == "torch_channels_last" else unit.contiguous())
            return logits.softmax(dim=1)

        run = torch.compile(probabilities) if way == "torch_compile" else probabilities

        @torch.inference_mode()
        def predict(images: Images) -> Probabilities:
            said: Probabilities = run(torch.from_numpy(images)).numpy()
            return said

        return predict

    return opened


def main(way: str, model: str, images: str, threads: str) -> None:
    """Answer requests until there are none; an error is an answer too, and the last one."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    try:
        runner = Runner(way, Path(model), np.load(images), int(threads))
        for line in sys.stdin:
            print(json.dumps(runner.reply(json.loads(line))), file=answers, flush=True)
    except Exception as error:
        lines = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines()]
        print(json.dumps({"error": next((line for line in lines if line), "")}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
