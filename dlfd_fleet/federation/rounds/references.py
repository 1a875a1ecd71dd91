"""Train a fleet's reference models on halves of the people, let sites store their answers, and delete them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.protocol.messages import Reference, ReferenceResult, ReferenceTask
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.rounds.rounds import Rounds, seed_of_reference
from dlfd_fleet.models import start, state_arrays

ROUND = "reference"
"""Kind of steps with arrays of reference models."""
_ANSWERS = "answers"


@dataclass(frozen=True)
class References:
    """Makes the reference models of a job.

    Attributes
    ----------
    rounds
        Rounds of the job, on models of the champion's card.
    """

    rounds: Rounds

    def make(self, champion: Arrays, models: int, rounds: int | None = None) -> Iterator[dict[str, int]]:
        """Train each model and let the sites store its answers, in several steps of the job.

        A model starts with fresh weights and the champion's frozen layers. Its arrays are deleted from the job's steps
        once the sites have answered.

        Parameters
        ----------
        rounds
            Of training for each, if not ``training.rounds``.

        Yields
        ------
        dict
            After each model: the number of models without answers at each site.
        """
        job = self.rounds.job
        for number in range(models):
            reference, before = Reference(number=number, models=models), job.round
            fresh = self.rounds.beside_held(self._fresh(champion, reference), champion)
            trained = self.rounds.train(fresh, "reference", reference, held=champion, rounds=rounds)
            missing = job.journal.facts(f"{_ANSWERS}-{number}", dict[str, int], self._asking(trained, reference))
            job.journal.drop_arrays([f"{ROUND}-{each}" for each in range(before + 1, job.round + 1)])
            yield {site: count - (models - 1 - number) for site, count in missing.items()}

    def _fresh(self, champion: Arrays, reference: Reference) -> Arrays:
        job = self.rounds.job
        torch.manual_seed(seed_of_reference(job.settings.seed, reference, 0))
        return state_arrays(start(job.card, job.settings.model.weights)) | job.card.frozen_of(champion)

    def _asking(self, arrays: Arrays, reference: Reference) -> Callable[[], dict[str, int]]:
        return lambda: self._ask(arrays, reference)

    def _ask(self, arrays: Arrays, reference: Reference) -> dict[str, int]:
        job, fleet, missing = self.rounds.job, self.rounds.job.fleet, dict[str, int]()
        task = ReferenceTask(job=job.name, card=job.card, reference=reference)
        nodes = fleet.wait_for_nodes()
        title = f"Keeping at the sites what reference model {reference.number + 1} of {reference.models} says"
        with job.progress.phase(title, len(nodes)) as advance:
            tasks = dict.fromkeys(nodes, task.to_records(model=arrays))
            for reply in fleet.exchange(task.TYPE, tasks, str(job.round), job.card, keep=False):
                advance()
                try:
                    result = ReferenceResult.from_records(reply.records, reply.sender)
                except MessageError as error:
                    fleet.refuse(reply.node, error)
                    continue
                fleet.worked(reply.node, result.seconds)
                missing[reply.sender] = result.missing
        fleet.require_quorum(len(missing), f"answered {task.TYPE}")
        return missing
