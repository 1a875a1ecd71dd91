"""Run the federated part of an erasure: rounds of unlearning, a gate after each, and an audit.

The code is in the order of a job: unlearn at the asked sites, merge, repair, measure, audit, judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from dlfd_fleet.audit import (
    Outcome,
    Reading,
    SampleScores,
    Verdict,
    gate_metrics,
    judge,
    judge_relearned,
    judge_without_each,
    read_gate,
)
from dlfd_fleet.exceptions import DataError, JobError
from dlfd_fleet.federation.protocol.messages import Aim
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.journal import Merged
from dlfd_fleet.federation.rounds.aims import aimed_at, why_not_better
from dlfd_fleet.federation.rounds.audits import AuditedModel, Audits
from dlfd_fleet.federation.rounds.job_context import Effort, JobContext
from dlfd_fleet.federation.rounds.requests import forgotten_without_update
from dlfd_fleet.federation.rounds.rounds import Forgetting, Rounds
from dlfd_fleet.models import ModelCard
from dlfd_fleet.progress import Advance
from dlfd_fleet.report.contents import AimedAt, AttemptMade, GateReading
from dlfd_fleet.settings import ErasureSettings, Settings
from dlfd_fleet.unlearning import UtilityBound, checkpoint_rank
from dlfd_fleet.unlearning.methods import METHODS

# Of checkpoint_rank: under any round's, and the least of those that are useful and pass the gate.
_WORST_RANK, _GOOD_ENOUGH = (False, -1.0, -1.0), (True, 0.0, 0.0)
_GIVEN_UP = (
    "Retained people lost {:.3f} also after the repair, and {:g} is allowed (audit.max_retain_drop). {} too poor to "
    "aim at here, so this erasure does not use them."
)
_BLIND = (
    "At {} the model's answers to people never trained on bear no change of images, so there is nothing to aim at, and "
    "this erasure goes on at all sites."
)
_LOST_TOO_MUCH = "Retained people lost {:.3f}, and {:g} is allowed (audit.max_retain_drop)."
_ALL_WITHIN = "Every site that was asked was within its gate."
_NO_NEARER = (
    "Not every site was within its gate when a round brought none of them nearer; that round is not used, and was the "
    "last."
)
_NO_MORE_ROUNDS = (
    "The last of {} (erasure.rounds) came before every site had said that it was within its gate; what the sites said "
    "is of the model before that round."
)
_FLEETS_GATE = "The gate of the fleet was {}. In the best round it read {}accuracy {:.2f} on retained people."
_TOO_POOR = {Aim.REFERENCES: "The reference models are", Aim.OWN_ANSWERS: "The model's answers to changed images are"}
_THEN_TO_GATE = {Aim.REFERENCES: Aim.TO_GATE, Aim.OWN_ANSWERS: Aim.OWN_ANSWERS_TO_GATE}


ForgettingRound = Callable[[Rounds, Forgetting], Merged]
"""One round of forgetting: a function from a model to a model.

It returns the model after the round, and the requests whose updates are in it.
"""


@dataclass(frozen=True)
class AtAskedSites:
    """The asked sites run a registered method on their images, and their models are merged.

    Attributes
    ----------
    method
        Name of a method of :data:`~dlfd_fleet.unlearning.METHODS`, which each site must have.
    """

    method: str = "dlfd"

    @classmethod
    def of(cls, settings: ErasureSettings, card: ModelCard) -> AtAskedSites:
        """Return the settings' method, for models of a card.

        Raises
        ------
        ConfigurationError
            If there is no such method, no site can run it, or it is not defined for labels and the model has them.
        """
        method = METHODS.find(settings.method)
        method.refuse_without_unlearner_at_site()
        if card.multi_label:
            method.refuse_labels()
        return cls(settings.method)

    @property
    def aims_at_targets(self) -> bool:
        """Whether the method trains images to forget towards targets."""
        return METHODS.find(self.method).aims_at_references

    def __call__(self, rounds: Rounds, forgetting: Forgetting) -> Merged:
        """Return the merged model."""
        return rounds.unlearning_round(forgetting, self.method, rounds.job.settings.erasure.unlearning)


def with_settings_of_method(settings: Settings) -> Settings:
    """Return settings whose ``erasure.unlearning`` has the method's values where none were set.

    A job stores these, so that its report says what was done.

    Raises
    ------
    ConfigurationError
        If there is no such method, or no site can run it.
    """
    method = METHODS.find(settings.erasure.method)
    method.refuse_without_unlearner_at_site()
    unlearning = method.default.settings(settings.erasure.unlearning)
    return settings.model_copy(update={"erasure": settings.erasure.model_copy(update={"unlearning": unlearning})})


@dataclass(frozen=True)
class Unlearned:
    """The result of an erasure's federated part; ``requests`` are those in the model."""

    model: AuditedModel
    verdict: Verdict
    attempts: int
    effort: Effort
    requests: tuple[str, ...]
    relearned: tuple[AuditedModel, Effort] | None
    """The model after further ordinary training, if this was done."""
    readings: tuple[GateReading, ...]
    """The gate's readings in all attempts."""
    attempts_made: tuple[AttemptMade, ...] = ()
    """What each attempt aimed at, what it took, and how it ended."""


@dataclass(frozen=True)
class Attempted:
    """The best round of an attempt: its rank, its model, and the gate's readings.

    Attributes
    ----------
    made
        What it took, and how its rounds ended.
    given_up
        Why the attempt was given up; empty if it was not.
    """

    rank: tuple[bool, float, float]
    merged: Merged
    readings: tuple[GateReading, ...]
    made: AttemptMade
    given_up: str = ""


@dataclass(frozen=True)
class _ForgottenToGates:
    """The model after rounds to the gates of the sites, how they ended, and what retained people lost.

    Attributes
    ----------
    first, last
        By site: retain images, and the share that the model was right about before the first round, and in the end;
        the latter is empty where no site has read the model in the end.
    asked
        How many times the sites were asked to unlearn.
    rounds
        How many times the model became another one.
    reached, ended
        Whether all sites said that they are within their gates, and how the rounds ended.
    gates
        By site: what its gate read last.
    blind
        Sites that found nothing to aim at.
    """

    arrays: Arrays
    requests: frozenset[str]
    asked: int
    rounds: int
    first: Mapping[str, tuple[int, float]]
    last: Mapping[str, tuple[int, float]]
    reached: bool
    ended: str
    gates: Mapping[str, float]
    blind: tuple[str, ...] = ()

    def lost(self) -> float | None:
        """Return the mean drop in accuracy on retain images; None if unknown."""
        return _lost(self.first, self.last)


@dataclass(frozen=True)
class Erasure:
    """An erasure from rounds, audits and a round that forgets.

    Attributes
    ----------
    forget
        The round that forgets. Default: DLFD at the asked sites.

    Examples
    --------
    Another method of the registry, with the same sites, gate and attacks::

        Erasure(Rounds(job), Audits(job), AtAskedSites("scrub")).run(original)
    """

    rounds: Rounds
    audits: Audits
    forget: ForgettingRound = field(default_factory=AtAskedSites)

    @property
    def job(self) -> JobContext:
        """The context that rounds and audits share."""
        return self.rounds.job

    @property
    def _aims(self) -> tuple[Aim, ...]:
        """What sites can aim at; at a model's own answers only if the round that forgets trains towards them."""
        able = getattr(self.forget, "aims_at_targets", False)
        return tuple(aim for aim in self.job.aims if able or aim is not Aim.OWN_ANSWERS)

    def run(self, original: AuditedModel) -> Unlearned:
        """Unlearn until the verdict is not FAIL, at most ``erasure.max_attempts`` times, each time more.

        The first attempt aims at references, if all sites that unlearn have them and none reports that they are too
        poor. The next one, or the first without references, aims at the model's own answers to changed images. Both go
        to the sites' own gates. If they fail, or cost retained people more than a verdict allows, even by chance, the
        other attempts aim at nothing.

        Parameters
        ----------
        original
            The model to unlearn from, audited.
        """
        erasure = self.job.settings.erasure
        before, best_rank, number, readings = self.job.effort(), _WORST_RANK, 0, list[GateReading]()
        made = list[AttemptMade]()
        self._leave_poor_references(original)
        aims = self._aims
        while number < erasure.max_attempts + len(aims):
            number += 1
            to_gates = number <= len(aims)
            self.job.recorder.tags({"dlfd.aimed_at": ",".join(aimed_at(aims[at:]) for at in range(number))})
            attempted = (
                self._attempt_to_gates(original, number, aims[number - 1])
                if to_gates
                else self._long_attempt(original, number)
            )
            readings += attempted.readings
            if attempted.given_up:
                self.job.progress.say(f"Attempt {number}: {attempted.given_up}")
                made.append(attempted.made.model_copy(update={"failed": attempted.given_up}))
                continue
            merged = attempted.merged
            candidate = self.audits.audit(merged.arrays, "Auditing the unlearned model", f"unlearned-{number}")
            self.job.recorder.metrics(candidate.scores.metrics() | {"attempt": number}, self.job.round, number)
            after = self.job.effort()
            poor = to_gates and self._lost_too_much(original, candidate)
            verdict, relearned = self.judged(original, candidate, number, train_on=not poor)
            passed = verdict.outcome is not Outcome.FAIL and not poor
            why = "" if passed else verdict.sentence()
            if poor and verdict.outcome is not Outcome.FAIL:
                why = _LOST_TOO_MUCH.format(
                    _retained_lost(original, candidate), self.job.settings.audit.max_retain_drop
                )
            made.append(attempted.made.model_copy(update={"failed": why}))
            # Of failed attempts the one that the gate ranks best is shown: a stronger one can be the worse.
            if passed or attempted.rank > best_rank:
                best_rank = attempted.rank
                best = Unlearned(candidate, verdict, number, after - before, merged.requests, relearned, ())
            if passed:
                break
            if to_gates:
                best_rank = _WORST_RANK  # no gate of the fleet has ranked it
            self.job.progress.say(f"Attempt {number}: {why}")
        return replace(best, readings=tuple(readings), attempts_made=tuple(made))

    def judged(
        self, original: AuditedModel, candidate: AuditedModel, number: int, *, train_on: bool = True
    ) -> tuple[Verdict, tuple[AuditedModel, Effort] | None]:
        """Judge a model, and judge it again after further training unless it has failed already.

        Parameters
        ----------
        number
            Of the attempt that it comes from.
        train_on
            Whether there is to be further training.

        Returns
        -------
        tuple
            The verdict; the model after further training and what that took, if it was tried.
        """
        verdict, before = self._judge(original, candidate), self.job.effort()
        if verdict.outcome is Outcome.FAIL or not train_on or not self.job.settings.erasure.relearning_rounds:
            return verdict, None
        again = self.relearn(candidate, number)
        before_it = self.audits.beside(original, again)
        verdict = judge_relearned(verdict, before_it, again.scores, self.job.settings.audit)
        return verdict, (again, self.job.effort() - before)

    def _leave_poor_references(self, original: AuditedModel) -> None:
        """Ask the sites that unlearn about their reference models; if one reports that they are too poor, use none."""
        job = self.job
        if not job.sites_can_tell:
            return
        told = self.audits.unseen(original.arrays, job.forgetting)
        poor = {site: unseen for site, unseen in told.items() if unseen.too_poor}
        job.references_too_poor = bool(poor)
        if poor:
            site, worst = max(poor.items(), key=lambda each: each[1].model - each[1].references)
            why = f"At {site} {worst.sentence()}. They are too poor to aim at, so this erasure does not use them."
            if len(poor) > 1:
                why += f" So it is at {len(poor) - 1} of the other sites that were asked."
            job.progress.say(why)
            job.recorder.tags({"dlfd.references_too_poor": why})

    def _lost_too_much(self, original: AuditedModel, candidate: AuditedModel) -> bool:
        return _retained_lost(original, candidate) > self.job.settings.audit.max_retain_drop

    def _because(self, aim: AimedAt, number: int) -> str:
        """Say why an attempt aims at nothing better."""
        if number > 1:
            return f"attempt {number - 1} had failed"
        job, able = self.job, getattr(self.forget, "aims_at_targets", False)
        return why_not_better(aim, job.fleet.said, job.settings.erasure, too_poor=job.references_too_poor, able=able)

    def _judge(self, original: AuditedModel, candidate: AuditedModel) -> Verdict:
        audit, before, after = self.job.settings.audit, original.scores, candidate.scores
        try:
            verdict = judge(before, after, audit)
        except DataError as error:  # the sites that hold who asked were left out since
            raise JobError(f"{error}{self._absent()} The requests wait for the next job.") from error
        if verdict.outcome is Outcome.FAIL:
            return verdict
        return judge_without_each(verdict, before, after, original.own_test, candidate.own_test, audit)

    def relearn(self, model: AuditedModel, attempt: int) -> AuditedModel:
        """Train further on retain images only, and audit again, because what was only hidden returns.

        After the purge the images for an attack are gone, so this is the last chance. With references, the forgetting
        sites and a share of the others train, and only the forgetting sites audit. Their unseen people are the
        comparison, for the original, too: fewer people, and wider bounds. If these sites hold nobody unseen, all sites
        audit.
        """
        job, training, rounds = self.job, self.job.settings.training, self.job.settings.erasure.relearning_rounds
        asked = job.forgetting if job.sites_can_tell else None
        trained = job.sampled(f"relearn-{attempt}") if job.sites_can_tell else None
        arrays, total = model.arrays, rounds * len(job.fleet.admitted if trained is None else trained)
        with job.progress.phase("Training on, to see what comes back", total) as advance:
            for _ in range(rounds):
                arrays = self.rounds.fit_round(
                    arrays, "relearn", training.local_epochs, training.learning_rate, advance, at=trained
                )
        return self.audits.audit(arrays, "Attacking it again", f"relearned-{attempt}", asked)

    def attempt(self, original: AuditedModel, number: int) -> Attempted:
        """Run rounds of forgetting and repair from the original, and return the best round.

        This is the paper's dynamic strategy with a fleet's gate. While forgotten people look more like members than
        validation people do, a round forgets. Then rounds only repair: all sites train on clean images. A repair that
        makes the model less useful is undone, and the next one has a quarter of its rate; after one that helps, the
        rate is halved. It stops when the model is within the gate and has lost no more than half of what it may lose
        (``erasure.unlearning.max_utility_drop``).

        Without validation people the gate has no attack: the first round forgets, and the gate only measures retained
        people. If no asked site has anybody else to train on, there is only repair, and the audit tells whether it
        forgot them.
        """
        aims = self._aims
        return self._attempt_to_gates(original, number, aims[0]) if aims else self._long_attempt(original, number)

    def _long_attempt(self, original: AuditedModel, number: int) -> Attempted:
        """Return the best round of an attempt with the fleet's gate, as in :meth:`attempt`."""
        job, erasure = self.job, self.job.settings.erasure
        failed_at_gates, references = len(self._aims), job.sites_can_tell or job.references_too_poor
        aim = Aim.WITHOUT_REFERENCES if references else Aim.REFERENCES
        pending = dict(enumerate(job.fleet.said))
        reading = self._read(original.samples)
        self._say_what_the_gate_reads(reading)
        readings = [_noted(reading, number, 0)]
        most_drop = erasure.unlearning.max_utility_drop
        bound, half = UtilityBound.under(reading, most_drop), UtilityBound.under(reading, most_drop / 2.0)
        # Over few people the attack is noise to a tenth; like the verdict, the gate asks that its lead is halved.
        lead = 0.0 if reading.attack_auc is None else reading.attack_auc - 0.5
        gate = max(erasure.unlearning.gate, lead / 2.0)
        arrays, best, requests = original.arrays, Merged(original.arrays), forgotten_without_update(pending)
        able = any(reply.can_unlearn for reply in pending.values())
        best_rank, best_reading, rate = _WORST_RANK, reading, erasure.learning_rate
        forgot, repaired = 0, 0
        total = erasure.rounds * sum(reply.can_unlearn + reply.can_train for reply in pending.values())
        with job.progress.phase(f"Unlearning, attempt {number}", total) as advance:
            for index in range(erasure.rounds):
                # Whatever a gate over few people reads, nobody is forgotten without a round that forgets.
                forgets, kept, before = index == 0 or reading.remembered(gate), arrays, reading
                if forgets and able:
                    forgotten = self.forget(self.rounds, Forgetting(arrays, number - failed_at_gates, aim, advance))
                    arrays, requests = forgotten.arrays, requests.union(forgotten.requests)
                    forgot += 1
                arrays = self.rounds.fit_round(arrays, "repair", erasure.repair_epochs, rate, advance)
                repaired += 1
                samples = self.audits.gate_samples(arrays, f"gate-{job.round}")
                reading = self._read(samples, like=reading)
                job.recorder.gate(gate_metrics(samples, reading) | {"attempt": number}, job.round, number)
                readings.append(_noted(reading, number, job.round))
                rank = checkpoint_rank(reading, bound, gate)
                if rank > best_rank:
                    best_rank, best_reading, best = rank, reading, Merged(arrays, tuple(sorted(requests)))
                if checkpoint_rank(reading, half, gate) >= _GOOD_ENOUGH:
                    break
                if not forgets:
                    helped = reading.usefulness >= before.usefulness
                    rate *= 0.5 if helped else 0.25
                    arrays, reading = (arrays, reading) if helped else (kept, before)
        reached, auc = best_rank >= _GOOD_ENOUGH, best_reading.attack_auc
        attack = "" if auc is None else f"an attack AUC of {auc:.2f} on validation people, and "
        made = AttemptMade(
            number=number,
            aim="fleet-gate",
            because=self._because("fleet-gate", number),
            forgetting=forgot,
            repair=repaired,
            reached=reached,
            ended=_FLEETS_GATE.format("reached" if reached else "not reached", attack, best_reading.retain_accuracy),
        )
        return Attempted(best_rank, best, tuple(readings), made)

    def _attempt_to_gates(self, original: AuditedModel, number: int, aim: Aim) -> Attempted:
        """Forget at the asked sites only, until each reports that its people are forgotten.

        A site reads that from what it aims at, so no other site is asked. None repairs,
        unless the sites that were asked have lost more than half of what a model may lose
        (``erasure.unlearning.max_utility_drop``) on their own retained people: then they and a share of the others
        repair once, and the sites that were asked go to their gates once more. Where these sites, and the others that
        repaired, have then still lost more than a verdict allows (``audit.max_retain_drop``), the attempt is given up.

        The model goes out as its difference from the original, which the other sites hold. Where several rounds have
        made it, it is rounded to that difference; the sites that were asked hold the last round's, and are sent it
        whole.
        """
        job, erasure = self.job, self.job.settings.erasure
        pending = dict(enumerate(job.fleet.said))
        total = erasure.rounds * sum(reply.can_unlearn for reply in pending.values())
        with job.progress.phase(f"Unlearning to the gates of the sites, attempt {number}", total) as advance:
            forgotten = self._rounds_to_gates(original.arrays, advance, aim)
            made = self._made(number, aim, forgotten)
            if forgotten.blind:
                return Attempted(_WORST_RANK, Merged(original.arrays), (), made, forgotten.ended)
            arrays, requests, several = forgotten.arrays, forgotten.requests, forgotten.rounds > 1
            if not forgotten.last and forgotten.first:
                last = self.audits.retained(arrays, f"gate-{job.round}", job.forgetting)
                forgotten = replace(forgotten, last=last)
            lost = forgotten.lost()
            if lost is not None:
                job.recorder.metrics({"retained_loss": lost}, job.round, number)
            if lost is not None and lost > erasure.unlearning.max_utility_drop / 2.0:
                job.progress.say(f"Retained people of the sites that were asked lost {lost:.3f}: one round repairs.")
                arrays = self.rounds.as_sent(arrays, original.arrays) if several else arrays
                at = job.sampled(f"repair-{number}")
                arrays = self.rounds.fit_round(
                    arrays,
                    "repair",
                    erasure.repair_epochs,
                    erasure.learning_rate,
                    advance,
                    at=at,
                    augmentation=job.settings.training.augmentation,
                )
                made = made.model_copy(update={"repair": 1})
                left = _lost(original.retained, self.audits.retained(arrays, f"gate-{job.round}", at))
                if left is not None:
                    job.recorder.metrics({"retained_loss": left}, job.round, number)
                if left is not None and left > job.settings.audit.max_retain_drop:
                    why = _GIVEN_UP.format(left, job.settings.audit.max_retain_drop, _TOO_POOR[aim])
                    return Attempted(_WORST_RANK, Merged(arrays), (), made, why)
                again = self._rounds_to_gates(arrays, advance, aim, repaired=True)
                arrays, requests, several = again.arrays, requests | again.requests, True
                made = self._made(number, aim, again, made)
        arrays = self.rounds.as_sent(arrays, original.arrays) if several else arrays
        requests = forgotten_without_update(pending).union(requests)
        return Attempted(_GOOD_ENOUGH, Merged(arrays, tuple(sorted(requests))), (), made)

    def _made(
        self, number: int, aim: Aim, forgotten: _ForgottenToGates, before_repair: AttemptMade | None = None
    ) -> AttemptMade:
        """Return what an attempt to the gates of the sites took so far, and how its last rounds ended."""
        aimed = aimed_at([aim])
        return AttemptMade(
            number=number,
            aim=aimed,
            because=self._because(aimed, number),
            forgetting=forgotten.asked + (before_repair.forgetting if before_repair else 0),
            repair=before_repair.repair if before_repair else 0,
            reached=forgotten.reached,
            ended=forgotten.ended,
            gates=dict(forgotten.gates),
        )

    def _rounds_to_gates(
        self, arrays: Arrays, advance: Advance, aim: Aim, *, repaired: bool = False
    ) -> _ForgottenToGates:
        """Run rounds among the sites that were asked until each is done, or ``erasure.rounds`` of them.

        A site that is done is not merged, so the others' share grows. A gate on few images varies by chance, so each
        site unlearns in the first round, unless that follows a repair. Where people are few, or models hardly knew them
        better than anybody, chance keeps a gate by the model's own answers from ever being reached: then a round after
        one that brought no site nearer is not used, and is the last.
        """
        requests, first, last, count = set[str](), dict[str, tuple[int, float]](), dict[str, tuple[int, float]](), 0
        reached, left, gates, asked = False, dict[str, float | None](), dict[str, float](), 0
        blind, most, not_used = list[str](), self.job.settings.erasure.rounds, False
        while not reached and count < most:
            now = _THEN_TO_GATE[aim] if repaired or count else aim
            # Targets make it forget. Changes of images that its training did not make would only cost retained people.
            augmentation = self.job.settings.training.augmentation
            forgotten = self.forget(self.rounds, Forgetting(arrays, 1, now, advance, augmentation))
            asked += 1
            gates |= {site: share for site, share in forgotten.left.items() if share is not None}
            reached = all(torch.equal(array, arrays[name]) for name, array in forgotten.arrays.items())
            if aim is Aim.OWN_ANSWERS:
                blind = sorted(site for site, share in forgotten.left.items() if share is None)
                not_used = bool(count) and not reached and not _came_nearer(left, forgotten.left)
                left = dict(forgotten.left)
            if blind:
                break
            last = dict(forgotten.retained)
            first = first or last
            count += not reached
            if not_used:
                break
            requests.update(forgotten.requests)
            arrays = forgotten.arrays
        if not (reached or blind or not_used):
            last = dict(forgotten.retained_after)
        if blind:
            ended = _BLIND.format(", ".join(blind))
        elif not_used:
            ended = _NO_NEARER
        else:
            ended = _ALL_WITHIN if reached else _NO_MORE_ROUNDS.format("1 round" if most == 1 else f"{most} rounds")
        return _ForgottenToGates(
            arrays, frozenset(requests), asked, count, first, last, reached and not blind, ended, gates, tuple(blind)
        )

    def _read(self, samples: SampleScores, like: Reading | None = None) -> Reading:
        """Read the gate on the same people as an earlier reading, so that both compare."""
        labels = self.job.card.labels
        try:
            reading = read_gate(samples, None if labels is None else samples.each_label(labels))
            if like is not None and (reading.utility is None) != (like.utility is None):
                raise DataError("Validation people were read before and are not read now, or the other way round.")
            return reading
        except DataError as error:
            raise JobError(f"{error}{self._absent()} The requests wait for the next job.") from error

    def _absent(self) -> str:
        fleet = self.job.fleet
        return f" Sites that did not answer: {fleet.why_absent()}." if fleet.absent else ""

    def _say_what_the_gate_reads(self, original: Reading) -> None:
        if original.utility is None:
            self.job.progress.say(
                "No site has validation people, so the gate reads accuracy on retained people only, and there is one "
                "round of forgetting an attempt."
            )


def _retained_lost(original: AuditedModel, candidate: AuditedModel) -> float:
    return original.scores.retain_accuracy.value - candidate.scores.retain_accuracy.value


def _noted(reading: Reading, attempt: int, number: int) -> GateReading:
    return GateReading(
        attempt=attempt,
        round=number,
        utility=reading.utility,
        utility_half_width=reading.utility_half_width,
        retain_accuracy=reading.retain_accuracy,
        attack_auc=reading.attack_auc,
    )


def _came_nearer(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> bool:
    """Tell whether at any site that was in both rounds less is left. What one site says stops no other's forgetting."""
    pairs = [(before[site], after[site]) for site in before.keys() & after.keys()]
    return not pairs or any(one is not None and other is not None and other < one for one, other in pairs)


def _lost(before: Mapping[str, tuple[int, float]], after: Mapping[str, tuple[int, float]]) -> float | None:
    """Return the mean drop in accuracy on retain images, of sites that are in both."""
    sites = before.keys() & after.keys()
    images = sum(after[site][0] for site in sites)
    return sum(after[site][0] * (before[site][1] - after[site][1]) for site in sites) / images if images else None
