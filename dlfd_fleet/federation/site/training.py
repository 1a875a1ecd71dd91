"""Train or unlearn at a site in a round, and return the update."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from dlfd_fleet.answers import decided
from dlfd_fleet.data.dataset import IdentityDataset, augmentation
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.differences import difference_of
from dlfd_fleet.federation.protocol.messages import (
    Aim,
    FitResult,
    FitTask,
    UnlearnResult,
    UnlearnTask,
)
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.site.images import labelled, used_images, with_people
from dlfd_fleet.federation.site.job_requests import refuse_job_that_lost_its_requests, requests_of_job
from dlfd_fleet.federation.site.model import loaded_model, refuse_old_models, site_seed
from dlfd_fleet.federation.site.own_answers import few, has_own_answers, own_answers_of
from dlfd_fleet.federation.site.references import half_of, references_of
from dlfd_fleet.federation.site.training_data import TrainingRows
from dlfd_fleet.federation.task import Task, Train
from dlfd_fleet.ledger.entries import ForgetRequest
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.site_uses import FEWEST_TO_TRAIN
from dlfd_fleet.ledger.states import RequestState
from dlfd_fleet.models import FeatureClassifier, state_arrays
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning import (
    Augment,
    LabelledImages,
    UnlearningProblem,
    UnlearnOutcome,
    fit,
    predict_probabilities,
    recalibrate,
)
from dlfd_fleet.unlearning.monitor import read_shift
from dlfd_fleet.unlearning.own_answers import OwnAnswers
from dlfd_fleet.unlearning.references import References


def run_fit(site: Site, task: FitTask, arrays: Arrays, own: Task | None = None) -> tuple[FitResult, Arrays]:
    """Train on retain images, or for a reference model on those of its half, without anybody who asked."""
    started = time.perf_counter()
    refuse_old_models(site, task.card)
    model = loaded_model(site, task.card, arrays, own)
    images = used_images(site)
    retain = images.retain() if task.reference is None else half_of(site, task, images)
    if len(retain) < FEWEST_TO_TRAIN:
        raise JobError("This site has fewer than two images to train on.")
    if task.reference is None:
        images.note_trained(site)
    loss = (
        _train_own_way(own.train, model, retain, task)
        if own and own.train
        else fit(
            model,
            labelled(retain),
            task.training,
            epochs=task.epochs,
            learning_rate=task.learning_rate,
            seed=site_seed(site, task.seed),
            cosine=task.purpose == "repair",  # A round that ends at a large rate leaves a trained model worse.
            class_weights=_weights(task),
            augment=_augmentation(task),
            loss=own.loss if own else None,
            optimizer=own.optimizer if own else None,
        )
    )
    if task.final:
        recalibrate(model, labelled(retain))
    seconds = time.perf_counter() - started
    result = FitResult(epoch=task.card.epoch, examples=len(retain), loss=loss, seconds=seconds)
    return result, difference_of(state_arrays(model), arrays, task.precision)


def _weights(task: FitTask | UnlearnTask) -> torch.Tensor:
    """Return the loss weights of classes, or of both values of labels."""
    weights = torch.tensor(task.class_weights)
    return weights.view(-1, 2) if task.card.multi_label else weights


def run_unlearn(site: Site, task: UnlearnTask, arrays: Arrays, own: Task | None = None) -> tuple[UnlearnResult, Arrays]:
    """Run the task's method on the people of this job's requests.

    Raises
    ------
    JobError
        If this site does not have the method, or has nobody to forget or to train on.
    """
    from dlfd_fleet.unlearning.methods import METHODS  # of all messages only this one needs them

    started = time.perf_counter()
    if task.method not in METHODS:
        raise JobError(
            f"This site has no method of unlearning '{task.method}' (erasure.method); install its package here, too."
        )
    method = METHODS[task.method].unlearner_at_site
    model = loaded_model(site, task.card, arrays, own)
    asked = _asked(site, task, model)
    (left, _), accuracy = asked.read(model, task.unlearning), asked.retain_accuracy(model)
    outcome = method(
        UnlearningProblem(
            model=model,
            retain=asked.retain,
            forget=asked.forget,
            validation=asked.validation,
            settings=task.unlearning,
            seed=site_seed(site, task.seed),
            class_weights=_weights(task),
            augment=_augmentation(task),
            loss=own.loss if own else None,
            optimizer=own.optimizer if own else None,
            references=asked.references,
            targets=asked.own.targets() if asked.own else None,
        )
    )
    seconds = time.perf_counter() - started
    result = _unlearned(site, task, asked, left, accuracy, outcome=outcome, seconds=seconds)
    return result, difference_of(state_arrays(model), arrays, task.precision)


def within_gate(site: Site, task: UnlearnTask, arrays: Arrays, own: Task | None = None) -> UnlearnResult | None:
    """Return a result without an update if what the site aims at shows that the model has forgotten this job's people.

    Returns
    -------
    UnlearnResult or None
        None if it has not forgotten, the site has nothing to aim at for these people, or the task does not ask.
    """
    started = time.perf_counter()
    # Whoever was not there in the first round has not unlearned yet.
    if not task.aim.to_gate or (task.aim.at_own and not has_own_answers(site, task)):
        return None
    model = loaded_model(site, task.card, arrays, own)
    asked = _asked(site, task, model)
    left, forgotten = asked.read(model, task.unlearning)
    if not forgotten:
        return None
    accuracy = asked.retain_accuracy(model)
    return _unlearned(site, task, asked, left, accuracy, seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class _Asked:
    """A site's images to forget and to retain in a job, and what it aims at if there is anything."""

    requests: tuple[ForgetRequest, ...]
    forget: LabelledImages
    retain: LabelledImages
    validation: LabelledImages | None = None
    references: References | None = None
    own: OwnAnswers | None = None

    def read(self, model: FeatureClassifier, settings: UnlearningSettings) -> tuple[float | None, bool]:
        """Return the share that is left to forget in a model, and whether that is within the site's gate.

        The first round has unlearned already. By references, another one of people whose reading is above the gate by
        chance would make them stand out as people whom models know less than strangers: only what is surely left
        counts. Towards the model's own answers nobody goes further than these, but each round costs retained people:
        a standard error above the gate is enough, if that is not more than the gate again.

        Returns
        -------
        tuple
            None and False without anything to aim at.
        """
        if self.validation is None:
            return None, False
        if self.own is not None:
            left, gate = self.own.left(model, self.forget, self.validation), settings.own_gate
            return left.share, left.share <= gate + min(left.error, gate)
        shift = None
        if self.references is not None:
            shift = read_shift(model, self.forget, self.validation, self.references)
        return (None, False) if shift is None else (shift.left, shift.left_for_sure <= settings.reference_gate)

    def retain_accuracy(self, model: FeatureClassifier) -> float | None:
        """Return a model's accuracy on retain images; None without anything to aim at."""
        if self.references is None and self.own is None:
            return None
        said = decided(predict_probabilities(model, self.retain), multi_label=self.retain.multi_label)
        return float((said == self.retain.labels.numpy()).mean())


def _asked(site: Site, task: UnlearnTask, model: FeatureClassifier) -> _Asked:
    """Return the images to forget and to retain, and note in the ledger on whom the site trains.

    Parameters
    ----------
    model
        As it came: in an erasure's first round its own answers are stored, for this round and those that follow.

    Raises
    ------
    JobError
        If there is nobody to forget or to train on.
    """
    refuse_old_models(site, task.card)
    refuse_job_that_lost_its_requests(site, task.job)
    requests = requests_of_job(site, task.job)
    images = used_images(site)
    forget, retain = images.forget(requests), images.retain()
    if not len(forget):
        raise JobError("This site has trained on no image of anybody who asked to be forgotten.")
    if len(retain) < FEWEST_TO_TRAIN:
        raise JobError("This site has fewer than two images to train on.")
    images.note_trained(site)
    known = _Asked(tuple(requests), with_people(forget), labelled(retain))
    unseen = images.validation()
    if task.aim.at_own:
        unseen = few(unseen)
        own = own_answers_of(site, task, model, forget, unseen, known.retain)
        return known if own is None else replace(known, validation=with_people(unseen), own=own)
    if task.aim is Aim.WITHOUT_REFERENCES or (references := references_of(site, forget, unseen)) is None:
        return known
    return replace(known, validation=with_people(unseen), references=references)


def _unlearned(
    site: Site,
    task: UnlearnTask,
    asked: _Asked,
    left: float | None,
    retain_accuracy: float | None,
    *,
    outcome: UnlearnOutcome | None = None,
    seconds: float,
) -> UnlearnResult:
    """Note in the ledger that the site has answered, and return the result."""
    for request in asked.requests:
        if request.state is RequestState.UNLEARNING:
            site.ledger.move(request.id, RequestState.EVALUATING, "the update was sent", job=task.job)
    return UnlearnResult(
        epoch=task.card.epoch,
        requests=tuple(sorted(site.job_request_id(request.id, task.job) for request in asked.requests)),
        forget_examples=len(asked.forget),
        retain_examples=len(asked.retain),
        steps=outcome.chosen_step if outcome else 0,
        left=None if left is None else round(left, 2),
        retain_accuracy=retain_accuracy,
        retain_accuracy_after=asked.retain_accuracy(outcome.model) if outcome else None,
        done=outcome is None,
        seconds=seconds,
    )


def _train_own_way(train: Train, model: FeatureClassifier, retain: IdentityDataset, task: FitTask) -> float:
    """Run the training loop of the app's task; return its loss, or 0.

    Raises
    ------
    JobError
        If its loss is not a number.
    """
    model.train()
    rows = TrainingRows(retain, task.card.input)
    with model.kept_frozen():
        told = train(model.network, rows, epochs=task.epochs, learning_rate=task.learning_rate)
    model.eval()
    loss = 0.0 if told is None else float(told)
    if not math.isfinite(loss):
        raise JobError(f"The training loop of this app's task returned a loss of {loss}; the model is broken.")
    return loss


def _augmentation(task: FitTask | UnlearnTask) -> Augment | None:
    """Return the augmentation of images; None for numbers."""
    return augmentation(task.augmentation) if task.card.input.is_image else None
