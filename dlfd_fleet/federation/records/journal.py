"""Keep the finished steps of a job on disk, so that none is done again.

A job is a plain function whose costly or visible acts go through :class:`Journal`. After its process died, the same
function runs again: finished steps return their results, and the first missing step is done. Code between steps must
depend only on their results.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from dlfd_fleet.audit import ReferenceSums, SampleScores
from dlfd_fleet.exceptions import JobCancelledError
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.costs import Cost, SiteCost, difference
from dlfd_fleet.federation.records.job_record import FinishedStep
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.models import digest

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Merged:
    """A model merged from several sites' updates, and the requests in it.

    Attributes
    ----------
    retained
        By site: its number of retain images, and the earlier model's accuracy on them.
    retained_after
        The same of the merged model, where that is known without asking: it is the update of one site alone.
    long_updates
        By site: the largest norm that an update may have in the next round of this kind, of those that are shortened.
    base
        Digest of the model that the updates are of; empty where nobody compares it.
    left
        By site: the share that the earlier model had still to forget, by what the site aims at; None if at nothing.
    """

    arrays: Arrays
    requests: tuple[str, ...] = ()
    retained: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    retained_after: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    long_updates: Mapping[str, float] = field(default_factory=dict)
    base: str = ""
    left: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """Samples of a model or a file; for a file also its difference from torch and the number of images."""

    samples: SampleScores
    max_abs_difference: float = 0.0
    images: int = 0
    agreeing: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    """By site, in order: how many of the samples are of people whom it alone holds; the last ones all sites hold."""
    references: Mapping[str, ReferenceSums] = field(default_factory=dict)
    """By site: sums beside what its reference models say, where they have answered."""
    asked_of: str = ""
    """Digest of the model or the file; empty where nobody compares it."""


class Traffic(Protocol):
    """Counts the array bytes of a job and the cost of each site."""

    sent_bytes: int
    received_bytes: int
    sites_took: dict[str, SiteCost]


@dataclass
class Uncounted:
    """Traffic of a job that has not started."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sites_took: dict[str, SiteCost] = field(default_factory=dict)


@dataclass
class Journal:
    """The finished steps of one job.

    Attributes
    ----------
    store, job
        Store and job of the steps. Without a store every step is done and none is kept.
    traffic
        Counts bytes; a finished step adds its earlier bytes.
    seconds
        Seconds of all steps so far, in this process and earlier ones.
    costs
        Cost of each step, in order.
    """

    store: Store | None = None
    job: str = ""
    traffic: Traffic = field(default_factory=Uncounted)
    seconds: float = 0.0
    costs: list[tuple[str, Cost]] = field(default_factory=list)

    def is_done(self, name: str) -> bool:
        """Tell whether a step is finished."""
        return self.store is not None and self.store.steps.find(self.job, name) is not None

    def drop_arrays(self, names: Collection[str]) -> None:
        """Delete the arrays of finished steps."""
        if self.store is not None:
            self.store.steps.drop_arrays(self.job, names)

    def abandon(self, kind: str) -> None:
        """Delete finished steps of a kind that have arrays."""
        if self.store is not None:
            self.store.steps.abandon(self.job, kind)

    def merged(self, name: str, compute: Callable[[], Merged], base: Arrays | None = None) -> Merged:
        """Do, or recall, a step that ends in a model.

        Parameters
        ----------
        base
            The model that the updates are of: a step that was of another one is done again.
        """
        of = self._digest(base)
        done = self._step(
            name,
            lambda: replace(compute(), base=of),
            lambda result: (
                _MERGED.dump_json(
                    (
                        result.requests,
                        dict(result.retained),
                        dict(result.retained_after),
                        dict(result.long_updates),
                        result.base,
                        dict(result.left),
                    )
                ),
                result.arrays,
            ),
            lambda found: _fits(Merged({}, *_MERGED.validate_json(found.result)).base, of),
        )
        return done if isinstance(done, Merged) else Merged(done.arrays, *_MERGED.validate_json(done.result))

    def answers(self, name: str, compute: Callable[[], Answers], asked_of: Arrays | bytes | None = None) -> Answers:
        """Do, or recall, a step that ends in what a model says of images.

        Parameters
        ----------
        asked_of
            The model or the file: a step that was about another one is done again.
        """
        of = self._digest(asked_of)
        done = self._step(
            name,
            lambda: replace(compute(), asked_of=of),
            lambda result: (
                _PARITY.dump_json(
                    (
                        result.max_abs_difference,
                        result.images,
                        result.agreeing,
                        dict(result.rows),
                        dict(result.references),
                        result.asked_of,
                    )
                ),
                _columns(result.samples),
            ),
            lambda found: _fits(_recalled(found).asked_of, of),
        )
        return done if isinstance(done, Answers) else _recalled(done)

    def facts(self, name: str, kind: type[_T], compute: Callable[[], _T]) -> _T:
        """Do a step that returns a JSON value, or return its stored result."""
        adapter = TypeAdapter(kind)
        done = self._step(name, compute, lambda result: (adapter.dump_json(result), {}))
        return adapter.validate_json(done.result) if isinstance(done, FinishedStep) else done

    def facts_of(self, asked_of: Arrays | bytes, name: str, kind: type[_T], compute: Callable[[], _T]) -> _T:
        """Do, or recall, a step that ends in a JSON value about a model or a file; of another one it is done again."""
        of, adapter = self._digest(asked_of), TypeAdapter(_FactsOf[kind])  # type: ignore[valid-type]
        done = self._step(
            name,
            lambda: _FactsOf(of, compute()),
            lambda result: (adapter.dump_json(result), {}),
            lambda found: _about(found) == of,
        )
        return (adapter.validate_json(done.result) if isinstance(done, FinishedStep) else done).facts

    def _digest(self, of: Arrays | bytes | None) -> str:
        if of is None or self.store is None:
            return ""
        return hashlib.sha256(of).hexdigest() if isinstance(of, bytes) else digest(of)

    def _step(
        self,
        name: str,
        compute: Callable[[], _T],
        pack: Callable[[_T], tuple[bytes, Mapping[str, Tensor]]],
        stands: Callable[[FinishedStep], bool] = lambda _: True,
    ) -> _T | FinishedStep:
        """Return a finished step, or do it.

        Parameters
        ----------
        stands
            Whether a finished step is of what the job has now; else it is done again.

        Raises
        ------
        JobCancelledError
            Before a step that is not finished, if the job was cancelled.
        """
        found = self.store.steps.find(self.job, name) if self.store else None
        if self.store and found is not None and not stands(found):
            logger.warning("The step '%s' of %s was of another model, and is done again", name, self.job)
            self.store.steps.drop(self.job, name)
            found = None
        if found is not None:
            self.seconds += found.cost.seconds
            self.traffic.sent_bytes += found.cost.sent_bytes
            self.costs.append((name, found.cost))
            return found
        if self.store and self.store.is_cancelled(self.job):
            raise JobCancelledError(f"The job {self.job} was cancelled before its step '{name}'.")
        started, own = time.perf_counter(), time.process_time()
        before, sites = self._bytes(), dict(self.traffic.sites_took)
        result = compute()
        seconds, own = time.perf_counter() - started, time.process_time() - own
        cost = Cost(seconds, self._bytes() - before, own, difference(self.traffic.sites_took, sites, seconds))
        if self.store:
            text, arrays = pack(result)
            self.store.steps.finish(self.job, FinishedStep(name, text.decode(), dict(arrays), cost))
        self.seconds += seconds
        self.costs.append((name, cost))
        return result

    def _bytes(self) -> int:
        return self.traffic.sent_bytes + self.traffic.received_bytes


_RETAINED = dict[str, tuple[int, float]]
_SUMS = dict[str, ReferenceSums]


@dataclass(frozen=True)
class _FactsOf(Generic[_T]):
    """A JSON value, and the digest of the model or the file that it is about."""

    of: str
    facts: _T


# Steps of earlier releases have no long updates, no share that is left, no sums, and no digests.
_MERGED = TypeAdapter(
    tuple[tuple[str, ...], _RETAINED, _RETAINED]
    | tuple[tuple[str, ...], _RETAINED, _RETAINED, dict[str, float], str]
    | tuple[tuple[str, ...], _RETAINED, _RETAINED, dict[str, float], str, dict[str, float | None]]
)
_PARITY = TypeAdapter(
    tuple[float, int, int, dict[str, int]]
    | tuple[float, int, int, dict[str, int], _SUMS]
    | tuple[float, int, int, dict[str, int], _SUMS, str]
)


def _about(step: FinishedStep) -> object:
    """Return the digest in the result of :meth:`Journal.facts_of`; steps of earlier releases have none."""
    result = json.loads(step.result)
    return result.get("of") if isinstance(result, dict) else None


def _fits(found: str, wanted: str) -> bool:
    return found in ("", wanted) or not wanted


def _recalled(step: FinishedStep) -> Answers:
    samples = SampleScores(**{column: array.numpy() for column, array in step.arrays.items()})
    return Answers(samples, *_PARITY.validate_json(step.result))


def _columns(samples: SampleScores) -> dict[str, Tensor]:
    return {
        column.name: torch.from_numpy(np.ascontiguousarray(getattr(samples, column.name))) for column in fields(samples)
    }
