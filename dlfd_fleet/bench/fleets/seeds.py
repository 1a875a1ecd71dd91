"""One seed of the federated comparison: its fleet, the original model, and what reference models say.

Each model is on disk once it is made, so that an interrupted comparison goes on. Virtual nodes share this machine's
cores; seconds of different methods compare, and are no forecast for sites that have machines of their own.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dlfd_fleet.bench.experiment import Experiment, code_of_networks
from dlfd_fleet.bench.fleets.asked_fleet import AskedFleet
from dlfd_fleet.bench.fleets.asking import Asking
from dlfd_fleet.bench.fleets.made_models import JOB, MadeModel, MadeModels, made
from dlfd_fleet.bench.fleets.methods import FEDERATED_METHODS
from dlfd_fleet.bench.rows import ORIGINAL
from dlfd_fleet.data import Manifest, assign_people, open_source
from dlfd_fleet.data.dataset import IdentityDataset, load_dataset
from dlfd_fleet.federation.protocol.messages import PendingQuery
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.journal import Journal
from dlfd_fleet.federation.rounds.audits import Audits
from dlfd_fleet.federation.rounds.erasure import AtAskedSites, Erasure, ForgettingRound
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.job_context import JobContext, SiteUpdate, Unrecorded
from dlfd_fleet.federation.rounds.references import References
from dlfd_fleet.federation.rounds.requests import ask_pending
from dlfd_fleet.federation.rounds.rounds import Rounds
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.models import start, state_arrays
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import Settings
from dlfd_fleet.simulation import simulate

if TYPE_CHECKING:
    from flwr.serverapp import Grid

_REFERENCES_FILE = "references.json"


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

    Under its folder are the sites as they were when the original was trained; ``with-references``, a copy in which
    sites have the answers of reference models; and a folder for each way to ask, which has copies of its own.

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
    def models(self) -> MadeModels:
        """The original."""
        return MadeModels(self.settings.state_folder / "models")

    @cached_property
    def asked(self) -> tuple[AskedFleet, ...]:
        """The fleet once for each way to ask."""
        return tuple(AskedFleet(self, Asking(text)) for text in self.settings.bench.requests)

    def run(self, deadline: float) -> None:
        """Make the models that are missing, until the deadline (:func:`time.monotonic`)."""
        if not any(fleet.missing() for fleet in self.asked) or time.monotonic() >= deadline:
            return
        for fleet in self.asked:
            fleet.people  # noqa: B018 - what cannot be asked is said before anything is trained
        self.prepare(references=self._needs_references, deadline=deadline)
        for fleet in self.asked:
            fleet.run(deadline)

    def prepare(self, *, references: bool, deadline: float = math.inf) -> None:
        """Deal the people to sites, train the original, perhaps make reference models, as far as that is not done."""
        if not (self.settings.state_folder / "sites").exists():
            deal_to_sites(self.settings, self.progress)
        if not self.models.has(ORIGINAL):
            self.simulate(self.settings, self._train)
        if references and self.references is None and time.monotonic() < deadline:
            self._make_references()

    @property
    def _needs_references(self) -> bool:
        return any(FEDERATED_METHODS[name].references for name in self.methods)

    @property
    def with_references(self) -> Path:
        """The folder whose sites have the answers of reference models."""
        return self.settings.state_folder / "with-references"

    @property
    def references(self) -> MadeModel | None:
        """What the reference models took, once they are made."""
        file = self.with_references / _REFERENCES_FILE
        return MadeModel.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None

    def simulate(self, settings: Settings, work: Callable[[Grid], None]) -> None:
        """Run some work on virtual nodes of a state folder's sites."""
        simulate(settings, work)

    # ------------------------------------------------------------------ making models

    def _train(self, grid: Grid) -> None:
        fleet = self.fleet(grid)
        fleet.wait_for_nodes(self.settings.data.sites, self.settings.fleet.connect_seconds)
        nodes = frozenset(ask_pending(fleet, PendingQuery(job=JOB)))
        lengths = UpdateLengths()
        erasure = self.erasure(self.fleet(grid, nodes), recorder=lengths)
        arrays, took = made(erasure, lambda one: one.rounds.train(self.fresh(0)))
        self.models.save(ORIGINAL, arrays, took.model_copy(update={"norms": lengths.norms}))

    def _make_references(self) -> None:
        """Make reference models on a copy of the sites: killed in between, they are made anew."""
        new = self.with_references.with_name("with-references.new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(self.settings.state_folder / "sites", new / "sites")
        settings = self.settings.model_copy(update={"state_folder": new})

        def make(grid: Grid) -> None:
            fleet = self.fleet(grid)
            fleet.wait_for_nodes(settings.data.sites, settings.fleet.connect_seconds)
            nodes = frozenset(ask_pending(fleet, PendingQuery(job=JOB)))
            original = self.models.load(ORIGINAL)

            def train(one: Erasure) -> Arrays:
                for _ in References(one.rounds).make(original, settings.references.models):
                    pass
                return {}

            # As after the job that trained it, sites hold the original: references go to them as differences from it.
            holding = self.fleet(grid, nodes)
            self.erasure(holding).audits.gate_samples(original, ORIGINAL)
            _, took = made(self.erasure(holding), train)
            (new / _REFERENCES_FILE).write_text(took.model_dump_json(indent=1), encoding="utf-8")

        self.simulate(settings, make)
        new.replace(self.with_references)

    def fresh(self, number: int) -> Arrays:
        """Return weights that a training begins with; 0 are the original's."""
        torch.manual_seed(self.settings.seed * 100 + number)
        return state_arrays(start(self.experiment.card, self.settings.model.weights))

    def erasure(self, fleet: Fleet, name: str = "", recorder: UpdateLengths | None = None) -> Erasure:
        """Return the rounds and audits of a method by its name, or of plain training without a name."""
        method = FEDERATED_METHODS.get(name)
        if method is None:
            return self.erasure_by(AtAskedSites(), fleet, self.settings, recorder)
        return self.erasure_by(method.forget, fleet, method.set(self.settings), recorder)

    def erasure_by(
        self, forget: ForgettingRound, fleet: Fleet, settings: Settings, recorder: UpdateLengths | None = None
    ) -> Erasure:
        """Return the rounds and audits of a round that forgets, under these settings."""
        job = JobContext(
            fleet=fleet,
            card=self.experiment.card,
            settings=settings,
            name=JOB,
            progress=self.progress,
            journal=Journal(traffic=fleet),
            recorder=recorder or Unrecorded(),
        )
        return Erasure(Rounds(job), Audits(job), forget)

    def fleet(self, grid: Grid, nodes: frozenset[int] = frozenset()) -> Fleet:
        """Return a fleet that nobody has counted for; of these nodes, which say again what they hold."""
        fleet = Fleet(grid, self.settings.fleet.reply_timeout_seconds, 1.0, members=nodes)
        if nodes:
            ask_pending(fleet, PendingQuery(job=JOB))
        return fleet

    # ------------------------------------------------------------------ the people

    @cached_property
    def dealt(self) -> Manifest:
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
    def images(self) -> IdentityDataset:
        """The images of everybody."""
        return load_dataset(self.dealt, model_input=self.settings.data.input)

    @cached_property
    def experiment(self) -> Experiment:
        """The same people as at the sites, in one place, when nobody has asked: card, test people."""
        return self.experiment_without(frozenset())

    def experiment_without(self, gone: frozenset[str]) -> Experiment:
        """Return who is retained, forgotten and never seen."""
        train = self.images.of_split("train")
        return Experiment(
            settings=self.settings,
            seed=self.settings.seed,
            retain=train.without_people(gone),
            forget=train.of_people(gone),
            validation=self.images.of_split("validation"),
            test=self.images.of_split("test"),
        )


def federated_seeds(
    settings: Settings, seeds: int, folder: Path, progress: ProgressDisplay, methods: tuple[str, ...]
) -> list[FederatedSeed]:
    """Return the seeds of a comparison, each in a folder named by what decides its models: settings, and networks.

    Who asks has a folder under it, so that another way to ask goes on from the same original.
    """
    sections = {"data", "model", "training", "unlearning", "erasure", "references", "bench", "fleet"}
    tree = settings.model_dump_json(include=sections, exclude={"bench": {"requests"}})
    key = hashlib.sha256("".join((tree, *code_of_networks(settings.model))).encode()).hexdigest()[:12]
    return [
        FederatedSeed(
            settings.model_copy(update={"seed": seed, "state_folder": folder / f"{key}-seed-{seed}"}),
            methods,
            progress,
        )
        for seed in range(seeds)
    ]
