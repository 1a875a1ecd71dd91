"""The models whose files the device bench runs: one trained on everybody, one that has forgotten, in every format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dlfd_fleet.bench.experiment import MAKES_MODELS, Experiment, code_of_networks, digest_of_code, labelled
from dlfd_fleet.bench.models import ExperimentModels
from dlfd_fleet.data.dataset import augmentation
from dlfd_fleet.data.inputs import joined
from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.export import calibrate, content_of, export_onnx, export_variant, prepare
from dlfd_fleet.formats import FORMATS, FP32
from dlfd_fleet.models import MODEL_FILE, FeatureClassifier, ModelCard, digest, load_model, save_model, state_arrays
from dlfd_fleet.settings import ExportSettings
from dlfd_fleet.unlearning import UnlearningProblem, dlfd

EAGER, EAGER_CHANNELS_LAST, COMPILED = "torch", "torch_channels_last", "torch_compile"


def formats_to_run(settings: ExportSettings) -> tuple[str, ...]:
    """Return the formats that the settings name, or every registered one where nobody has set any."""
    return settings.formats if "formats" in settings.model_fields_set else tuple(FORMATS)


def ways_to_run(settings: ExportSettings) -> tuple[str, ...]:
    """Return every way to run a model: in torch, and in each of those formats."""
    return (EAGER, EAGER_CHANNELS_LAST, COMPILED, *formats_to_run(settings))


@dataclass(frozen=True)
class Subject:
    """A model in each format.

    Attributes
    ----------
    folder
        Of the weights and of the files.
    refused
        Formats that were not made, and why.
    """

    folder: Path
    refused: Mapping[str, str]

    def loaded_by(self, way: str) -> Path:
        """Return what a way to run the model loads: a file, or for torch the folder."""
        return FORMATS[way].file(self.folder / "model.onnx") if way in FORMATS else self.folder

    def size_bytes(self, way: str) -> int:
        """Return the size on disk of what it loads."""
        file = self.loaded_by(way)
        return (self.folder / MODEL_FILE if file == self.folder else file).stat().st_size


def make_subjects(models: ExperimentModels, folder: Path) -> tuple[Subject, Subject]:
    """Return the original and what DLFD makes of it, in every format; training and forgetting are cached.

    Raises
    ------
    ExportError
        If there is no fp32 file: without it there is none.
    """
    original, experiment = models.original, models.experiment
    unlearned, card = _unlearned(models, original)
    return (
        _export(original, experiment.card, folder / "original", experiment),
        _export(unlearned, card, folder / "unlearned", experiment),
    )


def _unlearned(models: ExperimentModels, original: FeatureClassifier) -> tuple[FeatureClassifier, ModelCard]:
    experiment, settings = models.experiment, models.experiment.settings
    card = experiment.card.model_copy(
        update={"kind": "unlearned", "epoch": 1, "parent": digest(state_arrays(original))}
    )
    decides = [card.model_dump(), settings.unlearning.model_dump(), settings.bench.augmentation.model_dump()]
    code = digest_of_code("dlfd_fleet.unlearning", *MAKES_MODELS), code_of_networks(settings.model)
    text = json.dumps([decides, experiment.digest(), code], sort_keys=True)
    folder = models.cache / f"unlearned-{experiment.seed}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not folder.exists():
        model = ExperimentModels(experiment, models.cache).original  # DLFD works in place
        dlfd(
            UnlearningProblem(
                model=model,
                retain=labelled(experiment.retain),
                forget=labelled(experiment.forget),
                validation=labelled(experiment.validation),
                settings=settings.unlearning,
                seed=experiment.seed,
                class_weights=experiment.class_weights,
                augment=augmentation(settings.bench.augmentation),
            )
        )
        save_model(model, card, folder)
    return load_model(folder)


def _export(model: FeatureClassifier, card: ModelCard, folder: Path, experiment: Experiment) -> Subject:
    """Write every format; compared on the people whom the model never saw, calibrated on the retained ones."""
    settings = experiment.settings.export
    save_model(model, card, folder)
    images = joined([experiment.validation.images, experiment.test.images])
    labels = torch.cat([experiment.validation.labels, experiment.test.labels])
    source = folder / "model.onnx"
    export_onnx(model, card, source, version=f"{card.epoch}-bench", settings=settings, images=images, labels=labels)
    generator = torch.Generator().manual_seed(experiment.seed)
    chosen = torch.randperm(len(experiment.retain), generator=generator)[: settings.calibration_images]
    ranges = calibrate(prepare(content_of(source)), card.input.on_device(experiment.retain.images[chosen].numpy()))
    refused: dict[str, str] = {}
    for name in formats_to_run(settings):
        if name == FP32:
            continue
        form = FORMATS.find(name)
        form.file(source).unlink(missing_ok=True)
        try:
            export_variant(
                model, card, source, form=form.name, settings=settings, images=images, labels=labels, ranges=ranges
            )
        except ExportError as error:
            refused[form.name] = str(error)
    return Subject(folder, refused)
