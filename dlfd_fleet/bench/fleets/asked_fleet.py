"""A fleet of one seed in which some people ask to be forgotten: every method, on the same sites, beside retraining."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dlfd_fleet.answers import decided
from dlfd_fleet.audit import Observation
from dlfd_fleet.bench.evidence import Baselines, observe
from dlfd_fleet.bench.experiment import Experiment, labelled
from dlfd_fleet.bench.fleets.asking import Asking, Named
from dlfd_fleet.bench.fleets.costs import Costs, metrics_of
from dlfd_fleet.bench.fleets.made_models import JOB, MadeModels, made
from dlfd_fleet.bench.fleets.methods import FEDERATED_METHODS, Situation
from dlfd_fleet.bench.rows import ORIGINAL, RETRAINED, Row, row_of
from dlfd_fleet.federation.protocol.messages import PendingQuery
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.costs import phase_of
from dlfd_fleet.federation.rounds.erasure import Erasure
from dlfd_fleet.federation.rounds.requests import ask_pending
from dlfd_fleet.ledger.requests import request_forgetting
from dlfd_fleet.ledger.site import Site, site_folders
from dlfd_fleet.models import FeatureClassifier, build, load_arrays
from dlfd_fleet.report.contents import Phase
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import predict_probabilities, recalibrate

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from dlfd_fleet.bench.fleets.seeds import FederatedSeed

_MEGABYTE = 1e6


@dataclass(frozen=True)
class AskedFleet:
    """The fleet of a seed, and who asks.

    Attributes
    ----------
    seed
        What all ways to ask have in common: the original, reference models, everybody's images.
    """

    seed: FederatedSeed
    asking: Asking | Named

    @property
    def settings(self) -> Settings:
        """With a state folder of its own."""
        folder = self.seed.settings.state_folder / self.asking.folder
        return self.seed.settings.model_copy(update={"state_folder": folder})

    @property
    def models(self) -> MadeModels:
        """Retrained models, those of methods, and all of them trained on."""
        return MadeModels(self.settings.state_folder / "models")

    @property
    def retrained(self) -> list[str]:
        """Names of the retrained models."""
        return [f"{RETRAINED}-{index}" for index in range(self.settings.bench.retrained)]

    @cached_property
    def people(self) -> dict[str, list[str]]:
        """Who asks, by site."""
        return self.asking.choose(self.seed.dealt, self.settings.seed)

    @cached_property
    def experiment(self) -> Experiment:
        """The same people as at the sites, in one place: who is retained, forgotten and never seen."""
        return self.seed.experiment_without(frozenset(person for people in self.people.values() for person in people))

    def missing(self) -> list[str]:
        """Return the models that are still to be made."""
        names = [ORIGINAL, *self.retrained, *self.seed.methods]
        return [name for name in names if not self.models.has(f"{name}.relearned")]

    def run(self, deadline: float) -> None:
        """Make the models that are missing, until the deadline (:func:`time.monotonic`)."""
        missing = self.missing()
        for references in (False, True):
            wanted = [name for name in missing if self._needs_references(name) == references]
            if not wanted or time.monotonic() >= deadline or (references and self.seed.references is None):
                continue

            def make(grid: Grid, wanted: list[str] = wanted) -> None:
                self._make_models(grid, wanted, deadline)

            self.seed.simulate(self.when_asked(references=references), make)

    def when_asked(self, *, references: bool) -> Settings:
        """Return settings whose state folder has copies of the sites at which people ask, made if it is not there.

        Parameters
        ----------
        references
            Whether the sites have the answers of reference models.
        """
        folder = self.settings.state_folder / ("with-references" if references else "without-references")
        if not folder.exists():
            begun = self.seed.with_references if references else self.seed.settings.state_folder
            new = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(begun / "sites", new / "sites")
            new.replace(folder)
        settings = self.settings.model_copy(update={"state_folder": folder})
        self._ask_to_be_forgotten(settings)
        return settings

    @staticmethod
    def _needs_references(name: str) -> bool:
        return name in FEDERATED_METHODS and FEDERATED_METHODS[name].references

    # ------------------------------------------------------------------ making models

    def _make_models(self, grid: Grid, wanted: list[str], deadline: float) -> None:
        seed, fleet = self.seed, self.seed.fleet(grid)
        fleet.wait_for_nodes(self.settings.data.sites, self.settings.fleet.connect_seconds)
        nodes = frozenset(ask_pending(fleet, PendingQuery(job=JOB, take=True)))
        original = seed.models.load(ORIGINAL)
        if ORIGINAL in wanted:
            self._train_on(ORIGINAL, grid, nodes, original)
        for number, name in enumerate(self.retrained, start=1):
            if name not in wanted:
                continue
            if time.monotonic() >= deadline:
                return
            if not self.models.has(name):
                self.retrain(name, number, grid, nodes, original)
            self._train_on(name, grid, nodes, self.models.load(name))
        methods = [name for name in self.seed.methods if name in wanted]
        if not methods:
            return
        if ORIGINAL not in wanted:  # nodes load much when they first train, and that is no method's cost
            self._trained_on(grid, nodes, original)
        audited = seed.erasure(fleet).audits.audit(original, "Attacking the original model", ORIGINAL)
        for name in methods:
            if time.monotonic() >= deadline:
                return
            if not self.models.has(name):
                # As after the job that trained it, sites hold the model that forgets; other methods have left theirs.
                mine = seed.fleet(grid, nodes)
                seed.erasure(mine).audits.gate_samples(original, name)
                situation = Situation(audited, seed.fresh(0), seed.models.note(ORIGINAL).norms)

                def forget(one: Erasure, name: str = name, situation: Situation = situation) -> Arrays:
                    return FEDERATED_METHODS[name].run(one, situation)

                self.models.save(name, *made(seed.erasure(mine, name), forget))
            self._train_on(name, grid, nodes, self.models.load(name))

    def retrain(self, name: str, number: int, grid: Grid, nodes: frozenset[int], original: Arrays) -> None:
        """Retrain as the original was trained; note what it took to be as accurate on test people as the original."""
        erasure, needed = self.seed.erasure(self.seed.fleet(grid, nodes)), list[Phase]()
        job, rounds = erasure.job, self.settings.training.rounds
        goal = self._test_accuracy(self._model(original))

        def look(arrays: Arrays) -> None:
            if needed:
                return
            model = self._model(arrays)
            if job.round < rounds:  # sites leave that to the last round, and retraining is to be no longer than it is
                recalibrate(model, labelled(self.experiment.retain))
            if self._test_accuracy(model) >= goal or job.round == rounds:
                so_far = phase_of([cost for _, cost in job.journal.costs])
                needed.append(so_far.model_copy(update={"steps": job.round}))

        arrays, took = made(erasure, lambda one: one.rounds.train(self.seed.fresh(number), "retrain", after=look))
        self.models.save(name, arrays, took.model_copy(update={"needed": needed[0]}))

    def _train_on(self, name: str, grid: Grid, nodes: frozenset[int], arrays: Arrays) -> None:
        """Train a copy of a model on, at all sites alike, to see what comes back."""
        if not self.models.has(f"{name}.relearned"):
            self.models.save(f"{name}.relearned", self._trained_on(grid, nodes, arrays))

    def _trained_on(self, grid: Grid, nodes: frozenset[int], arrays: Arrays) -> Arrays:
        training, rounds = self.settings.training, self.seed.erasure(self.seed.fleet(grid, nodes)).rounds
        number = self.settings.bench.relearning_rounds
        with self.seed.progress.phase("Training on", number * len(nodes)) as advance:
            for _ in range(number):
                arrays = rounds.fit_round(arrays, "relearn", training.local_epochs, training.learning_rate, advance)
        return arrays

    def _ask_to_be_forgotten(self, settings: Settings) -> None:
        for name, people in self.people.items():
            (folder,) = [folder for folder in site_folders(settings.state_folder) if folder.name == name]
            with Site(folder) as site:
                for person in people:
                    if not site.gone([person]):
                        request_forgetting(site, person, deadline_days=self.settings.erasure.deadline_days)

    # ------------------------------------------------------------------ comparing them

    def rows(self) -> list[Row]:
        """Return a row for each model there is; none before the baselines are."""
        missing = self.missing()
        known = [name for name in (ORIGINAL, *self.retrained, *self.seed.methods) if name not in missing]
        if not {ORIGINAL, *self.retrained} <= set(known):
            return []
        retrained = [self._observed(name) for name in self.retrained]
        original = self._observed(ORIGINAL)
        baselines = Baselines(original, retrained, retrained, self._again(self.retrained[0]))
        rows = []
        for name in known:
            index = self.retrained.index(name) if name in self.retrained else 0
            beside, method = baselines, name
            if name in self.retrained:
                others = [one for one in retrained if one is not retrained[index]]
                beside = Baselines(original, others, retrained, self._again(self.retrained[index - 1]))
                method = RETRAINED
            model = retrained[index] if name in self.retrained else self._observed(name)
            extra = self._metrics(name)
            rows.append(row_of(self.experiment, beside, method, model, self._again(name), extra, index=index))
        return rows

    def costs(self) -> list[Costs]:
        """Return what each model took that there is, by phase; of reference models and retraining, too."""
        found = list[Costs]()
        for name in (*self.retrained, *self.seed.methods):
            if not self.models.has(name):
                continue
            note = self.models.note(name)
            found.append(Costs(RETRAINED, note.needed) if note.needed else Costs(name, note.total, note.phases))
        if (references := self.seed.references) is not None:
            found.append(Costs("references", references.total, references.phases))
        return found

    def _metrics(self, name: str) -> dict[str, float]:
        """Return what a method took; of the original, which no method makes, nothing."""
        if name == ORIGINAL:
            return {}
        retraining = [needed for each in self.retrained if (needed := self.models.note(each).needed)]
        note, sites = self.models.note(name), self.settings.data.sites
        mine = note.needed or note.total
        references = self.seed.references if self._needs_references(name) else None
        method = FEDERATED_METHODS.get(name)
        stored = method.stored_rounds(self.settings.training.rounds) if method else 0
        size = sum(array.numel() * array.element_size() for array in self.models.load(name).values())
        return metrics_of(note, mine, retraining, references) | {
            "megabytes_a_site": mine.sent_bytes / sites / _MEGABYTE,
            "stored_megabytes": stored * sites * size / _MEGABYTE,
            "server_megabytes": note.server_bytes / _MEGABYTE,
        }

    def _again(self, name: str) -> Observation:
        return self._observed(f"{name}.relearned")

    def _observed(self, name: str) -> Observation:
        models = self.seed.models if name == ORIGINAL else self.models
        return observe(self._model(models.load(name)), self.experiment)

    def _model(self, arrays: Arrays) -> FeatureClassifier:
        model = build(self.seed.experiment.card)
        load_arrays(model, arrays)
        return model

    def _test_accuracy(self, model: FeatureClassifier) -> float:
        test = labelled(self.experiment.test)
        said = decided(predict_probabilities(model, test), multi_label=test.multi_label)
        return float((said == test.labels.numpy()).mean())
