"""Add handlers for all messages to a site's ClientApp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

from dlfd_fleet.cores import limit_torch_threads
from dlfd_fleet.federation.app_errors import log_errors_in_words
from dlfd_fleet.federation.protocol import messages
from dlfd_fleet.federation.protocol.differences import without_frozen
from dlfd_fleet.federation.protocol.held_names import NOTHING_TO_TRAIN_ON
from dlfd_fleet.federation.protocol.packing import COORDINATOR, MODEL, arrays_of, bytes_of
from dlfd_fleet.federation.site import audits, references, requests, training
from dlfd_fleet.federation.site.held_model import held_model
from dlfd_fleet.federation.site.site_of_node import site_of_node
from dlfd_fleet.federation.site.training_data import refuse_unfiltered
from dlfd_fleet.federation.task import Task

_OWN = frozenset(("train.fit", "train.unlearn"))

_UPDATES = {task.TYPE: task for task in (messages.FitTask, messages.UnlearnTask)}


def add_unlearning(app: ClientApp, task: Task | None = None, update_mods: Sequence[Mod] = ()) -> ClientApp:
    """Make an app answer the tasks of :class:`~dlfd_fleet.federation.FederatedUnlearning`, and return it.

    Parameters
    ----------
    app
        Any ClientApp. Its own handlers stay. Ours answer other actions: ``train.fit``, ``train.unlearn``,
        ``evaluate.audit``, ``evaluate.reference``, ``evaluate.unseen``, ``evaluate.file``, ``evaluate.calibrate``,
        ``query.pending`` and ``query.settle``. The app's own training must take its data from
        ``task.training_data(context)``. Otherwise it is refused once somebody has asked to be forgotten.
    task
        The model, data and training of the fleet. Default: those in each site's ``site.json``.
    update_mods
        Flower mods around the two handlers that send a model, such as ``LocalDpMod``. Mods of the app itself wrap all
        handlers, also those that send no arrays.
    """
    limit_torch_threads()
    log_errors_in_words()
    handlers = Handlers(task)
    _watch_own_training(app, task)
    # Outermost, for a mod of an update compares the whole model that it starts from with the one that it is given back.
    updating = [trained_only, held_model, *update_mods]
    app.query("pending")(handlers.pending)
    app.train("fit", mods=updating)(handlers.fit)
    app.train("unlearn", mods=[trained_only, held_model, handlers.unlearn_to_gate, *update_mods])(handlers.unlearn)
    app.evaluate("audit", mods=[held_model])(handlers.audit)
    app.evaluate("reference", mods=[held_model])(handlers.reference)
    app.evaluate("unseen", mods=[held_model])(handlers.unseen)
    app.evaluate("file", mods=[held_model])(handlers.audit_file)
    app.evaluate("calibrate")(handlers.calibrate)
    app.query("settle")(handlers.settle)
    return app


def _watch_own_training(app: ClientApp, task: Task | None) -> None:
    """Refuse unfiltered data in the app's own training handlers, existing and later ones."""
    watch, register = refuse_unfiltered(task), app.train

    def train(action: str = "default", *, mods: list[Mod] | None = None) -> Callable[..., ClientAppCallable]:
        ours = f"train.{action}" in _OWN
        return register(action, mods=[*(mods or []), *([] if ours else [watch])])

    app.train = train  # type: ignore[method-assign]
    handlers: dict[str, ClientAppCallable] = getattr(app, "_registered_funcs", {})
    for name, handler in handlers.items():
        if name.startswith("train."):
            handlers[name] = _behind(watch, handler)


def _behind(mod: Mod, handler: ClientAppCallable) -> ClientAppCallable:
    return lambda message, context: mod(message, context, handler)


@dataclass(frozen=True)
class Handlers:
    """Our handlers, for sites of one task."""

    task: Task | None = None

    def pending(self, message: Message, context: Context) -> Message:
        """Count the requests that wait."""
        query = messages.PendingQuery.from_records(message.content, COORDINATOR)
        with site_of_node(context, self.task) as site:
            return _reply(message, requests.answer_pending(site, query).to_records())

    def fit(self, message: Message, context: Context) -> Message:
        """Train, repair or retrain on the retain images."""
        task = messages.FitTask.from_records(message.content, COORDINATOR)
        try:
            with site_of_node(context, self.task) as site:
                arrays = arrays_of(message.content, MODEL, COORDINATOR)
                result, model = training.run_fit(site, task, arrays, self.task)
        except references.TooFewInHalfError as error:
            return Message(Error(NOTHING_TO_TRAIN_ON, str(error)), reply_to=message)
        return _reply(message, result.to_records(model=model))

    def unlearn(self, message: Message, context: Context) -> Message:
        """Run DLFD on the people who asked to be forgotten."""
        task = messages.UnlearnTask.from_records(message.content, COORDINATOR)
        with site_of_node(context, self.task) as site:
            arrays = arrays_of(message.content, MODEL, COORDINATOR)
            result, model = training.run_unlearn(site, task, arrays, self.task)
        return _reply(message, result.to_records(model=model))

    def unlearn_to_gate(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer without an update if the model has forgotten (a Flower mod, because mods of updates expect arrays)."""
        task = messages.UnlearnTask.from_records(message.content, COORDINATOR)
        with site_of_node(context, self.task) as site:
            arrays = arrays_of(message.content, MODEL, COORDINATOR)
            result = training.within_gate(site, task, arrays, self.task)
        return call_next(message, context) if result is None else _reply(message, result.to_records())

    def audit(self, message: Message, context: Context) -> Message:
        """Predict the site's images."""
        task = messages.AuditTask.from_records(message.content, COORDINATOR)
        with site_of_node(context, self.task) as site:
            arrays = arrays_of(message.content, MODEL, COORDINATOR)
            result, samples = audits.run_audit(site, task, arrays, self.task)
        return _reply(message, result.to_records(samples))

    def reference(self, message: Message, context: Context) -> Message:
        """Store a reference model's answers for the site's images."""
        task = messages.ReferenceTask.from_records(message.content, COORDINATOR)
        with site_of_node(context, self.task) as site:
            arrays = arrays_of(message.content, MODEL, COORDINATOR)
            return _reply(message, references.run_reference(site, task, arrays, self.task).to_records())

    def unseen(self, message: Message, context: Context) -> Message:
        """Compare reference models and a model on people never trained on."""
        task = messages.UnseenTask.from_records(message.content, COORDINATOR)
        with site_of_node(context, self.task) as site:
            arrays = arrays_of(message.content, MODEL, COORDINATOR)
            return _reply(message, references.compare_on_unseen(site, task, arrays, self.task).to_records())

    def audit_file(self, message: Message, context: Context) -> Message:
        """Predict the site's images with the exported file, as a device would."""
        task = messages.FileAuditTask.from_records(message.content, COORDINATOR)
        model = arrays_of(message.content, MODEL, COORDINATOR)
        content = bytes_of(message.content, COORDINATOR)
        with site_of_node(context, self.task) as site:
            result, samples = audits.run_file_audit(site, task, model, content, self.task)
        return _reply(message, result.to_records(samples))

    def calibrate(self, message: Message, context: Context) -> Message:
        """Measure the ranges of activations that some formats need, such as int8."""
        task = messages.CalibrateTask.from_records(message.content, COORDINATOR)
        content = bytes_of(message.content, COORDINATOR)
        with site_of_node(context, self.task) as site:
            return _reply(message, audits.run_calibration(site, task, content).to_records())

    def settle(self, message: Message, context: Context) -> Message:
        """Write the end of a job into the ledger, and purge."""
        task = messages.SettleTask.from_records(message.content, COORDINATOR)
        with site_of_node(context, self.task) as site:
            return _reply(message, requests.settle(site, task).to_records())


def trained_only(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Remove frozen arrays from an update (a Flower mod)."""
    reply = call_next(message, context)
    if not reply.has_error() and MODEL in reply.content:
        task = _UPDATES[message.metadata.message_type].from_records(message.content, COORDINATOR)
        arrays = reply.content.array_records[MODEL]
        reply.content[MODEL] = ArrayRecord(without_frozen(arrays, task.card))
    return reply


def _reply(message: Message, records: RecordDict) -> Message:
    return Message(records, reply_to=message)
