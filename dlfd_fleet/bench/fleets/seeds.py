"""The federated comparison: the same sites, requests and audit for every method, beside federated retraining.

Each model is on disk once it is made, so that an interrupted comparison goes on. Virtual nodes share this machine's
cores; seconds of different methods compare, and are no forecast for sites that have machines of their own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from dlfd_fleet.audit import Observation
from dlfd_fleet.bench.cost import peak_memory
from dlfd_fleet.bench.evidence import Baselines, observe
from dlfd_fleet.bench.experiment import Experiment, code_of_networks
from dlfd_fleet.bench.fleets.methods import FEDERATED_METHODS, Situation
from dlfd_fleet.bench.rows import ORIGINAL, RETRAINED, Row, row_of
from dlfd_fleet.data import Manifest, assign_people, choose_people_to_forget, open_source
from dlfd_fleet.data.dataset import load_dataset
from dlfd_fleet.federation.protocol.messages import PendingQuery
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.rounds.audits import Audits
from dlfd_fleet.federation.rounds.erasure import Erasure
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.job_context import JobContext, Recorder, SiteUpdate, Unrecorded
from dlfd_fleet.federation.rounds.requests import ask_pending
from dlfd_fleet.federation.rounds.rounds import Rounds
from dlfd_fleet.ledger.site import Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.models import build, load_arrays, start, state_arrays
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings
from dlfd_fleet.simulation import simulate

if TYPE_CHECKING:
    from flwr.serverapp import Grid

JOB = "bench"
FORGETTING_SITES, PEOPLE_A_SITE = 2, 2
_MEGABYTE = 1e6


class MadeModel(BaseModel):
    """What a model took, and the norms of the updates that it was made of, by round and site."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    bytes_sent: int
    server_bytes: int
    """What the process of the coordinator and of Flower's engine took beside what it had, at its highest."""
    rounds: int
    norms: dict[int, dict[str, float]] = {}


class UpdateLengths(Unrecorded):
    """Keeps how long each site's update of the original training was, by round and site."""

    def __init__(self) -> None:
        self.norms = dict[int, dict[str, float]]()

    def update(self, update: SiteUpdate) -> None:
        """Keep the length of an update of that training."""
        if update.purpose == "train":
            self.norms.setdefault(update.round, {})[update.site] = update.norm.trained


@dataclass(frozen=True)
class FederatedSeed:
    """One seed of the comparison, and where its models are.

    Attributes
    ----------
    settings
        With this seed, and a state folder of its own.
    methods
        Names of :data:`~dlfd_fleet.bench.fleets.methods.FEDERATED_METHODS`.
    """

    settings: Settings
    methods: tuple[str, ...]
    progress: ProgressDisplay

    @property
    def retrained(self) -> list[str]:
        """Names of the retrained models."""
        return [f"{RETRAINED}-{index}" for index in range(self.settings.bench.retrained)]

    def missing(self) -> list[str]:
        """Return the models that are still to be made."""
        names = [ORIGINAL, *self.retrained, *self.methods]
        return [name for name in names if not self._file(f"{name}.relearned").exists()]

    def run(self, deadline: float) -> None:
        """Make the models that are missing, until the deadline (:func:`time.monotonic`)."""
        if not self.missing() or time.monotonic() >= deadline:
            return
        if not (self.settings.state_folder / "sites").exists():
            deal_to_sites(self.settings, self.progress)
        simulate(self.settings, lambda grid: self._make_models(grid, deadline))

    # ------------------------------------------------------------------ making models

    def _make_models(self, grid: Grid, deadline: float) -> None:
        fleet = self._fleet(grid)
        fleet.wait_for_nodes(self.settings.data.sites, self.settings.fleet.connect_seconds)
        nodes = frozenset(ask_pending(fleet, PendingQuery(job=JOB)))
        original = self._made(ORIGINAL, grid, nodes, lambda one: one.rounds.train(self._fresh(0)))
        self._ask_to_be_forgotten()
        nodes = frozenset(ask_pending(fleet, PendingQuery(job=JOB, take=True)))
        for number, name in enumerate(self.retrained, start=1):
            if time.monotonic() >= deadline:
                return

            def retrain(one: Erasure, number: int = number) -> Arrays:
                return one.rounds.train(self._fresh(number), "retrain")

            self._made(name, grid, nodes, retrain)
        audited = self._erasure(fleet).audits.audit(original, "Attacking the original model", ORIGINAL)
        for name in self.methods:
            if time.monotonic() >= deadline:
                return

            def forget(one: Erasure, name: str = name) -> Arrays:
                situation = Situation(audited, self._fresh(0), self._note(ORIGINAL).norms)
                return FEDERATED_METHODS[name].run(one, situation)

            # As after the job that trained it, sites hold the model that forgets; other methods have left theirs.
            if not self._file(name).exists():
                self._erasure(self._fleet(grid, nodes)).audits.gate_samples(original, name)
            self._made(name, grid, nodes, forget)

    def _made(self, name: str, grid: Grid, nodes: frozenset[int], make: Callable[[Erasure], Arrays]) -> Arrays:
        """Return a model, made now unless it was made before; a copy of it is trained on, to see what comes back."""
        if not self._file(name).exists():
            lengths, fleet = UpdateLengths(), self._fleet(grid, nodes)
            erasure = self._erasure(fleet, name, lengths)
            started = time.perf_counter()
            with peak_memory(torch.device("cpu")) as memory:
                arrays = make(erasure)
            took = MadeModel(
                seconds=time.perf_counter() - started,
                bytes_sent=fleet.sent_bytes + fleet.received_bytes,
                server_bytes=memory.grown,
                rounds=erasure.job.round,
                norms=lengths.norms,
            )
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file(name).with_suffix(".json").write_text(took.model_dump_json(indent=1), encoding="utf-8")
            self._save(name, arrays)
        arrays = load_file(self._file(name))
        if not self._file(f"{name}.relearned").exists():
            self._save(f"{name}.relearned", self._relearned(grid, nodes, arrays))
        return arrays

    def _relearned(self, grid: Grid, nodes: frozenset[int], arrays: Arrays) -> Arrays:
        training, rounds = self.settings.training, self._erasure(self._fleet(grid, nodes)).rounds
        with self.progress.phase("Training on", len(nodes)) as advance:
            return rounds.fit_round(arrays, "relearn", training.local_epochs, training.learning_rate, advance)

    def _fresh(self, number: int) -> Arrays:
        torch.manual_seed(self.settings.seed * 100 + number)
        return state_arrays(start(self.experiment.card, self.settings.model.weights))

    def _erasure(self, fleet: Fleet, name: str = "", recorder: Recorder | None = None) -> Erasure:
        """Return the rounds and audits of a method, or of plain training without a name."""
        method = FEDERATED_METHODS.get(name)
        job = JobContext(
            fleet=fleet,
            card=self.experiment.card,
            settings=method.set(self.settings) if method else self.settings,
            name=JOB,
            progress=self.progress,
            recorder=recorder or Unrecorded(),
        )
        rounds, audits = Rounds(job), Audits(job)
        return Erasure(rounds, audits, method.forget) if method else Erasure(rounds, audits)

    def _fleet(self, grid: Grid, nodes: frozenset[int] = frozenset()) -> Fleet:
        """Return a fleet that nobody has counted for; of these nodes, which say again what they hold."""
        fleet = Fleet(grid, self.settings.fleet.reply_timeout_seconds, 1.0, members=nodes)
        if nodes:
            ask_pending(fleet, PendingQuery(job=JOB))
        return fleet

    def _ask_to_be_forgotten(self) -> None:
        for name, people in self._forgotten.items():
            (folder,) = [folder for folder in site_folders(self.settings.state_folder) if folder.name == name]
            with Site(folder) as site:
                for person in people:
                    if not site.gone([person]):
                        request_forgetting(site, person, deadline_days=self.settings.erasure.deadline_days)

    # ------------------------------------------------------------------ comparing them

    def rows(self) -> list[Row]:
        """Return a row for each model there is; none before the baselines are."""
        made = [name for name in (ORIGINAL, *self.retrained, *self.methods) if name not in self.missing()]
        if not {ORIGINAL, *self.retrained} <= set(made):
            return []
        retrained, again = [self._observed(name) for name in self.retrained], self._observed
        baselines = Baselines(self._observed(ORIGINAL), retrained, retrained, again(f"{self.retrained[0]}.relearned"))
        rows = []
        for name in made:
            index = self.retrained.index(name) if name in self.retrained else 0
            beside, method = baselines, name
            if name in self.retrained:
                others = [one for one in retrained if one is not retrained[index]]
                other = again(f"{self.retrained[index - 1]}.relearned")
                beside, method = Baselines(baselines.original, others, retrained, other), RETRAINED
            model = retrained[index] if name in self.retrained else self._observed(name)
            rows.append(
                row_of(
                    self.experiment,
                    beside,
                    method,
                    model,
                    again(f"{name}.relearned"),
                    self._costs(name),
                    index=index,
                )
            )
        return rows

    def _costs(self, name: str) -> dict[str, float]:
        """Return what a method took; of the original, which no method makes, nothing."""
        if name == ORIGINAL:
            return {}
        retraining = [self._note(one) for one in self.retrained]
        seconds = sum(one.seconds for one in retraining) / len(retraining)
        sent = sum(one.bytes_sent for one in retraining) / len(retraining)
        mine, sites = self._note(name), self.settings.data.sites
        stored = FEDERATED_METHODS[name].stored_rounds(self.settings.training.rounds) if name in self.methods else 0
        size = sum(array.numel() * array.element_size() for array in load_file(self._file(name)).values())
        return {
            "seconds": mine.seconds,
            "share_of_retraining_time": mine.seconds / seconds,
            "share_of_retraining_bytes": mine.bytes_sent / sent,
            "megabytes_a_site": mine.bytes_sent / sites / _MEGABYTE,
            "rounds": float(mine.rounds),
            "stored_megabytes": stored * sites * size / _MEGABYTE,
            "server_megabytes": mine.server_bytes / _MEGABYTE,
        }

    def _observed(self, name: str) -> Observation:
        model = build(self.experiment.card)
        load_arrays(model, load_file(self._file(name)))
        return observe(model, self.experiment)

    @cached_property
    def _dealt(self) -> Manifest:
        """The people, dealt as :func:`~dlfd_fleet.ledger.site_setup.deal_to_sites` does it."""
        data = self.settings.data
        return assign_people(
            open_source(data),
            validation_people=data.validation_people,
            test_people=data.test_people,
            sites=data.sites,
            seed=self.settings.seed,
        )

    @cached_property
    def _forgotten(self) -> dict[str, list[str]]:
        """Who asks, by site: at some sites only, as in any fleet."""
        sites = sorted({row.site for row in self._dealt.rows if row.site})[:FORGETTING_SITES]
        return choose_people_to_forget(self._dealt, sites, PEOPLE_A_SITE)

    @cached_property
    def experiment(self) -> Experiment:
        """The same people as at the sites, in one place: who is retained, forgotten and never seen."""
        gone = {person for people in self._forgotten.values() for person in people}
        faces = load_dataset(self._dealt, model_input=self.settings.data.input)
        train = faces.of_split("train")
        return Experiment(
            settings=self.settings,
            seed=self.settings.seed,
            retain=train.without_people(gone),
            forget=train.of_people(gone),
            validation=faces.of_split("validation"),
            test=faces.of_split("test"),
        )

    # ------------------------------------------------------------------ the files

    @property
    def _folder(self) -> Path:
        return self.settings.state_folder / "models"

    def _file(self, name: str) -> Path:
        return self._folder / f"{name.replace(' ', '-')}.safetensors"

    def _note(self, name: str) -> MadeModel:
        return MadeModel.model_validate_json(self._file(name).with_suffix(".json").read_text(encoding="utf-8"))

    def _save(self, name: str, arrays: Arrays) -> None:
        new = self._file(name).with_suffix(".new")
        save_file({key: array.contiguous() for key, array in arrays.items()}, new)
        new.replace(self._file(name))


def federated_seeds(settings: Settings, seeds: int, folder: Path, progress: ProgressDisplay) -> list[FederatedSeed]:
    """Return the seeds of a comparison, each in a folder named by what decides its models: settings, and networks."""
    tree = settings.model_dump_json(include={"data", "model", "training", "unlearning", "erasure", "bench", "fleet"})
    key = hashlib.sha256("".join((tree, *code_of_networks(settings.model))).encode()).hexdigest()[:12]
    return [
        FederatedSeed(
            settings.model_copy(update={"seed": seed, "state_folder": folder / f"{key}-seed-{seed}"}),
            tuple(FEDERATED_METHODS),
            progress,
        )
        for seed in range(seeds)
    ]
