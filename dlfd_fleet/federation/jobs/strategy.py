"""A fleet's training and erasure in a ServerApp of one's own: the same jobs as those of the fleet's own ServerApp."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.configuration import load_settings
from dlfd_fleet.exceptions import JobError, VerdictError
from dlfd_fleet.federation.app_errors import log_errors_in_words
from dlfd_fleet.federation.jobs.due import ask_whether_due
from dlfd_fleet.federation.jobs.run import run_jobs
from dlfd_fleet.federation.jobs.train import Given
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.records.due import Due
from dlfd_fleet.federation.records.job_record import JobKind, JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release.champion import agreed_champion
from dlfd_fleet.federation.task import Task
from dlfd_fleet.models import ModelCard, digest, load_model, permit, state_arrays
from dlfd_fleet.plain_text import PlainConsole
from dlfd_fleet.progress import ConsoleProgress, ProgressDisplay
from dlfd_fleet.settings import ExportSettings, Settings, TrackingSettings
from dlfd_fleet.tracking import open_tracker


@dataclass
class JobResult(Result):
    """Flower's result, and how the job ended.

    Attributes
    ----------
    arrays
        The fleet's champion after the job: the released model, or the one before.
    evaluate_metrics_clientapp
        The audits' scores: of an erasure 0 of the model that remembers, 1 of the one that has forgotten.
    record
        The job: its name, its verdict, what it released, who took no part and why.
    card
        What the arrays are, with the erasure epoch.
    """

    record: JobRecord = field(kw_only=True)
    card: ModelCard = field(kw_only=True)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict; None where nothing had to be judged, as when nobody asks to be forgotten."""
        return self.record.verdict

    def raise_for_verdict(self) -> None:
        """Fail if the verdict is FAIL; then the run fails, and ``dlfd-fleet job start`` ends with exit code 1.

        Raises
        ------
        VerdictError
            If it is.
        """
        if self.verdict is not None and self.verdict.outcome is Outcome.FAIL:
            raise VerdictError(f"The verdict is {self.verdict.sentence()} No model is released; the requests wait.")

    def sentence(self) -> str:
        """Say in words how it ended, and which sites took no part."""
        said = [self.record.verdict.sentence()] if self.record.verdict else []
        said += [self.record.note] if self.record.note else []
        said += [f"{site} {reason}" for site, reason in sorted(self.record.absent.items())]
        return " ".join(f"{one[0].upper()}{one[1:].rstrip('.')}." for one in said)


@dataclass(kw_only=True)
class FederatedUnlearning:
    """The fleet's jobs on a Flower grid: train, take over what another has trained, make references, forget.

    All of it is what the fleet's own ServerApp does: a journal in ``settings.state_folder``, from which a job that was
    killed goes on; MLflow and its registry; ONNX; an audit before anything is released; the report and the certificate.

    Attributes
    ----------
    task
        The model and the data; when omitted, the settings name the model.
    settings
        The whole tree; when omitted, what ``dlfd-fleet config show`` shows: the file of ``DLFD_FLEET_CONFIG`` and the
        ``DLFD_FLEET_*`` variables over the defaults.
    tracking, export
        These sections, in the place of those of the settings.
    progress
        Where progress goes.
    started_by, reason
        Who starts the jobs, and why: their records say it. ``dlfd-fleet job start`` tells an app that has the keys
        ``by`` and ``reason`` in its configuration.

    Raises
    ------
    ModelFileError
        If the task's network is no classifier of its input and classes.

    Examples
    --------
    In a ServerApp of one's own, beside one's own FedAvg::

        unlearning = FederatedUnlearning(task=task)
        result = FedAvg().start(grid, unlearning.arrays() or fresh, num_rounds=3)
        unlearning.adopt(grid, result.arrays)
        print(unlearning.start(grid).sentence())
    """

    task: Task | None = None
    settings: Settings = field(default_factory=lambda: load_settings().settings)
    tracking: TrackingSettings | None = None
    export: ExportSettings | None = None
    progress: ProgressDisplay = field(default_factory=lambda: ConsoleProgress(PlainConsole()))
    started_by: str = ""
    reason: str = ""
    _begun: tuple[str, int] | None = field(default=None, init=False, repr=False)
    _epoch: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        """Put the task and the sections into the settings."""
        sections = {"tracking": self.tracking, "export": self.export}
        given = {name: section for name, section in sections.items() if section is not None}
        self.settings = self.settings.model_copy(update=given)
        if self.task is not None:
            self.settings = self.task.settings(self.settings)
            self.task.check()
        permit(self.settings.model.architecture)
        with closing(Store(self.settings.state_folder)) as store:
            self._epoch = store.champions.epoch()  # of a training that begins with fresh weights from now on
        log_errors_in_words()

    def arrays(self) -> ArrayRecord | None:
        """Return the champion's weights, which a training goes on from; None if there is no champion yet."""
        known = self._champion()
        if known is None:
            return None
        arrays, card = known
        self._begun = digest(arrays), card.epoch
        return ArrayRecord.from_torch_state_dict(arrays)

    def train(self, grid: Grid, *, start: Literal["champion", "fresh"] | None = None) -> JobResult:
        """Train by the fleet's own federated averaging, and release the model unless it is worse than the champion.

        Parameters
        ----------
        start
            What to begin with; ``training.start`` of the settings when omitted.

        Raises
        ------
        JobError
            If no site can train, or the model is worse than the champion.
        """
        settings = self.settings
        if start is not None:
            training = settings.training.model_copy(update={"start": start})
            settings = settings.model_copy(update={"training": training})
        return self._result(self._run(grid, "train", settings))

    def adopt(self, grid: Grid, arrays: ArrayRecord, *, fresh: bool = False) -> JobResult:
        """Audit a model that another strategy has trained, and release it unless it is worse than the champion.

        Parameters
        ----------
        arrays
            State dict of the task's network.
        fresh
            Whether the training began with fresh weights, and not with :meth:`arrays`.

        Raises
        ------
        JobError
            If the fleet has forgotten somebody, and the training began neither with fresh weights nor with the
            champion of today's erasure epoch, which :meth:`arrays` gives: it may remember them. If the weights are not
            those of the network, or the model is worse than the champion.
        """
        weights = dict(arrays.to_torch_state_dict())
        parent = self._parent(fresh=fresh)
        begun = self._epoch if self._begun is None or fresh else self._begun[1]
        settings = self.settings
        if fresh:
            settings = settings.model_copy(update={"training": settings.training.model_copy(update={"start": "fresh"})})
        return self._result(self._run(grid, "train", settings, Given(weights, parent, begun)))

    def start(self, grid: Grid) -> JobResult:
        """Forget everybody who asks at the nodes of a grid.

        Raises
        ------
        JobError
            If there is no champion yet, no site answers, or too few of them do. The requests wait for the next start.
        """
        return self._result(self._run(grid, "erase", self.settings))

    def whether_due(self, grid: Grid) -> Due:
        """Ask the sites what waits there, and tell whether an erasure is due by the settings (``erasure.due``).

        Nothing changes: no request is taken up, and there is no job.

        Raises
        ------
        JobError
            If no site answers.
        """
        return ask_whether_due(grid, self.settings)

    def make_references(self, grid: Grid) -> JobResult:
        """Train reference models of the champion; each site keeps what they say, for erasures to come.

        Raises
        ------
        JobError
            If ``references.models`` is 0, there is no champion yet, or too few sites answer or can train.
        """
        return self._result(self._run(grid, "references", self.settings))

    def plan(self, grid: Grid) -> str:
        """Say who asks to be forgotten, what an erasure of them will be able to show, and what it costs.

        Nothing changes: no request is taken up, and no model is made.

        Raises
        ------
        JobError
            If there is no champion yet, a job is not finished, or too few sites answer.
        """
        return self._run(grid, "plan", self.settings).note

    def _run(self, grid: Grid, kind: JobKind, settings: Settings, given: Given | None = None) -> JobRecord:
        return run_jobs(grid, kind, settings, self.progress, given, self.started_by, self.reason)

    def _parent(self, *, fresh: bool) -> str | None:
        """Return the digest of the model that a training began with, if it may have."""
        if fresh:
            return None
        with closing(Store(self.settings.state_folder)) as store:
            epoch = store.champions.epoch()
        if self._begun is None:
            if epoch:
                raise JobError(
                    f"The fleet is at the erasure epoch {epoch}, and this training did not begin with the weights of "
                    "FederatedUnlearning.arrays(): its model may remember who was forgotten. Begin with those, or with "
                    "fresh weights and adopt(..., fresh=True)."
                )
            return None
        if self._begun[1] != epoch:
            raise JobError(
                f"This training began with a model of the erasure epoch {self._begun[1]}, and the fleet is at {epoch}: "
                "its model may remember who was forgotten since. Train again, from FederatedUnlearning.arrays()."
            )
        return self._begun[0]

    def _champion(self) -> tuple[Arrays, ModelCard] | None:
        """Return the weights and the card of the model that the fleet runs."""
        with (
            closing(Store(self.settings.state_folder)) as store,
            open_tracker(self.settings.tracking, self.settings.state_folder) as tracker,
        ):
            champion = agreed_champion(store, tracker, self.progress.say)
            if champion is None:
                return None
            model, card = load_model(store.folders.model(champion.job))
        return state_arrays(model), card

    def _result(self, record: JobRecord) -> JobResult:
        with closing(Store(self.settings.state_folder)) as store:
            champion, self._epoch = store.champions.current(), store.champions.epoch()
            if champion is None:
                raise JobError(f"{record.job} has left no champion: {record.note or 'see its record'}.")
            model, card = load_model(store.folders.model(champion.job))
        arrays = state_arrays(model)
        result = JobResult(arrays=ArrayRecord.from_torch_state_dict(arrays), record=record, card=card)
        ended = "retrained" if record.proceedings.retrained else "unlearned"
        for number, column in enumerate(("original", ended)):
            if column in record.models:
                result.evaluate_metrics_clientapp[number] = MetricRecord({**record.models[column].scores.metrics()})
        return result
