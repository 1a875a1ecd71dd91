"""One seed of the bench: who is kept, forgotten and never seen, and the models that all methods are measured against.

The original is trained on retained and forgotten people, the retrained ones on the retained people only, each from
weights of its own. They are trained once and cached under everything that decides their weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from dlfd_fleet.bench.entry_code import code_of_module
from dlfd_fleet.data import Manifest, assign_people, choose_people_to_forget, refuse_leaks
from dlfd_fleet.data.dataset import IdentityDataset, augmentation, load_dataset
from dlfd_fleet.data.inputs import joined
from dlfd_fleet.models import (
    FeatureClassifier,
    ModelCard,
    load_model,
    normalised,
    permit,
    save_model,
    start,
    to_best_device,
    with_frozen,
)
from dlfd_fleet.settings import ModelSettings, Settings
from dlfd_fleet.unlearning import LabelledImages, fit, recalibrate

Kind = Literal["original", "retrained", "reference"]
MAKES_MODELS = (
    "dlfd_fleet.bench.experiment",
    "dlfd_fleet.data.dataset",
    "dlfd_fleet.models",
    "dlfd_fleet.unlearning.training",
)
_SECONDS_FILE = "seconds.json"


@dataclass(frozen=True)
class Experiment:
    """The face set of one seed, split by person.

    Attributes
    ----------
    retain, forget
        People that the original was trained on.
    validation
        People never trained on, for gates and for tuning.
    test
        People never trained on, for the evidence only.
    """

    settings: Settings
    seed: int
    retain: IdentityDataset
    forget: IdentityDataset
    validation: IdentityDataset
    test: IdentityDataset

    @cached_property
    def card(self) -> ModelCard:
        """What the models of this experiment look like."""
        model, data = self.settings.model, self.settings.data
        permit(model.architecture)
        card = ModelCard(
            architecture=model.architecture,
            classes=self.retain.classes,
            multi_label=data.multi_label,
            input=data.input,
            arguments=model.arguments,
            feature_layer=model.feature_layer,
            frozen=model.frozen,
            dropout=model.dropout,
            mean=model.mean,
            std=model.std,
        )
        return normalised(with_frozen(card), model.weights)

    @cached_property
    def class_weights(self) -> Tensor:
        """A weight for each class, inverse to its share of the retain images."""
        return self.retain.class_weights()

    def digest(self) -> str:
        """Return a digest of all images and labels, in their parts."""
        sha = hashlib.sha256(str(self.seed).encode())
        for faces in (self.retain, self.forget, self.validation, self.test):
            sha.update(faces.images.numpy().tobytes() + faces.labels.numpy().tobytes())
        return sha.hexdigest()

    def trained_on(self, kind: Kind, index: int = 0) -> LabelledImages:
        """Return the images that a model of this kind is trained on; of reference models half of the people's."""
        retain, forget = labelled(self.retain), labelled(self.forget)
        if kind == "retrained":
            return retain
        both = LabelledImages(joined([retain.images, forget.images]), torch.cat([retain.labels, forget.labels]))
        if kind == "original":
            return both
        names = (*self.retain.identities, *self.forget.identities)
        return both.select(torch.nonzero(self.in_half(names, index)).flatten())

    def in_half(self, names: Sequence[str], index: int) -> Tensor:
        """Return which images ``(N,)`` are of people whom a reference model is trained on, by their people's names.

        Models 2k and 2k + 1 share out all trained people. Who is to be forgotten plays no part: a fleet trains its
        reference models before anybody asks.
        """
        people = sorted({*self.retain.identities, *self.forget.identities})
        order = torch.randperm(len(people), generator=torch.Generator().manual_seed(1000 * self.seed + index // 2))
        half = {people[place] for place in order.tensor_split(2)[index % 2].tolist()}
        return torch.tensor([name in half for name in names])


def labelled(images: IdentityDataset) -> LabelledImages:
    """Return images and labels without names."""
    return LabelledImages(images.images, images.labels, images.people)


def deal_experiment(manifest: Manifest, settings: Settings, seed: int) -> Experiment:
    """Split a face set by person for one seed; ``bench.forget_share`` of the trained people are forgotten.

    Raises
    ------
    DataError
        If there are too few people, an image cannot be read, or one that is trained on is among the unseen ones.
    """
    data = settings.data
    dealt = assign_people(
        manifest, validation_people=data.validation_people, test_people=data.test_people, sites=1, seed=seed
    )
    refuse_leaks(dealt)
    sites = sorted({row.site for row in dealt.rows if row.site})
    people = {row.identity for row in dealt.rows if row.split == "train"}
    count = max(1, round(settings.bench.forget_share * len(people) / len(sites)))
    forgotten = {person for chosen in choose_people_to_forget(dealt, sites, count).values() for person in chosen}
    faces = load_dataset(dealt, model_input=data.input, multi_label=data.multi_label)
    train = faces.of_split("train")
    return Experiment(
        settings=settings,
        seed=seed,
        retain=train.without_people(forgotten),
        forget=train.of_people(forgotten),
        validation=faces.of_split("validation"),
        test=faces.of_split("test"),
    )


@dataclass(frozen=True)
class TrainedModel:
    """A model that was trained from scratch, and the seconds that it took."""

    model: FeatureClassifier
    seconds: float


def trained_model(experiment: Experiment, kind: Kind, index: int, cache: Path) -> TrainedModel:
    """Return a model trained from scratch, from the cache if it is there.

    Parameters
    ----------
    index
        Which of several models of a kind; each has its own weights, batches and dropout.
    cache
        Folder of cached models.
    """
    folder = cache / f"{kind}-{experiment.seed}-{index}-{_key(experiment, kind, index)}"
    if (folder / _SECONDS_FILE).exists():
        seconds = json.loads((folder / _SECONDS_FILE).read_text(encoding="utf-8"))
        return TrainedModel(to_best_device(load_model(folder)[0]), seconds)
    bench = experiment.settings.bench
    seed = _training_seed(experiment.seed, kind, index)
    torch.manual_seed(seed)
    model, train = (
        to_best_device(start(experiment.card, experiment.settings.model.weights)),
        experiment.trained_on(kind, index),
    )
    started = time.perf_counter()
    fit(
        model,
        train,
        experiment.settings.training.model_copy(update={"batch_size": bench.batch_size}),
        epochs=bench.epochs,
        learning_rate=bench.learning_rate,
        cosine=True,
        seed=seed,
        class_weights=experiment.class_weights,
        augment=augmentation(bench.augmentation),
    )
    recalibrate(model, train)
    seconds = time.perf_counter() - started
    save_model(model, experiment.card.model_copy(update={"kind": kind}), folder)
    (folder / _SECONDS_FILE).write_text(json.dumps(seconds), encoding="utf-8")
    return TrainedModel(model, seconds)


@cache
def digest_of_code(*modules: str) -> str:
    """Return a digest of the source of modules, and of all that is in those that are packages."""
    sha = hashlib.sha256()
    for module in modules:
        file = Path(str(cast("ModuleSpec", find_spec(module)).origin))
        for source in sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]:
            sha.update(source.read_bytes())
    return sha.hexdigest()


def code_of_networks(model: ModelSettings) -> list[str]:
    """Return digests of the packages whose factories build the network."""
    return [code_of_module(component.name.partition(":")[0]) for component in model.components]


def _training_seed(seed: int, kind: Kind, index: int) -> int:
    return seed * 1000 + index + {"original": 0, "reference": 250, "retrained": 500}[kind]


def _key(experiment: Experiment, kind: Kind, index: int) -> str:
    """Return a digest of all that decides the weights."""
    settings, sha = experiment.settings, hashlib.sha256()
    bench = settings.bench
    recipe = [bench.epochs, bench.batch_size, bench.learning_rate, settings.training.momentum]
    parts = [
        recipe,
        bench.augmentation.model_dump(),
        settings.training.weight_decay,
        experiment.card.model_dump(),
        settings.model.weights,
        kind,
        index,
        experiment.seed,
    ]
    sha.update(json.dumps(parts, sort_keys=True).encode())
    sha.update(digest_of_code(*MAKES_MODELS).encode())
    if settings.model.weights and (file := Path(settings.model.weights)).is_file():
        sha.update(file.read_bytes())
    sha.update(json.dumps(code_of_networks(settings.model)).encode())
    train = experiment.trained_on(kind, index)
    sha.update(train.images.numpy().tobytes())
    sha.update(train.labels.numpy().tobytes())
    return sha.hexdigest()[:16]
