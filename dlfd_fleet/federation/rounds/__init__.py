"""The parts of jobs: queries to sites, rounds of updates, audits, and an erasure that combines them.

A round takes a :class:`Fleet` of connected nodes and the arrays of a model, and returns arrays. An audit returns
scores. A site that sends something invalid is named and left out, and the round goes on. Not stable: a ServerApp of
your own uses :class:`~dlfd_fleet.federation.FederatedUnlearning`.

Examples
--------
An erasure by another method of the registry, in a ServerApp that has asked the fleet for its requests::

    job = JobContext(fleet=fleet, card=card, settings=settings, name="erase-1", progress=progress)
    rounds, audits = Rounds(job), Audits(job)
    original = audits.audit(arrays, "Attacking the original model", "original")
    unlearned = Erasure(rounds, audits, AtAskedSites("scrub")).run(original)
    print(unlearned.verdict.sentence())
"""

from dlfd_fleet.federation.protocol.messages import Aim
from dlfd_fleet.federation.rounds.audits import AuditedModel, Audits
from dlfd_fleet.federation.rounds.erasure import AtAskedSites, Erasure, ForgettingRound, Unlearned
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.job_context import JobContext, Recorder, Unrecorded
from dlfd_fleet.federation.rounds.requests import ask_pending, settle
from dlfd_fleet.federation.rounds.rounds import Forgetting, Rounds

__all__ = [
    "Aim",
    "AtAskedSites",
    "AuditedModel",
    "Audits",
    "Erasure",
    "Fleet",
    "Forgetting",
    "ForgettingRound",
    "JobContext",
    "Recorder",
    "Rounds",
    "Unlearned",
    "Unrecorded",
    "ask_pending",
    "settle",
]
