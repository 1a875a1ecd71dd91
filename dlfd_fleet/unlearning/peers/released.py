"""The steps of the code that the authors of DLFD released, for comparison only."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dlfd_fleet.unlearning.contract import UnlearningProblem, UnlearnOutcome
from dlfd_fleet.unlearning.peers.noise import normalisation
from dlfd_fleet.unlearning.session import Session, refuse_labels
from dlfd_fleet.unlearning.training import predict_probabilities
from dlfd_fleet.unlearning.transport import cosine_cost, transport_distance


@dataclass(frozen=True)
class ReleasedDlfd:
    """Our own code for what github.com/Dasol-Choi/DLFD computes; for comparison only, not for unlearning.

    It differs from its paper (arXiv 2409.14747), which :func:`dlfd_fleet.unlearning.dlfd` follows:

    - Transport is between the logits of forget images and of retain images without their noise. So the noise gets no
      gradient from it, and ``forget_weight`` has no effect.
    - The noise only reduces the classification loss. It has no ball. The noisy image is clamped to [0, 1] after
      normalisation, which removes everything darker than the mean. A step takes three passes with gradients of the
      weights.
    - The first batch is in train mode and all others in eval mode, because the monitor leaves the model in eval mode.
    - After every batch the monitor predicts every image of all sets. Its attack accuracy, at least the share of the
      larger side, is the gate and chooses the checkpoint.
    - Batches are not shuffled. A batch is skipped if it is not as large as its forget batch. Here batches are equal
      parts of the forget set, so that few are skipped, as in the authors' large sets.

    It is not a :class:`Peer`, because batch-norm statistics stay as after the first batch.

    Attributes
    ----------
    steps, strength
        Sign steps a batch, and their size in units of the normalised image.
    gate, bound
        Attack accuracy, as distance from 0.5. Under ``gate`` no noise is added; up to ``bound`` a checkpoint is kept.
    """

    one_class_only: ClassVar[bool] = True

    forget_weight: float = 3.0
    steps: int = 15
    strength: float = 0.4
    gate: float = 0.15
    bound: float = 0.09

    def __call__(self, problem: UnlearningProblem, /) -> UnlearnOutcome:
        """Go once over the retain set, and keep the most useful checkpoint under the bound, or the last weights.

        Raises
        ------
        ValueError
            If a set is empty, or images have several labels.
        """
        model, retain, forget = problem.model, problem.retain, problem.forget
        refuse_labels(type(self).__name__, retain)
        session = Session(replace(problem, monitor=None, augment=None))  # it has a monitor of its own
        optimizer = session.optimizer()
        size = max(2, len(forget) // math.ceil(len(forget) / problem.settings.batch_size))
        batches, forget_batches = (torch.split(torch.arange(len(data)), size) for data in (retain, forget))
        forget_batches = forget_batches[: max(1, len(forget) // size)]
        score, best = 0.5, _Checkpoint(-1.0, 0, {})
        model.train()
        for place, (rows, forget_rows) in enumerate(zip(batches, itertools.cycle(forget_batches), strict=False)):
            if session.expired():
                break
            if len(rows) != len(forget_rows):
                continue
            images, labels = retain.batch(rows, session.device)
            if score >= self.gate:
                others = forget.batch(forget_rows, session.device)[0]
                images = self._noisy(session, images, labels, others, place / max(1, len(batches) - 1))
            session.step(optimizer, session.loss(session.logits(images), labels), len(images))
            score, utility = _read(session)
            if score <= self.bound and utility > best.utility:
                weights = {name: value.clone() for name, value in model.state_dict().items()}
                best = _Checkpoint(utility, session.steps, weights)
        if best.weights:
            model.load_state_dict(best.weights)
        return session.outcome(chosen_step=best.step if best.weights else None, failures=session.collapse())

    def _noisy(self, session: Session, images: Tensor, labels: Tensor, others: Tensor, retain_weight: float) -> Tensor:
        """Return the noisy images that the released code trains on.

        The weight of the classification loss rises from 0 to 1. sign() removes it, except for the 0 of the first batch.
        """
        mean, std = normalisation(session.model)
        plain, settings = (images - mean) / std, session.settings
        noise = torch.zeros_like(plain)
        for _ in range(self.steps):
            noise.requires_grad_(True)
            moved = session.logits((plain + noise).clamp(0.0, 1.0) * std + mean)
            cost = cosine_cost(session.logits(images), session.logits(others))
            distance = transport_distance(cost, settings.sinkhorn_epsilon, settings.sinkhorn_iterations)
            objective = self.forget_weight * distance - retain_weight * functional.cross_entropy(moved, labels)
            wanted = [noise, *session.trained]  # the released steps pay for the weights' gradients too
            gradient = torch.autograd.grad(objective, wanted, allow_unused=True)[0]
            session.backward_images += 2 * len(images) + len(others)
            noise = noise.detach() + self.strength * gradient.sign()
        return (plain + noise).clamp(0.0, 1.0).mul(std).add(mean).detach()


@dataclass(frozen=True)
class _Checkpoint:
    utility: float
    step: int
    weights: dict[str, Tensor]


def _read(session: Session) -> tuple[float, float]:
    """Return how far the attack's accuracy is from 0.5, and the accuracy on validation people.

    Like the released monitor, it also predicts the retain set, without use, and leaves the model in eval mode.
    """
    # Sites import this module and never compare: scikit-learn would take a second of each of their messages.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    before = time.perf_counter()
    session.model.eval()
    losses, utility = [], 0.0
    for data in (session.retain, session.forget, session.validation):
        probabilities, labels = predict_probabilities(session.model, data), data.labels.cpu().numpy()
        losses.append(-np.log(probabilities[np.arange(len(data)), labels].clip(1e-12)))
        utility = float((probabilities.argmax(axis=1) == labels).mean())
        session.forward_images += len(data)
    member = np.repeat([1, 0], [len(session.forget), len(session.validation)])
    folds, accuracy = min(5, len(session.forget), len(session.validation)), 1.0
    if folds > 1:
        attack = cross_val_score(LogisticRegression(), np.concatenate(losses[1:])[:, None], member, cv=folds)
        accuracy = float(attack.mean())
    session.monitor_seconds += time.perf_counter() - before
    return abs(accuracy - 0.5), utility
