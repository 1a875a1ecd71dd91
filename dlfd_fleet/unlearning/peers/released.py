"""The steps of the code that the authors of DLFD released, for comparison only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from torch import Tensor
from torch.nn import functional

from dlfd_fleet.models import FeatureClassifier
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning.contract import Augment, LabelledImages, Monitor, UnlearnOutcome
from dlfd_fleet.unlearning.session import Session
from dlfd_fleet.unlearning.training import predict_probabilities
from dlfd_fleet.unlearning.transport import cosine_cost, transport_distance


@dataclass(frozen=True)
class ReleasedDlfd:
    """What Dasol-Choi/DLFD computes, which is not what the paper describes; our own code, never to be used.

    Transport is computed on the unperturbed retain logits, so the noise gets no gradient from it and ``forget_weight``
    changes nothing; the noise that is left minimises the classification error, without a ball, on normalised images,
    clamped to [0, 1]; parameter gradients are kept throughout; everything is attacked after every batch, by the
    attack that also chooses the checkpoint; after the first batch the model is in eval mode for good.

    Attributes
    ----------
    steps, strength
        Sign steps a batch, and their size in units of the normalised image.
    gate, bound
        Unbalanced attack accuracy above 0.5 under which there is no noise, and under which a checkpoint is kept.
    """

    forget_weight: float = 3.0
    steps: int = 15
    strength: float = 0.4
    gate: float = 0.15
    bound: float = 0.09

    def __call__(
        self,
        model: FeatureClassifier,
        retain: LabelledImages,
        forget: LabelledImages,
        validation: LabelledImages,
        settings: UnlearningSettings,
        monitor: Monitor | None = None,  # noqa: ARG002 - it has its own
        *,
        seed: int = 0,
        class_weights: Tensor | None = None,
        augment: Augment | None = None,  # noqa: ARG002 - it has none
    ) -> UnlearnOutcome:
        """Go once over the retain set; keep the most useful checkpoint under the bound, or the last one."""
        session = Session(model, retain, forget, validation, settings, seed, class_weights)
        optimizer, others = session.optimizer(), session.cycle(forget)
        best: tuple[float, int, dict[str, Tensor]] | None = None
        score = 0.5
        model.train()
        for images, labels in session.batches(retain):
            moved = images
            if score > self.gate and len(images) == settings.batch_size:
                moved = self._noisy(session, images, labels, next(others)[0])
            session.step(optimizer, session.loss(session.logits(moved), labels), len(images))
            score, utility = self._attack(session)
            model.eval()
            if score <= self.bound and (best is None or utility > best[0]):
                best = utility, session.steps, {name: value.clone() for name, value in model.state_dict().items()}
        if best is not None:
            model.load_state_dict(best[2])
        return session.outcome(chosen_step=best[1] if best is not None else None)

    def _noisy(self, session: Session, images: Tensor, labels: Tensor, others: Tensor) -> Tensor:
        """Return the images that the released steps train on, in [0, 1] of the pixel range."""
        mean, std = (
            getattr(session.model, name, images.new_tensor(value)) for name, value in (("mean", 0.5), ("std", 0.25))
        )
        plain = (images - mean) / std
        noise = torch.zeros_like(plain)
        for _ in range(self.steps):
            noise.requires_grad_(True)
            settings = session.settings
            cost = cosine_cost(session.logits(images), session.logits(others))
            distance = transport_distance(cost, settings.sinkhorn_epsilon, settings.sinkhorn_iterations)
            moved = session.logits((plain + noise).clamp(0.0, 1.0) * std + mean)
            objective = self.forget_weight * distance - functional.cross_entropy(moved, labels)
            wanted = [noise, *session.model.parameters()]  # parameter gradients are computed and thrown away
            gradient = torch.autograd.grad(objective, wanted, allow_unused=True)[0]
            noise = noise.detach() + self.strength * gradient.sign()
            session.backward_images += 2 * len(images) + len(others)
        return ((plain + noise).clamp(0.0, 1.0) * std + mean).detach()

    def _attack(self, session: Session) -> tuple[float, float]:
        """Attack all of the forget set and of the validation people, and predict all of the retain set, as released."""
        losses, accuracy = [], 0.0
        for data in (session.retain, session.forget, session.validation):
            probabilities = predict_probabilities(session.model, data)
            truth = probabilities[np.arange(len(data)), data.labels.numpy()]
            losses.append(-np.log(truth.clip(1e-12)))
            accuracy = float((probabilities.argmax(axis=1) == data.labels.numpy()).mean())
            session.forward_images += len(data)
        loss = np.concatenate(losses[1:])[:, None]
        member = np.repeat([1, 0], [len(session.forget), len(session.validation)])
        folds = min(5, len(session.forget), len(session.validation))
        if folds < 2:
            return 0.5, accuracy
        return abs(float(cross_val_score(LogisticRegression(), loss, member, cv=folds).mean()) - 0.5), accuracy
