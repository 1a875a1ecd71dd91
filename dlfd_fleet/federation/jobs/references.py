"""The references job: models that never saw half of the people, whose answers the sites keep for erasures to come."""

from __future__ import annotations

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.erase import Origin
from dlfd_fleet.federation.jobs.ways import rounds_anew
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.job_record import ReferencesMade
from dlfd_fleet.federation.rounds.references import References
from dlfd_fleet.models import ModelCard
from dlfd_fleet.settings import Settings


def refuse_no_references(settings: Settings) -> None:
    """Raise a :class:`JobError` if the settings ask for no reference models."""
    if not settings.references.models:
        raise JobError("references.models is 0; set how many reference models to train, such as 4.")


def references(job: Coordinator, origin: Origin) -> None:
    """Train the reference models of the champion, and let each site keep what they say of its images.

    The champion is audited first where it has frozen layers: from then on the sites hold these, and are not sent them
    with each model.
    """
    job.pending(origin.card)
    if origin.card.frozen:
        job.audits(origin.card).audit(origin.arrays, "Auditing the champion", "champion")
    note = make_references(job, origin.card, origin.arrays, rounds_anew(job.settings, job.earlier))
    job.advance("settled", note=note, epoch=origin.card.epoch)


def make_references(job: Coordinator, card: ModelCard, champion: Arrays, rounds: int) -> str:
    """Make the reference models of a champion in a job whose sites have been asked; return in words what they took.

    Parameters
    ----------
    rounds
        Of training for each, as many as are in the champion: with fewer they would be too poor to aim at.

    Raises
    ------
    JobError
        If no site has the answers of all of them in the end.
    """
    models, context = job.settings.references.models, job.context(card)
    before, first, sites = context.effort(), context.round, tuple[str, ...]()
    job.advance(job.record.step, references=ReferencesMade(models=models))
    for made, missing in enumerate(References(job.rounds(card)).make(champion, models, rounds), 1):
        took, sites = context.effort() - before, tuple(sorted(site for site, none in missing.items() if not none))
        done = ReferencesMade(
            models=models,
            made=made,
            rounds=context.round - first,
            seconds=took.seconds,
            bytes_sent=took.sent_bytes,
            sites=len(sites),
            of_sites=len(job.fleet.admitted),
        )
        job.advance(job.record.step, references=done)
    if not sites:
        raise JobError(f"No site has the answers of all {models} reference models: {job.fleet.why_absent()}.")
    told = {site: each for site, each in job.audits(card).unseen(champion).items() if site in sites}
    poor = {site: each for site, each in told.items() if each.too_poor}
    for site, unseen in poor.items():
        job.progress.say(f"At {site} {unseen.sentence()}: too little for an erasure to aim at.")
    took, compared = context.effort() - before, {"aiming": len(told) - len(poor), "too_poor": len(poor)}
    done = done.model_copy(update=compared | {"seconds": took.seconds, "bytes_sent": took.sent_bytes})
    job.advance(job.record.step, references=done)
    job.recorder.metrics({"references.seconds": done.seconds, "references.bytes_sent": done.bytes_sent}, 0)
    return done.sentence()
