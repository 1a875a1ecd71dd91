"""The models of an experiment: trained once, cached on disk, used by every method."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch

from dlfd_fleet.audit import Observation
from dlfd_fleet.bench.cost import PassSeconds, measure_passes, peak_memory
from dlfd_fleet.bench.evidence import Baselines, observe
from dlfd_fleet.bench.experiment import Experiment, deal_experiment, labelled, trained_model
from dlfd_fleet.data import open_source
from dlfd_fleet.data.dataset import IdentityDataset, augmentation
from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.settings import Settings, UnlearningSettings
from dlfd_fleet.unlearning import UnlearningProblem, fit, recalibrate
from dlfd_fleet.unlearning.own_answers import OwnAnswers, few
from dlfd_fleet.unlearning.references import ReferenceAnswers, References
from dlfd_fleet.unlearning.training import predict_logits


@dataclass(frozen=True)
class ExperimentModels:
    """The models of one experiment, cached on disk: the original, and those that a method is compared with."""

    experiment: Experiment
    cache: Path

    @cached_property
    def original(self) -> FeatureClassifier:
        """The model that all methods start from."""
        return self.originals(0)

    def originals(self, index: int) -> FeatureClassifier:
        """One of the models trained on everybody; the first is the original."""
        return trained_model(self.experiment, "original", index, self.cache).model

    def retrained(self, index: int) -> FeatureClassifier:
        """One of the models trained without the forgotten people."""
        return trained_model(self.experiment, "retrained", index, self.cache).model

    @cached_property
    def baselines(self) -> Baselines:
        """What the original and the retrained models say of every image."""
        models = [self.retrained(index) for index in range(self.experiment.settings.bench.retrained)]
        observed = [observe(model, self.experiment) for model in models]
        return Baselines(
            original=observe(self.original, self.experiment),
            retrained=observed,
            reference_models=observed,
            relearned=self.relearn(models[0]),
        )

    @cached_property
    def references(self) -> References | None:
        """What reference models say of forgotten people, and of validation people; None where there are to be none."""
        count, experiment = self.experiment.settings.references.models, self.experiment
        if not count:
            return None
        models = [trained_model(experiment, "reference", index, self.cache).model for index in range(count)]

        def answers(part: IdentityDataset) -> ReferenceAnswers:
            logits = np.stack([predict_logits(model, labelled(part)) for model in models])
            trained = torch.stack([experiment.in_half(part.identities, index) for index in range(count)])
            return ReferenceAnswers(torch.from_numpy(logits), trained, experiment.settings.data.multi_label)

        return References(answers(experiment.forget), answers(experiment.validation))

    def problem(
        self,
        model: FeatureClassifier,
        settings: UnlearningSettings,
        seed: int,
        references: References | None,
        *,
        own: bool = False,
    ) -> UnlearningProblem:
        """Return the people to forget as a problem for a method, which gets a copy of the model.

        Parameters
        ----------
        own
            Whether to aim at the model's own answers to changed copies; there are none if nobody bears a change.
        """
        experiment = self.experiment
        forget, unseen, retain = map(labelled, (experiment.forget, experiment.validation, experiment.retain))
        changes = augmentation(experiment.settings.bench.augmentation)
        copies = changes is not None
        answers = OwnAnswers.of(model, forget, few(unseen), retain, seed, trained_on_copies=copies) if own else None
        return UnlearningProblem(
            model=copy.deepcopy(model),
            retain=retain,
            forget=forget,
            validation=unseen,
            settings=settings,
            seed=seed,
            class_weights=experiment.class_weights,
            augment=changes,
            references=references,
            targets=answers.targets() if answers else None,
        )

    def relearn(self, model: FeatureClassifier) -> Observation:
        """Train a copy on retain images as any later round would, and observe it: relearning (arXiv 2505.22310)."""
        settings, again = self.experiment.settings, copy.deepcopy(model)
        fit(
            again,
            labelled(self.experiment.retain),
            settings.training.model_copy(update={"batch_size": settings.bench.batch_size}),
            epochs=settings.bench.relearning_epochs,
            learning_rate=settings.bench.relearning_rate,
            seed=self.experiment.seed,
            class_weights=self.experiment.class_weights,
            augment=augmentation(settings.bench.augmentation),
        )
        recalibrate(again, labelled(self.experiment.retain))
        return observe(again, self.experiment)

    def measure_seconds(self) -> PassSeconds:
        """Return the seconds of one image here and now: a machine's speed changes with what else it does."""
        batch_size = self.experiment.settings.bench.batch_size
        return measure_passes(copy.deepcopy(self.original), labelled(self.experiment.retain), batch_size)

    @cached_property
    def ordinary_bytes(self) -> int:
        """What an ordinary training step takes: the model, its gradients, momentum and activations."""
        batch_size = self.experiment.settings.bench.batch_size
        with peak_memory(next(self.original.parameters()).device) as peak:
            measure_passes(copy.deepcopy(self.original), labelled(self.experiment.retain), batch_size)
        return peak.grown

    def retraining_seconds(self, passes: PassSeconds) -> float:
        """Return the seconds of a retraining at this speed."""
        return self.experiment.settings.bench.epochs * len(self.experiment.retain) * passes.train


@lru_cache(maxsize=1)
def models_of_split(settings_json: str, folder: Path, seed: int) -> ExperimentModels:
    """Return the models of one split under a bench's folder; a worker process keeps its last one.

    Raises
    ------
    DataError
        If the people cannot be split, or an image cannot be read.
    """
    return ExperimentModels(_split(settings_json, seed), folder / "models")


@lru_cache(maxsize=64)
def digest_of_split(settings_json: str, seed: int) -> str:
    """Return the digest of a split's images and of how they are split."""
    return _split(settings_json, seed).digest()


def _split(settings_json: str, seed: int) -> Experiment:
    settings = Settings.model_validate_json(settings_json)
    return deal_experiment(open_source(settings.data), settings, seed)
