"""Which way an erasure takes, unlearning or training anew, and what each is expected to cost.

What is compared is what the two ways do not have in common, up to the audit of the new model: bytes of arrays between
the coordinator and all sites, and seconds that sites work. Bytes follow from the size of what is trained. Seconds
follow from how long the sites worked in earlier jobs of this fleet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dlfd_fleet.federation.protocol.differences import difference_of
from dlfd_fleet.federation.protocol.messages import PendingReply
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.rounds.aims import aimed_at, aims_of, have_references
from dlfd_fleet.federation.rounds.rounds import STRONGER
from dlfd_fleet.models import ModelCard
from dlfd_fleet.report.contents import AimedAt, Phase
from dlfd_fleet.settings import AugmentationSettings, ErasureSettings, Settings
from dlfd_fleet.unlearning.own_answers import MOST_OTHERS, images_answered

_MADE = {"train": "original", "erase": "unlearned"}
"""Which of a job's models it releases."""
_THERE_AND_BACK, _THERE_AND_BACK_FROZEN = 3.0, 2.0
"""A pass forward and backward, in passes forward: through layers that learn, and through frozen ones to the pixels."""


class Way(BaseModel):
    """The way that an erasure takes, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    taken: Literal["unlearn", "retrain"]
    why: str = ""
    """In one sentence; nothing where there was no choice."""
    doubt: str = ""
    """Why training anew would not be exact; nothing if it is, as far as is known."""


@dataclass(frozen=True)
class Expected:
    """What one way is expected to cost."""

    bytes: float
    seconds: float | None
    """Of all sites together; None where no earlier job of the fleet says."""

    def sentence(self) -> str:
        """Return it in words."""
        work = "" if self.seconds is None else f" and {self.seconds:.1f} s of the sites' work"
        return f"{self.bytes / 1e6:.1f} MB{work}"


@dataclass(frozen=True)
class Pace:
    """How long the sites of a fleet worked for each image that they train on."""

    training: float
    """Seconds in one round of training."""
    audit: float
    """Seconds in one audit."""

    @classmethod
    def of(cls, earlier: Iterable[JobRecord]) -> Pace | None:
        """Return the pace of the latest earlier job that has trained and audited; None if there is none."""
        found = None
        for record in earlier:
            phases, images = record.proceedings.phases, sum(site.training_images for site in record.proceedings.sites)
            trained = phases.get("retrain") or phases.get("train")
            audits = [phase for name, phase in phases.items() if name.startswith("audit-") and "file" not in name]
            if images and trained and trained.site_seconds and audits:
                found = cls(training=_each(trained) / images, audit=_each(*audits) / images)
        return found


# One fleet's model was within 2 points of a retrained one until then, and not later (docs/experiments/life.md).
_MANY_ERASURES = 25


@dataclass(frozen=True)
class SinceTraining:
    """What has become of the fleet's model since it was last trained from fresh weights.

    Attributes
    ----------
    erasures
        By unlearning, that were released since.
    accuracy_then, accuracy_now
        On test people: after that training, and of the model that was released last; None where nobody was unseen.
    rounds
        Of training that are in the model: of that training, and of those that went on from it since. 0 if unknown.
    failed_in
        The last erasure since then that trained anew, and whose model failed; empty if there is none.
    """

    erasures: int
    accuracy_then: float | None
    accuracy_now: float | None
    rounds: int = 0
    failed_in: str = ""

    @classmethod
    def of(cls, earlier: Iterable[JobRecord]) -> SinceTraining:
        """Return it, of a fleet's jobs so far, oldest first."""
        erasures, rounds, trained, failed_in = 0, 0, False, ""
        then: float | None = None
        now: float | None = None
        for record in earlier:
            if record.proceedings.anew_failed:
                failed_in = record.job
            if not record.released:
                continue
            anew = record.proceedings.retrained if record.kind == "erase" else bool(record.proceedings.began_with)
            made = record.models.get("retrained" if record.kind == "erase" and anew else _MADE.get(record.kind, ""))
            phase = record.proceedings.phases.get("train" if record.kind == "train" else "retrain")
            more = phase.steps if phase and (anew or record.kind == "train") else 0
            if made is not None:
                now = made.scores.test_accuracy.value if made.scores.test_accuracy else None
            if anew or not trained:  # a model that was imported, or made by a release before this one
                erasures, rounds, then, trained = 0, more, now, True
            elif record.kind == "erase" and record.models:
                erasures += 1
            else:
                rounds += more
            if anew or record.kind == "train":
                failed_in = ""
        return cls(erasures, then, now, rounds, failed_in)

    @property
    def lost(self) -> float:
        """Test accuracy that was lost since."""
        if self.accuracy_then is None or self.accuracy_now is None:
            return 0.0
        return self.accuracy_then - self.accuracy_now

    def why_retrain(self, settings: ErasureSettings) -> str:
        """Say why the next erasure trains anew by the settings' policy; nothing if it does not.

        Where that was tried and failed, it is not tried again until the fleet has trained.
        """
        if self.failed_in:
            return ""
        after, drift = settings.retrain_after, settings.retrain_drift
        if after is not None and self.erasures >= after:
            return f"{self.sentence()} (erasure.retrain_after is {after})"
        if drift is not None and self.lost > drift:
            return f"{self.sentence()} (erasure.retrain_drift is {drift:g})"
        return ""

    def advice(self, settings: ErasureSettings) -> str:
        """Say what keeps a model of many erasures from being trained anew; nothing if nothing does."""
        if self.failed_in:
            return f"Training it anew failed in {self.failed_in}, and is tried again once the fleet has trained"
        policy = settings.retrain_after is not None or settings.retrain_drift is not None
        if policy or self.erasures < _MANY_ERASURES:
            return ""
        return "No setting trains it anew: consider erasure.retrain_after or erasure.retrain_drift"

    def sentence(self) -> str:
        """Return it in words."""
        many = "1 erasure" if self.erasures == 1 else f"{self.erasures} erasures"
        said = f"{many} by unlearning since the last full training"
        if self.accuracy_then is None or self.accuracy_now is None:
            return said
        return f"{said}, and test accuracy was {self.accuracy_then:.3f} then and is {self.accuracy_now:.3f} now"


def _each(*phases: Phase) -> float:
    return sum(phase.site_seconds for phase in phases) / sum(phase.steps for phase in phases)


def choose(
    settings: Settings,
    card: ModelCard,
    arrays: Arrays,
    replies: Sequence[PendingReply],
    earlier: Sequence[JobRecord],
    doubt: str,
) -> Way:
    """Return the way that the settings ask for (``erasure.way``); of the cheapest, what is expected to cost less.

    Where the one sends fewer bytes and the other works less, the product of both decides. Where sites' work is not
    known yet, bytes do. Training anew is not taken for its cost where it is not exact.

    Parameters
    ----------
    card, arrays
        The model that the fleet runs.
    replies
        What the sites that take part hold, and who asks.
    earlier
        Records of the fleet's other jobs, oldest first.
    doubt
        Why training anew would not be exact, if so.
    """
    way, since = settings.erasure.way, SinceTraining.of(earlier)
    if reason := since.why_retrain(settings.erasure):
        return Way(taken="retrain", why=f"The model is trained anew: {reason}.", doubt=doubt)
    if way == "retrain":
        return Way(taken="retrain", why="The model is trained anew, as erasure.way asks.", doubt=doubt)
    if way == "unlearn" or since.failed_in:
        why = "" if way == "unlearn" else f"The model is unlearned. {since.advice(settings.erasure)}."
        return Way(taken="unlearn", why=why, doubt=doubt)
    pace, sent = Pace.of(earlier), _sizes(settings, card, arrays)
    anew = retraining(sent, replies, pace, rounds_anew(settings, earlier))
    attempts = expected_attempts(settings, replies, earlier)
    unlearned = unlearning(settings, card, sent, replies, pace, attempts)
    by_unlearning = f"{unlearned.sentence()} {attempts.sentence()}"
    compared = f"training anew is expected to take {anew.sentence()}, and unlearning {by_unlearning}"
    if anew.seconds is None:
        compared += " (no earlier job says how long the sites would work)"
    elif unlearned.seconds is not None and (anew.bytes - unlearned.bytes) * (anew.seconds - unlearned.seconds) < 0.0:
        compared += " (one sends less and the other works less; the product of both counts)"
    if doubt:
        why = f"The model is unlearned, for training anew would not be exact: {doubt}; {compared}."
        return Way(taken="unlearn", why=why, doubt=doubt)
    if not any(reply.can_unlearn for reply in replies) or _times(anew, unlearned) <= 1.0:
        return Way(taken="retrain", why=f"The model is trained anew, which is exact and cheaper: {compared}.")
    return Way(taken="unlearn", why=f"The model is unlearned, which is cheaper: {compared}.")


def _times(one: Expected, other: Expected) -> float:
    """Return how many times as much one way costs as another."""
    bytes_ = one.bytes / max(other.bytes, 1.0)
    if one.seconds is None or other.seconds is None:
        return bytes_
    return bytes_ * one.seconds / max(other.seconds, 1e-9)


@dataclass(frozen=True)
class Sizes:
    """Bytes of what is trained of a model: whole, and as it travels once the other side holds the one before."""

    whole: int
    step: int


def _sizes(settings: Settings, card: ModelCard, arrays: Arrays) -> Sizes:
    trained = card.trained(arrays)
    step = difference_of(trained, trained, settings.fleet.update_precision)
    return Sizes(
        whole=sum(array.nbytes for array in trained.values()), step=sum(array.nbytes for array in step.values())
    )


def rounds_anew(settings: Settings, earlier: Iterable[JobRecord]) -> int:
    """Return for how many rounds a model is trained anew: at least as many as are in the one that it replaces.

    With fewer it would know retained people less, and fail for that.
    """
    return max(settings.training.rounds, SinceTraining.of(earlier).rounds)


def retraining(sizes: Sizes, replies: Sequence[PendingReply], pace: Pace | None, rounds: int) -> Expected:
    """Return what training anew is expected to cost: fresh weights to each site, then each round, then the audit."""
    sites = sum(reply.can_train for reply in replies)
    there = sites * (sizes.whole + (rounds - 1) * sizes.step)
    back, audit = sites * rounds * sizes.step, len(replies) * sizes.step
    images = _images(replies)
    seconds = None if pace is None else images * (rounds * pace.training + pace.audit)
    return Expected(bytes=there + back + audit, seconds=seconds)


@dataclass(frozen=True)
class Rounds:
    """How many rounds one attempt to unlearn takes: those that forget, and those that repair.

    At a gate of the whole fleet, all sites repair, and answer the gate after that. Sites with gates of their own repair
    by need, with a share of the others.
    """

    aim: AimedAt
    forgetting: int
    repair: int

    @property
    def to_gates(self) -> bool:
        """Whether sites go to gates of their own."""
        return self.aim != "fleet-gate"


@dataclass(frozen=True)
class Attempts:
    """What unlearning takes in all its attempts.

    Attributes
    ----------
    rounds
        Those of each attempt, in order.
    audits, relearned
        How many unlearned models are audited, and how many are trained on and attacked again.
    as_before
        Whether the last erasure of this kind took as many; else it is the most that the first attempt may take.
    """

    rounds: tuple[Rounds, ...]
    audits: int = 1
    relearned: int = 1
    as_before: bool = False

    def sentence(self) -> str:
        """Return it in words."""
        number = sum(max(one.forgetting, one.repair) for one in self.rounds)
        rounds = "in 1 round" if number == 1 else f"in {number} rounds"
        if len(self.rounds) > 1:
            rounds += f" and {len(self.rounds)} attempts"
        return f"{rounds}, as in the last erasure" if self.as_before else f"{rounds} at most"


def expected_attempts(settings: Settings, replies: Sequence[PendingReply], earlier: Sequence[JobRecord]) -> Attempts:
    """Return what the last erasure took in all its attempts that aimed at the same at first; or else one attempt.

    Erasures of earlier releases do not say what they aimed at: those with a gate of the fleet are of one kind, all
    others of another.
    """
    aim, most = aimed_at(aims_of(replies, settings.erasure)), settings.erasure.rounds
    for record in reversed(earlier):
        noted, phases = record.proceedings, record.proceedings.phases
        if record.kind != "erase" or "distancing" not in phases:
            continue
        steps = {name: phase.steps for name, phase in phases.items()}
        rounds: tuple[Rounds, ...] = ()
        if noted.attempts_made:
            if noted.attempts_made[0].aim == aim:
                rounds = tuple(Rounds(one.aim, one.forgetting, one.repair) for one in noted.attempts_made)
        elif bool(noted.readings) is (aim == "fleet-gate"):
            rounds = (Rounds(aim, steps["distancing"], steps.get("repair", 0)),)
        if rounds:
            audits, relearned = (max(1, steps.get(f"audit-{name}", 0)) for name in ("unlearned", "relearned"))
            return Attempts(rounds, audits, relearned, as_before=True)
    return Attempts((Rounds(aim, most, most if aim == "fleet-gate" else 0),))


def unlearning(
    settings: Settings,
    card: ModelCard,
    sizes: Sizes,
    replies: Sequence[PendingReply],
    pace: Pace | None,
    attempts: Attempts,
) -> Expected:
    """Return what unlearning is expected to cost: rounds of all attempts, audits, and further training with an attack.

    Where sites go to gates of their own, those that are asked alone take part in rounds; else all sites repair and
    answer the fleet's gate. With references, only a share of the others takes part in further training.
    """
    erasure, everybody = settings.erasure, len(replies)
    asked = [reply for reply in replies if reply.can_unlearn]
    able, images = sum(reply.can_train for reply in replies), _images(replies)
    references, again = have_references(replies), erasure.relearning_rounds
    sampled = (len(asked) + math.ceil(erasure.repair_share * (everybody - len(asked)))) / everybody
    share = sampled if references else 1.0
    exchanges = float(attempts.audits * everybody)
    for one in attempts.rounds:
        # Whoever holds a model is not sent it again: sites that forget begin with the one that was audited.
        exchanges += one.forgetting * (len(asked) + (len(asked) if one.to_gates else able))
        # By need a share of the sites gets the model, sends it back, and is asked what retained people have lost.
        exchanges += one.repair * ((2 * able + everybody) * sampled if one.to_gates else able + everybody)
    if again:
        after = len(asked) if references else everybody
        exchanges += attempts.relearned * ((2.0 * again - 1.0) * share * able + after)
    # A further attempt begins with the original, which sites have given up for the model of the attempt before.
    whole = (len(attempts.rounds) - 1) * (
        len(asked) * sizes.whole + (everybody - len(asked)) * (sizes.whole - sizes.step)
    )
    if pace is None:
        return Expected(bytes=exchanges * sizes.step + whole, seconds=None)
    forward = _forward(settings, card, pace)
    through = _THERE_AND_BACK_FROZEN if card.frozen else _THERE_AND_BACK
    distancing = _images(asked) * erasure.unlearning.epochs * (erasure.unlearning.steps + 1) * through * forward
    repair = images * (erasure.repair_epochs * (1.0 if card.frozen else through) * forward + pace.audit)
    answered = sum(
        images_answered(reply.forget_images, min(reply.unseen_images, MOST_OTHERS), reply.retain_images)
        for reply in asked
    )
    seconds, longer = attempts.audits * images * pace.audit, 1.0
    for one in attempts.rounds:
        seconds += one.forgetting * distancing * (1.0 if one.to_gates else longer)
        seconds += one.repair * repair * (sampled if one.to_gates else 1.0)
        seconds += answered * forward if one.aim == "own-answers" else 0.0
        longer *= 1.0 if one.to_gates else STRONGER
    seconds += attempts.relearned * share * images * (again * pace.training + pace.audit) if again else 0.0
    return Expected(bytes=exchanges * sizes.step + whole, seconds=seconds)


def _forward(settings: Settings, card: ModelCard, pace: Pace) -> float:
    """Return how long an image takes through the whole network, as far as training and audits tell."""
    training = settings.training
    changed = training.augmentation != AugmentationSettings()
    passes = training.local_epochs * (1.0 if card.frozen else _THERE_AND_BACK)
    if card.frozen and not changed:
        passes = 1.0  # what frozen layers make of it is computed once a round
    return min(pace.audit, pace.training / passes)


def _images(replies: Iterable[PendingReply]) -> int:
    return sum(reply.retain_images for reply in replies if reply.can_train)
