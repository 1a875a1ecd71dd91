"""The models of a comparison in their folder, and what each took: what is made is not made again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from dlfd_fleet.bench.cost import peak_memory
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.costs import phase_of, phases_of
from dlfd_fleet.federation.rounds.erasure import Erasure
from dlfd_fleet.report.contents import AttemptMade, Phase

JOB = "bench"
"""Name of the job that sites think all of it is."""


class MadeModel(BaseModel):
    """What a model took, and the norms of the updates that it was made of, by round and site."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    total: Phase
    phases: dict[str, Phase]
    """By kind of step."""
    server_bytes: int
    """What the process of the coordinator and of Flower's engine took beside what it had, at its highest."""
    needed: Phase | None = None
    """Of a retrained model: until it was as accurate on test people as the original, or all of it."""
    norms: dict[int, dict[str, float]] = {}
    attempts_made: tuple[AttemptMade, ...] = ()
    """Of the model of a whole erasure job: what each attempt aimed at, and how it ended."""


@dataclass(frozen=True)
class MadeModels:
    """Models by name, in one folder."""

    folder: Path

    def file(self, name: str) -> Path:
        """Return where a model is, or will be."""
        return self.folder / f"{name.replace(' ', '-')}.safetensors"

    def has(self, name: str) -> bool:
        """Tell whether a model is made."""
        return self.file(name).exists()

    def load(self, name: str) -> Arrays:
        """Return a model."""
        return load_file(self.file(name))

    def note(self, name: str) -> MadeModel:
        """Return what a model took."""
        return MadeModel.model_validate_json(self.file(name).with_suffix(".json").read_text(encoding="utf-8"))

    def save(self, name: str, arrays: Arrays, took: MadeModel | None = None) -> None:
        """Keep a model; it is there once all of it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if took is not None:
            self.file(name).with_suffix(".json").write_text(took.model_dump_json(indent=1), encoding="utf-8")
        new = self.file(name).with_suffix(".new")
        save_file({key: array.contiguous() for key, array in arrays.items()}, new)
        new.replace(self.file(name))


def made(erasure: Erasure, make: Callable[[Erasure], Arrays]) -> tuple[Arrays, MadeModel]:
    """Make a model, and return what its steps took."""
    with peak_memory(torch.device("cpu")) as memory:
        arrays = make(erasure)
    costs = erasure.job.journal.costs
    total = phase_of([cost for _, cost in costs]).model_copy(update={"steps": erasure.job.round})
    return arrays, MadeModel(total=total, phases=phases_of(costs), server_bytes=memory.grown)
