"""Unlearning in a ServerApp of one's own: the erasure of a fleet, with the caller's model and release."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from dlfd_fleet.audit import Verdict
from dlfd_fleet.configuration import load_settings
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.jobs.erase import Origin, erase
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.records.journal import Journal
from dlfd_fleet.federation.rounds.erasure import with_settings_of_method
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.rounds.job_context import Effort
from dlfd_fleet.federation.rounds.site_keys import SiteKeys
from dlfd_fleet.models import ModelCard, permit
from dlfd_fleet.plain_text import PlainConsole
from dlfd_fleet.progress import ConsoleProgress, ProgressDisplay
from dlfd_fleet.settings import Settings

Release = Callable[[ArrayRecord, ModelCard, Verdict], None]


@dataclass
class UnlearningResult(Result):
    """Flower's result, and how the erasure ended.

    Attributes
    ----------
    arrays
        The released model; the initial one if none was released.
    evaluate_metrics_clientapp
        The audit's scores: 0 of the initial model, 1 of the one that has forgotten.
    card
        What the arrays are, with the erasure epoch.
    verdict
        None if nobody who was trained on asks to be forgotten.
    """

    card: ModelCard = field(kw_only=True)
    verdict: Verdict | None = None


@dataclass(kw_only=True)
class FederatedUnlearning:
    """Forgets everybody who asks at the nodes of a grid: Flower's ``start``, as a strategy has it.

    Attributes
    ----------
    card
        The model that travels.
    settings
        The whole tree; when omitted, what ``dlfd-fleet config show`` shows: the file of ``DLFD_FLEET_CONFIG`` and the
        ``DLFD_FLEET_*`` variables over the defaults.
    job
        Name of the job, sent with every task.
    progress
        Where progress goes.

    Examples
    --------
    In a ServerApp of one's own::

        strategy = FederatedUnlearning(card=card)
        result = strategy.start(grid, ArrayRecord.from_torch_state_dict(model.state_dict()), release)
        print(result.verdict.sentence() if result.verdict else "Nobody asks to be forgotten.")
    """

    card: ModelCard
    settings: Settings = field(default_factory=lambda: load_settings().settings)
    job: str = field(default_factory=lambda: f"unlearn-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
    progress: ProgressDisplay = field(default_factory=lambda: ConsoleProgress(PlainConsole()))

    def start(
        self, grid: Grid, initial_arrays: ArrayRecord, release: Release, timeout: float | None = None
    ) -> UnlearningResult:
        """Forget everybody who asks: the erasure of a fleet's own ServerApp, without its state folder and MLflow.

        Parameters
        ----------
        grid
            Flower's grid; its nodes run :func:`~dlfd_fleet.federation.add_unlearning`.
        initial_arrays
            State dict of the model that remembers them, as :attr:`card` describes it.
        release
            Called with a model that may be released, its card and the verdict, BEFORE the sites purge the images of
            the forgotten: it must have kept the model when it returns. If it raises, nothing is purged.
        timeout
            Longest wait for the replies of one round, seconds; ``fleet.reply_timeout_seconds`` when omitted.

        Raises
        ------
        JobError
            If no site answers, or too few of them do. As after any other error, the requests wait for the next start.
        """
        settings = with_settings_of_method(self.settings)
        permit(settings.model.architecture)
        keys = SiteKeys(bound=settings.fleet.registered_keys)
        fleet = Fleet.under(settings.fleet, grid, keys)
        if timeout is not None:
            fleet = replace(fleet, timeout=timeout)
        record = JobRecord(job=self.job, kind="erase", step="started", started_at=datetime.now(UTC))
        journal = Journal(traffic=fleet)
        job = Coordinator(settings, fleet, journal, self.progress, record, lambda: self.card.epoch)
        kept = KeptByCaller(job, release)
        origin = Origin(self.card, dict(initial_arrays.to_torch_state_dict()), Effort(0.0, 0))
        try:
            erase(job, origin, kept)
        except Exception as error:
            if not job.record.released:
                job.give_back(f"the job failed: {type(error).__name__}")
            raise
        result = UnlearningResult(
            arrays=kept.arrays or initial_arrays, card=kept.card or self.card, verdict=job.record.verdict
        )
        ended = "retrained" if job.record.proceedings.retrained else "unlearned"
        for number, column in enumerate(("original", ended)):
            if column in job.models:
                scores = job.models[column].scores.metrics()
                result.evaluate_metrics_clientapp[number] = MetricRecord({**scores})
        return result


@dataclass
class KeptByCaller:
    """The releaser of somebody else's ServerApp: its own code keeps the model, and nothing is exported or drawn."""

    job: Coordinator
    keep: Release
    arrays: ArrayRecord | None = None
    card: ModelCard | None = None

    def prepare(self) -> None:
        """Refuse nothing."""

    def release_or_hold(
        self, card: ModelCard, arrays: Arrays, forgotten: tuple[str, ...] = (), *, hold: bool = False
    ) -> None:
        """Hand over a model that may be released."""
        if hold:
            return
        verdict = self.job.record.verdict
        if verdict is None:
            raise JobError(f"{self.job.record.job} has no verdict, so its model is not handed over.")
        record = ArrayRecord.from_torch_state_dict(arrays)
        self.keep(record, card, verdict)
        self.arrays, self.card = record, card
        self.job.advance("released", released=True, epoch=card.epoch, forgotten=forgotten)

    def show(self) -> str:
        """Draw nothing."""
        return ""
