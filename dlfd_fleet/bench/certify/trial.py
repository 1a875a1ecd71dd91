"""One run: a fleet with marked people is trained, they are erased, and three models are judged by the same audit.

Each model and each verdict is kept once it is made, so that a run that was killed goes on. At its end the copies of
people's images and all models are deleted: what is left of a run are its results.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit import Observation, SampleScores, Verdict, auc_difference, loss_attack
from dlfd_fleet.audit.samples import Role
from dlfd_fleet.bench.certify.marked import MarkedPeople, mark_people, write_set
from dlfd_fleet.bench.evidence import observe
from dlfd_fleet.bench.experiment import labelled
from dlfd_fleet.bench.fleets.asked_fleet import AskedFleet
from dlfd_fleet.bench.fleets.asking import Named
from dlfd_fleet.bench.fleets.costs import metrics_of
from dlfd_fleet.bench.fleets.made_models import JOB, made
from dlfd_fleet.bench.fleets.seeds import FederatedSeed
from dlfd_fleet.bench.rows import ORIGINAL, RETRAINED
from dlfd_fleet.data import open_source
from dlfd_fleet.data.dataset import load_dataset
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.messages import PendingQuery
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.rounds.audits import AuditedModel
from dlfd_fleet.federation.rounds.erasure import AtAskedSites, Erasure, Unlearned
from dlfd_fleet.federation.rounds.requests import ask_pending
from dlfd_fleet.files import whole_file
from dlfd_fleet.models import FeatureClassifier, build, load_arrays
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.report.contents import AimedAt
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import predict_probabilities

if TYPE_CHECKING:
    from flwr.serverapp import Grid

ERASED = "erased"
JUDGED = (ORIGINAL, RETRAINED, ERASED)
_RESULT_FILE = "result.json"


class TrialResult(BaseModel):
    """What one run came to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    asked: int
    """Marked people who were trained on and asked."""
    never: int
    aim: AimedAt | None = None
    """What the erasure aimed at in its first attempt; None if an earlier release did not note it."""
    verdicts: dict[str, Verdict]
    """Of the original, the retrained and the erased model."""
    guessed_right: int
    """Marked people of whom an attacker says rightly whether they were trained on."""
    distances: dict[str, float]
    """Of the original and the erased model from the retrained one."""
    costs: dict[str, float]
    """What the erasure took, and its shares of the retraining; what the reference models took."""
    seconds: float
    """Of the whole run, as far as it was not interrupted."""


@dataclass(frozen=True)
class Trial:
    """One run of a procedure.

    Attributes
    ----------
    settings
        Those of the erasure's job, with the run's number as the seed and a state folder of its own.
    count
        Marked people.
    exchange
        Whether their labels are exchanged.
    """

    settings: Settings
    count: int
    exchange: bool
    progress: ProgressDisplay

    @property
    def folder(self) -> Path:
        """Where it works, and keeps its result."""
        return self.settings.state_folder

    def result(self) -> TrialResult | None:
        """Return what it came to; None if it is not done."""
        file = self.folder / _RESULT_FILE
        return TrialResult.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None

    def run(self) -> TrialResult:
        """Do it, or what is left of it."""
        started = time.monotonic()
        if (known := self.result()) is not None:
            return known
        self.seed.prepare(references=self._with_references)
        if not all(self._verdict_file(name).exists() for name in JUDGED):
            self.seed.simulate(self.fleet.when_asked(references=self._with_references), self._judge_models)
        result = self._compared(time.monotonic() - started)
        self._write(self.folder / _RESULT_FILE, result)
        for path in self.folder.iterdir():
            if path.name != _RESULT_FILE:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return result

    # ------------------------------------------------------------------ the fleet

    @cached_property
    def marked(self) -> MarkedPeople:
        """Who asks, and who was never trained on."""
        data = self.settings.data
        return mark_people(open_source(data), data, self.count, self.settings.seed, exchange=self.exchange)

    @cached_property
    def seed(self) -> FederatedSeed:
        """The fleet whose people are those of the set, without the marked people whom nothing is trained on."""
        data = write_set(self.marked.trained_on, self.folder / "set", self.settings.data)
        settings = self.settings.model_copy(update={"data": data})
        return FederatedSeed(settings, (), self.progress)

    @cached_property
    def fleet(self) -> AskedFleet:
        """The same fleet, in which marked people ask."""
        return AskedFleet(self.seed, Named(self.marked.asked, "asked"))

    @property
    def _with_references(self) -> bool:
        return self.settings.references.models > 0

    def _verdict_file(self, name: str) -> Path:
        return self.folder / "verdicts" / f"{name}.json"

    # ------------------------------------------------------------------ models and verdicts

    def _judge_models(self, grid: Grid) -> None:
        fleet, models = self.seed.fleet(grid), self.fleet.models
        fleet.wait_for_nodes(self.settings.data.sites, self.settings.fleet.connect_seconds)
        nodes = frozenset(ask_pending(fleet, PendingQuery(job=JOB, take=True)))
        original = self.seed.models.load(ORIGINAL)
        if not models.has(RETRAINED):
            self.fleet.retrain(RETRAINED, 1, grid, nodes, original)
        audited = self._erasure(grid, nodes).audits.audit(original, "Attacking the original model", ORIGINAL)

        def judge(name: str, verdict: Callable[[Erasure], Verdict]) -> None:
            if not self._verdict_file(name).exists():
                erasure = self._erasure(grid, nodes)
                erasure.audits.gate_samples(original, name)  # sites hold the model that the others differ from
                self._write(self._verdict_file(name), verdict(erasure))

        judge(ERASED, lambda erasure: self._erase(erasure, audited))
        judge(ORIGINAL, lambda erasure: erasure.judged(audited, audited, 1)[0])
        retrained = models.load(RETRAINED)

        def of_retrained(erasure: Erasure) -> Verdict:
            candidate = erasure.audits.audit(retrained, "Attacking the retrained model", RETRAINED)
            return erasure.judged(audited, candidate, 1)[0]

        judge(RETRAINED, of_retrained)

    def _erase(self, erasure: Erasure, original: AuditedModel) -> Verdict:
        """Erase as a job does, keep the model and what it took, and return its verdict."""
        results = list[Unlearned]()

        def run(one: Erasure) -> Arrays:
            results.append(one.run(original))
            return results[0].model.arrays

        arrays, took = made(erasure, run)
        took = took.model_copy(update={"attempts_made": results[0].attempts_made})
        self.fleet.models.save(ERASED, arrays, took)
        return results[0].verdict

    def _erasure(self, grid: Grid, nodes: frozenset[int]) -> Erasure:
        forget = AtAskedSites.of(self.settings.erasure, self.seed.experiment.card)
        return self.seed.erasure_by(forget, self.seed.fleet(grid, nodes), self.seed.settings)

    # ------------------------------------------------------------------ what came of it

    def _compared(self, seconds: float) -> TrialResult:
        verdicts = {
            name: Verdict.model_validate_json(self._verdict_file(name).read_text(encoding="utf-8")) for name in JUDGED
        }
        models = {ORIGINAL: self._model(self.seed.models.load(ORIGINAL))}
        models |= {name: self._model(self.fleet.models.load(name)) for name in (RETRAINED, ERASED)}
        seen = {name: observe(model, self.fleet.experiment) for name, model in models.items()}
        note, needed = self.fleet.models.note(ERASED), self.fleet.models.note(RETRAINED).needed
        assert needed is not None  # noqa: S101 - it was noted when it was made
        costs = metrics_of(note, note.total, [needed], self.seed.references)
        costs |= {"retraining_seconds": needed.seconds, "retraining_megabytes": needed.sent_bytes / 1e6}
        costs |= {"megabytes": note.total.sent_bytes / 1e6}
        if (references := self.seed.references) is not None:
            took = {"seconds": references.total.seconds, "megabytes": references.total.sent_bytes / 1e6}
            costs |= {f"references_{name}": value for name, value in took.items()}
        return TrialResult(
            number=self.settings.seed,
            asked=len(self.marked.asked),
            never=len(self.marked.never),
            aim=note.attempts_made[0].aim if note.attempts_made else None,
            verdicts=verdicts,
            guessed_right=self._guessed_right(models[ERASED], models[RETRAINED]),
            distances={
                f"{name}.{what}": value
                for name in (ORIGINAL, ERASED)
                for what, value in _distances(seen[name], seen[RETRAINED], self.seed.experiment.card.labels).items()
            },
            costs=costs,
            seconds=seconds,
        )

    def _guessed_right(self, erased: FeatureClassifier, retrained: FeatureClassifier) -> int:
        """Guess that the half was trained on whose losses are lowest beside those of a retrained model.

        The coins are fair and no guess sees them, so of people who cannot be told apart half of the guesses are right.
        """
        card, alone = self.seed.experiment.card, self.marked.alone
        images = load_dataset(
            alone, model_input=self.settings.data.input, classes=card.classes, multi_label=card.multi_label
        )
        people = images.people.numpy()
        losses = [
            SampleScores.from_probabilities(
                predict_probabilities(model, labelled(images)),
                images.labels.numpy(),
                people,
                np.zeros(len(images), np.uint8),
            ).loss
            for model in (erased, retrained)
        ]
        count = np.bincount(people)
        lower = np.bincount(people, losses[0] - losses[1]) / count
        guessed = np.argsort(np.argsort(lower, kind="stable"), kind="stable") < len(count) / 2
        asked = np.array([name in self.marked.asked for name in sorted(set(images.identities))])
        return int((guessed == asked).sum())

    def _model(self, arrays: Arrays) -> FeatureClassifier:
        model = build(self.seed.experiment.card)
        load_arrays(model, arrays)
        return model

    @staticmethod
    def _write(file: Path, content: BaseModel) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file, JobError) as new:
            new.write_text(content.model_dump_json(indent=1), encoding="utf-8")


def _distances(model: Observation, retrained: Observation, labels: int | None) -> dict[str, float]:
    """Return by how much a model differs from a retrained one: AUC of the loss attack, and accuracies."""
    auc = auc_difference([loss_attack(model.samples)], [loss_attack(retrained.samples)], resamples=200, seed=0)
    found = {"auc": auc.value}
    for role in (Role.FORGET, Role.RETAIN, Role.TEST):
        mine, other = (one.samples.of(role).share_right(labels).mean() for one in (model, retrained))
        found[f"{role.value}_accuracy"] = float(mine - other)
    return found
