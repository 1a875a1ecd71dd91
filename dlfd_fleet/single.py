"""Unlearning without a fleet: one machine, one model in, one model out, with a report."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit import Outcome, Reading, Role, SampleScores, Scores, Verdict, judge, judge_relearned, measure
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.configuration import flatten
from dlfd_fleet.cores import limit_torch_threads
from dlfd_fleet.data import (
    LeftOut,
    Manifest,
    TrainedOn,
    Use,
    assign_people,
    canonical,
    image_digests,
    image_uses,
    read_manifest,
    refuse_leaks,
    with_whole_splits,
)
from dlfd_fleet.data.dataset import IdentityDataset, augmentation, load_dataset
from dlfd_fleet.exceptions import ConfigurationError, DataError
from dlfd_fleet.models import (
    MODEL_FILE,
    FeatureClassifier,
    ModelCard,
    digest,
    load_model,
    permit,
    save_model,
    state_arrays,
    to_best_device,
)
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.report.contents import loss_counts
from dlfd_fleet.report.page import render_single
from dlfd_fleet.report.plots import loss_plot
from dlfd_fleet.settings import Settings
from dlfd_fleet.unlearning import (
    METHODS,
    LabelledImages,
    Method,
    UnlearningProblem,
    UnlearnOutcome,
    fit,
    loss_monitor,
    predict_probabilities,
    recalibrate,
)
from dlfd_fleet.unlearning.own_answers import OwnAnswers, few

_UNCHANGED = "the model is the original, to the bit: nothing was forgotten"
_GOVERNING: dict[str, Any] = {
    "seed": True,
    "unlearning": True,
    "training": True,
    "audit": True,
    "erasure": {"relearning_rounds", "augmentation", "own_answers"},
}
"""Settings that bear on an unlearning without a fleet."""


class Result(BaseModel):
    """The result of ``dlfd-fleet unlearn``; the content of ``report.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    original: Scores
    unlearned: Scores
    relearned: Scores | None
    """Scores of the unlearned model after further training, unless ``erasure.relearning_rounds`` is 0."""
    verdict: Verdict
    success: bool
    """Whether the method's own gate was satisfied, if it has one, and the verdict is no FAIL."""
    reasons: tuple[str, ...]
    method: str
    """Name of the unlearning method."""
    method_title: str
    method_package: str
    """Distribution and version of the method's package."""
    method_settings: dict[str, Any]
    """Its own hyper-parameters; the shared ones are in the settings under ``unlearning``."""
    settings: dict[str, Any]
    """The settings, by dotted key."""
    forgotten_people: int
    forgotten_images: int
    seconds: float
    rounds: int
    own_answers: bool = False
    """Whether it aimed at what the model itself said of changed copies of the images."""
    parent: str
    """SHA-256 of the weights that were unlearned from."""


@dataclass(frozen=True)
class People:
    """The images of a manifest by the part that their people play.

    Attributes
    ----------
    copies
        How many images are in none of the parts: copies of images of the people to forget, byte for byte.
    """

    retain: IdentityDataset
    forget: IdentityDataset
    validation: IdentityDataset
    test: IdentityDataset
    copies: int

    def parts(self) -> dict[Role, IdentityDataset]:
        """Return the images of each role."""
        return {
            Role.RETAIN: self.retain,
            Role.FORGET: self.forget,
            Role.VALIDATION: self.validation,
            Role.TEST: self.test,
        }


def unlearn_people(
    model_path: Path,
    manifest: Path,
    root: Path | None,
    people: Collection[str],
    output: Path,
    settings: Settings,
    progress: ProgressDisplay,
    method: str = "dlfd",
    trained_on: TrainedOn | None = None,
) -> Result:
    """Make a model forget people, audit it on people never trained on if there are any, and write it with its report.

    If the method gives the original back, the verdict is FAIL and only the report is written.

    Parameters
    ----------
    model_path
        Folder of ``model.safetensors`` and ``card.json``, or that file.
    manifest, root
        Faces that the model was trained on, and people of the splits ``validation`` and ``test`` whom it never saw.
    people
        Identities to forget, of the split ``train``, in any spelling.
    output
        New folder for the model, ``report.json`` and ``report.html``.
    method
        Name of a registered method; its default candidate is used, under what the settings set.
    trained_on
        Whom the model was trained on; everybody else without a split is unseen then, half of them for the gate and half
        for the evidence. If nobody is, the audit says so and is INCONCLUSIVE.

    Raises
    ------
    FleetError
        For a model, a manifest, a person or a folder that will not do, or a method that fails; nothing is written then.
    """
    if output.exists() and any(output.iterdir()):
        raise ConfigurationError(f"{output} is not empty; name a new folder for the unlearned model.")
    known = METHODS.find(method)
    chosen = known.default
    settings = settings.model_copy(update={"unlearning": chosen.settings(settings.unlearning)})
    permit(settings.model.architecture)
    model, card = load_model(model_path.parent if model_path.name == MODEL_FILE else model_path)
    if card.multi_label:
        known.refuse_labels()
    table = read_manifest(manifest, root, settings.data.links)
    if trained_on is not None:
        table = _with_unseen_people(trained_on.marked(table, manifest), settings.seed)
    faces = _split(table, manifest, people, card, nobody_unseen=trained_on is not None)
    if not len(faces.validation) and known.gated and known.at_site is None:
        raise ConfigurationError(
            f"The method '{method}' has a gate of its own, which needs validation people; choose another --method."
        )
    if faces.copies:
        progress.say(
            f"{faces.copies} images of other people have the same bytes as images to forget, and are left out; delete "
            "them with those."
        )
    limit_torch_threads()
    model = to_best_device(model)
    original = copy.deepcopy(model)
    validation = _labelled(faces.validation) if len(faces.validation) else None
    gate = loss_monitor(_labelled(faces.forget), validation, _labelled(faces.retain))
    started = time.perf_counter()
    own = _own_answers(model, faces, card, known, settings)
    aiming = time.perf_counter() - started
    # Targets make it forget. Changes of images that its training did not make would only cost retained people.
    changes = settings.erasure.augmentation if own is None else settings.training.augmentation
    with progress.phase(
        f"Forgetting {len(set(faces.forget.identities))} people", 1 + settings.unlearning.max_rounds
    ) as advance:

        def read(model: FeatureClassifier) -> Reading:
            advance()
            return gate(model)

        outcome = chosen.unlearn(
            method,
            UnlearningProblem(
                model=model,
                retain=_labelled(faces.retain),
                forget=_labelled(faces.forget),
                validation=validation,
                settings=settings.unlearning,
                monitor=read,
                seed=settings.seed,
                class_weights=faces.retain.class_weights(),
                augment=augmentation(changes),
                targets=own.targets() if own else None,
            ),
        )
    samples = [_samples(one, faces) for one in (original, model)]
    again = _relearned(model, faces, settings, progress)
    described = known.described(chosen.unlearner)
    parent = digest(state_arrays(original))
    result = _judged(outcome, samples, again, faces, described, parent, settings, card.labels)
    result = result.model_copy(update={"own_answers": own is not None, "seconds": result.seconds + aiming})
    unchanged = digest(state_arrays(model)) == parent
    if unchanged:
        failed = result.verdict.model_copy(update={"outcome": Outcome.FAIL, "reasons": (_UNCHANGED,)})
        reasons = (*outcome.failures, *failed.reasons)
        result = result.model_copy(update={"verdict": failed, "success": False, "reasons": reasons})
    new = output.with_name(f".{output.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    if not unchanged:  # the original under the name of a model that has forgotten would be taken for one
        save_model(model, card.model_copy(update={"kind": "unlearned", "parent": parent}), new)
    _write_report(result, samples, new)
    new.replace(output)  # whole or not at all
    return result


def _own_answers(
    model: FeatureClassifier, faces: People, card: ModelCard, method: Method, settings: Settings
) -> OwnAnswers | None:
    """Return what to aim at; None if the settings or the method do not, inputs are no images, or nobody is unseen."""
    able = settings.erasure.own_answers and method.aims_at_references and card.input.is_image
    if not able or not len(faces.validation):
        return None
    return OwnAnswers.of(
        model,
        _labelled(faces.forget),
        few(_labelled(faces.validation)),
        _labelled(faces.retain),
        settings.seed,
        trained_on_copies=augmentation(settings.training.augmentation) is not None,
    )


def _with_unseen_people(table: Manifest, seed: int) -> Manifest:
    """Deal the people without a split to validation and test, one half each."""
    splits = [{row.split for row in rows} for rows in table.by_person().values()]
    free = sum(known == {""} for known in splits)
    wanted = {
        split: half + sum(split in known for known in splits)
        for split, half in (("validation", free // 2), ("test", free - free // 2))
    }
    return assign_people(table, validation_people=wanted["validation"], test_people=wanted["test"], sites=1, seed=seed)


def _split(table: Manifest, manifest: Path, people: Collection[str], card: ModelCard, *, nobody_unseen: bool) -> People:
    """Return the parts of a manifest.

    Parameters
    ----------
    nobody_unseen
        Whether there may be no unseen people, for somebody has said so.
    """
    table = with_whole_splits(table)
    refuse_leaks(table)
    trained = {canonical(row.identity) for row in table.rows if row.split == "train"}
    unseen = {canonical(row.identity): row.split for row in table.rows if row.split != "train"}
    for person in people:
        name = canonical(person)
        if name in unseen and name not in trained:
            raise DataError(
                f"'{person}' is of the {unseen[name]} people in {manifest}, whom the model never saw: there is nothing "
                "to forget; delete the images and their rows."
            )
        if name not in trained:
            raise DataError(f"{manifest} has no training images of '{person}'; give an identity as it stands there.")
    for split in ("validation", "test"):
        if not nobody_unseen and not any(row.split == split for row in table.rows):
            raise DataError(
                f"{manifest} names no {split} people; mark people whom the model never saw in its column 'split', "
                "some as validation (for the gate) and some as test (for the evidence), or say with --trained-on whom "
                "it was trained on."
            )
    uses = image_uses(table.rows, image_digests(table), people)
    faces = load_dataset(table, model_input=card.input, classes=card.classes, multi_label=card.multi_label)

    def used(part: Use) -> IdentityDataset:
        return faces.select([number for number, use in enumerate(uses) if use.use is part])

    retain = used(Use.TRAIN)
    if not len(retain):
        raise DataError("Everybody is to be forgotten; leave people to train on.")
    copies = sum(use.why is LeftOut.COPIED for use in uses)
    return People(retain, used(Use.FORGET), used(Use.VALIDATION), used(Use.TEST), copies)


def _labelled(faces: IdentityDataset) -> LabelledImages:
    return LabelledImages(faces.images, faces.labels, faces.people)


def _samples(model: FeatureClassifier, faces: People) -> SampleScores:
    parts = []
    for role, images in faces.parts().items():
        if not len(images):
            continue
        _, person = np.unique(np.array(images.identities), return_inverse=True)
        roles = np.full(len(images), ROLES.index(role), dtype=np.uint8)
        probabilities = predict_probabilities(model, _labelled(images))
        parts.append(SampleScores.from_probabilities(probabilities, images.labels.numpy(), person, roles))
    return SampleScores.concatenate(parts)


def _relearned(
    model: FeatureClassifier, faces: People, settings: Settings, progress: ProgressDisplay
) -> SampleScores | None:
    """Train a copy on retained people, as any later training would, and attack it: what was only hidden comes back.

    Relearning (arXiv 2505.22310), as a fleet does it: ``erasure.relearning_rounds`` rounds of ``training``.
    """
    training, rounds = settings.training, settings.erasure.relearning_rounds
    if not rounds:
        return None
    again, retain = copy.deepcopy(model), _labelled(faces.retain)
    with progress.phase("Seeing what comes back", rounds) as advance:
        for number in range(rounds):
            fit(
                again,
                retain,
                training,
                epochs=training.local_epochs,
                learning_rate=training.learning_rate,
                seed=settings.seed + number,
                class_weights=faces.retain.class_weights(),
                augment=augmentation(training.augmentation),
            )
            advance()
    recalibrate(again, retain)
    return _samples(again, faces)


def _judged(
    outcome: UnlearnOutcome,
    samples: list[SampleScores],
    again: SampleScores | None,
    faces: People,
    described: dict[str, Any],
    parent: str,
    settings: Settings,
    labels: int | None,
) -> Result:
    def scores(seen: SampleScores) -> Scores:
        return measure(seen, resamples=settings.audit.resamples, seed=settings.seed, labels=labels)

    original, unlearned = map(scores, samples)
    verdict = judge(original, unlearned, settings.audit)
    relearned = None if again is None else scores(again)
    if relearned is not None and verdict.outcome != "FAIL":
        verdict = judge_relearned(verdict, original, relearned, settings.audit)
    return Result(
        original=original,
        unlearned=unlearned,
        relearned=relearned,
        verdict=verdict,
        success=outcome.success and verdict.outcome != "FAIL",
        reasons=(*outcome.failures, *verdict.reasons),
        **described,
        settings=flatten(settings.model_dump(mode="json", include=_GOVERNING)),
        forgotten_people=len(set(faces.forget.identities)),
        forgotten_images=len(faces.forget),
        seconds=outcome.cost.seconds,
        rounds=max(0, len(outcome.trace) - 1),  # a method without a gate has no rounds
        parent=parent,
    )


def _write_report(result: Result, samples: list[SampleScores], output: Path) -> None:
    (output / "report.json").write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    groups = {"forget": Role.FORGET, "retain": Role.RETAIN, "unseen": Role.TEST}
    page = render_single(
        result=result,
        columns={"original": result.original, "unlearned": result.unlearned},
        loss_plots=[
            loss_plot(name, loss_counts({group: one.of(role).loss for group, role in groups.items()}))
            for name, one in zip(("original", "unlearned"), samples, strict=True)
        ],
    )
    (output / "report.html").write_text(page, encoding="utf-8")
