"""The ClientApp of a site: one handler a message."""

from __future__ import annotations

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from dlfd_fleet.federation import messages, site_tasks
from dlfd_fleet.federation.messages import MODEL, arrays_of
from dlfd_fleet.federation.site_of_node import site_of_node

COORDINATOR = "The coordinator"
app = ClientApp()


@app.query("pending")
def pending(message: Message, context: Context) -> Message:
    """Count the requests that wait."""
    query = messages.PendingQuery.from_records(message.content, COORDINATOR)
    with site_of_node(context) as site:
        return _reply(message, site_tasks.answer_pending(site, query).to_records())


@app.train("fit")
def fit(message: Message, context: Context) -> Message:
    """Train, repair or retrain on the retain images."""
    task = messages.FitTask.from_records(message.content, COORDINATOR)
    with site_of_node(context) as site:
        result, model = site_tasks.run_fit(site, task, arrays_of(message.content, MODEL, COORDINATOR))
    return _reply(message, result.to_records(model=model))


@app.train("unlearn")
def unlearn(message: Message, context: Context) -> Message:
    """Run DLFD on the people who asked to be forgotten."""
    task = messages.UnlearnTask.from_records(message.content, COORDINATOR)
    with site_of_node(context) as site:
        result, model = site_tasks.run_unlearn(site, task, arrays_of(message.content, MODEL, COORDINATOR))
    return _reply(message, result.to_records(model=model))


@app.evaluate("audit")
def audit(message: Message, context: Context) -> Message:
    """Predict the site's images."""
    task = messages.AuditTask.from_records(message.content, COORDINATOR)
    with site_of_node(context) as site:
        result, samples = site_tasks.run_audit(site, task, arrays_of(message.content, MODEL, COORDINATOR))
    return _reply(message, result.to_records(samples))


@app.evaluate("file")
def audit_file(message: Message, context: Context) -> Message:
    """Predict the site's images with the exported file, as a device would."""
    task = messages.FileAuditTask.from_records(message.content, COORDINATOR)
    model = arrays_of(message.content, MODEL, COORDINATOR)
    content = messages.bytes_of(message.content, COORDINATOR)
    with site_of_node(context) as site:
        result, samples = site_tasks.run_file_audit(site, task, model, content)
    return _reply(message, result.to_records(samples))


@app.query("settle")
def settle(message: Message, context: Context) -> Message:
    """Write the end of a job into the ledger, and purge."""
    task = messages.SettleTask.from_records(message.content, COORDINATOR)
    with site_of_node(context) as site:
        return _reply(message, site_tasks.settle(site, task).to_records())


def _reply(message: Message, records: RecordDict) -> Message:
    return Message(records, reply_to=message)
