"""The commands of a coordinator on its jobs, from the state folder: how they are, cancel, go on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.reporting import said_in_short
from dlfd_fleet.federation.protocol.messages import (
    AuditTask,
    CalibrateTask,
    FileAuditTask,
    FitTask,
    PendingQuery,
    ReferenceTask,
    SettleTask,
    UnlearnTask,
    UnseenTask,
)
from dlfd_fleet.federation.records.decisions import Act, Decision, accepted_reason
from dlfd_fleet.federation.records.due import Waiting, erasure_due
from dlfd_fleet.federation.records.job_record import FINAL_STEPS, JobRecord, SiteActivity
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.rounds.fleet import WAITING
from dlfd_fleet.federation.rounds.references import ROUND as REFERENCE_ROUND
from dlfd_fleet.plain_text import narrow_table, plain
from dlfd_fleet.settings import DueSettings

_SECONDS_BETWEEN_DRAWINGS = 1.0
_DECIDED: Mapping[Act, str] = {"plan": "Started", "start": "Started", "resume": "Resumed", "cancel": "Cancelled"}
_DOING = {
    PendingQuery.TYPE: "counting its requests",
    FitTask.TYPE: "training",
    UnlearnTask.TYPE: "unlearning",
    AuditTask.TYPE: "auditing the model",
    ReferenceTask.TYPE: "predicting by a reference model",
    UnseenTask.TYPE: "comparing reference models with the model",
    FileAuditTask.TYPE: "auditing the file",
    CalibrateTask.TYPE: "measuring ranges",
    SettleTask.TYPE: "settling its requests",
    WAITING: "has answered, waits for the others",
}


@contextmanager
def opened(state_folder: Path) -> Iterator[Store]:
    """Open the jobs of a state folder.

    Raises
    ------
    JobError
        If no coordinator has worked there yet.
    """
    if not (state_folder / "coordinator" / "jobs.db").exists():
        raise JobError(f"{state_folder} holds no jobs; name the coordinator's state folder: --set state_folder=FOLDER.")
    store = Store(state_folder)
    try:
        yield store
    finally:
        store.close()


def choose(store: Store, job: str | None) -> JobRecord:
    """Return a job by its name; the latest when none is named."""
    if job is not None:
        return store.load(job)
    records = store.jobs()
    if not records:
        raise JobError(f"There is no job in {store.folder.parent} yet; `dlfd-fleet job start train` makes the first.")
    return records[-1]


def job_table(store: Store) -> Table:
    """Return all jobs, oldest first."""
    table = narrow_table("job", "state", "requests", "verdict", "epoch", "minutes", folded={"state"})
    running = store.is_locked()
    for record in store.jobs():
        verdict = record.verdict.outcome.value if record.verdict else ""
        requests, epoch = str(record.requests or ""), str(record.epoch) if record.released else ""
        done = sum(phase.seconds for phase in store.steps.phases(record.job).values())
        minutes = f"{max(record.seconds, done) / 60:.1f}"
        table.add_row(*map(plain, (record.job, state_of(store, record, running), requests, verdict, epoch, minutes)))
    return table


def last_answer(store: Store, due: DueSettings) -> str:
    """Say what the sites answered when ``job start erase --if-due`` last asked them, when that was, and what is due.

    Once an erasure or a plan has asked them again, the answer is old, and that job is named.
    """
    known = Waiting.read(store.folder)
    if known is None:
        return "It is not known here what waits at the sites: `dlfd-fleet job start erase --if-due` asks them."
    said = f"On {known.asked_at.astimezone():%Y-%m-%d %H:%M} the sites last said what waits."
    records = store.jobs()
    # A job that failed before the question may have gone on after it.
    ends = {record.job: record.proceedings.settled_at or record.started_at for record in records}
    since = [each.job for each in records if each.kind in {"erase", "plan"} and ends[each.job] > known.asked_at]
    if not since:
        return f"{said} {erasure_due(due, known, records, datetime.now().astimezone().date()).why}"
    many = "1 request" if known.requests == 1 else f"{known.requests or 'No'} requests"
    first = f", the first due on {known.first_due}" if known.first_due else ""
    where = f"`dlfd-fleet job status {since[-1]}` says what it heard."
    return f"{said} {many} waited then{first}. {since[-1]} has asked them since: {where}"


def job_status(store: Store, job: str) -> Group:
    """Return one job: how far it is, what each site does, and what came of it."""
    now, sites = datetime.now(UTC), Table("site", "doing", "for")
    for activity in activities(store, job):
        since = f"{(now - activity.since).total_seconds():.0f} s"
        sites.add_row(*map(plain, (activity.site, activity.doing, since)))
    return Group(*map(plain, status_lines(store, job)), *([sites] if sites.row_count else []))


def status_lines(store: Store, job: str) -> list[str]:
    """Return in sentences how far a job is, and what came of it."""
    record, running, steps = store.load(job), store.is_locked(), store.steps.names(job)
    lines = [f"{record.job}: {state_of(store, record, running)}"]
    if record.step not in FINAL_STEPS and store.is_cancelled(job):
        lines.append("It was cancelled, and " + ("stops before its next step." if running else "the next job ends it."))
    elif record.step not in FINAL_STEPS and not running and record.kind != "import":
        lines.append("`dlfd-fleet job resume` goes on from its last finished step.")
    lines += [_decided(each) for each in store.decisions.of(job) if each.act in _DECIDED and (each.who or each.why)]
    if steps:
        lines.append(f"Finished steps: {len(steps)}, the last one {steps[-1]}.")
    if record.requests:
        lines.append(f"Requests: {record.requests}.")
    if record.step in FINAL_STEPS and (said := said_in_short(store, record)):
        lines += said
    elif record.verdict:
        lines.append(record.verdict.sentence())
    if record.references and record.step != "settled":  # then its note says it
        lines.append(f"So far: {record.references.sentence()}.")
    if record.note:
        lines.append(record.note)
    return lines + [f"{site} {reason}" for site, reason in sorted(record.absent.items())]


def _decided(decision: Decision) -> str:
    who, why = f" by {decision.who}" if decision.who else "", f": {decision.why.rstrip('.')}" if decision.why else ""
    return f"{_DECIDED[decision.act]}{who}, {decision.at.astimezone():%Y-%m-%d %H:%M}{why}."


def watch(store: Store, job: str, console: Console) -> None:
    """Draw a job until it ends, or until its coordinator does; in a log, print each change once."""
    if not console.is_terminal:
        _watch_in_lines(store, job, console)
        return
    with Live(job_status(store, job), console=console, auto_refresh=False) as live:
        while goes_on(store, job):
            time.sleep(_SECONDS_BETWEEN_DRAWINGS)
            live.update(job_status(store, job), refresh=True)


def _watch_in_lines(store: Store, job: str, console: Console) -> None:
    said: Mapping[str, str] = {}
    is_running = True
    while is_running:
        is_running = goes_on(store, job)
        now = {"steps": ", ".join(store.steps.names(job)[-1:])}
        now |= {activity.site: activity.doing for activity in activities(store, job)}
        for name, value in now.items():
            if said.get(name, "") != value:
                console.print(plain(f"{name}: {value}"), soft_wrap=True, highlight=False)
        said = now
        if is_running:
            time.sleep(_SECONDS_BETWEEN_DRAWINGS)
    console.print(job_status(store, job), soft_wrap=True, highlight=False)


def cancel(store: Store, job: str, who: str = "", why: str = "") -> str:
    """Ask for a job to be cancelled, and return what happens now in words.

    Raises
    ------
    JobError
        If it has ended.
    """
    why, said = accepted_reason(why), what_cancelling_does(store, job)
    store.ask_to_cancel(job)
    if not store.is_locked():
        store.steps.abandon(job, REFERENCE_ROUND)
    store.decisions.note("cancel", job, who, why)
    return said


def what_cancelling_does(store: Store, job: str) -> str:
    """Say what happens if a job is cancelled now; it is not.

    Raises
    ------
    JobError
        If it has ended.
    """
    record = store.load(job)
    if record.step in FINAL_STEPS:
        raise JobError(f"{job} is {record.step} already; there is nothing to cancel.")
    if record.released:
        when = "before its next step" if store.is_locked() else "when the next job starts"
        return f"{job} has released its model, and ends {when}; sites that it has not told learn it from the next job."
    if store.is_locked():
        return f"{job} stops before its next step; requests that it has taken up wait for the next job."
    return f"{job} is not running; the next job ends it first, and requests that it has taken up wait."


def reopen(store: Store, job: str | None, who: str = "", why: str = "") -> JobRecord:
    """Return the job to go on with: an unfinished one as it is, a failed one reopened; keep who decided that, and why.

    Raises
    ------
    JobError
        If there is none, it is settled or was cancelled, or a later job has released a model that it does not start
        from.
    """
    records = store.jobs()
    waiting = [record for record in records if record.step != "settled" and record.kind != "import"]
    waiting = [record for record in waiting if not _is_cancelled(store, record)]
    if job is None and not waiting:
        raise JobError("Every job is settled or cancelled; `dlfd-fleet job start` starts another one.")
    record = waiting[-1] if job is None else store.load(job)
    if record.step == "settled":
        raise JobError(f"{record.job} is settled; there is nothing to go on with.")
    if _is_cancelled(store, record):
        again = "dlfd-fleet job plan" if record.kind == "plan" else f"dlfd-fleet job start {record.kind}"
        raise JobError(f"{record.job} was cancelled, and a cancelled job is over; start another one: `{again}`.")
    if record.kind == "import":
        raise JobError(f"{record.job} is an import: the next job ends one that was killed; import a failed one again.")
    for later in records:
        if later.released and later.started_at > record.started_at:
            raise JobError(f"{later.job} has released another model since {record.job} began; start a new job.")
    store.decisions.note_if_known("resume", record.job, who, accepted_reason(why))
    return store.reopen(record.job) if record.step in FINAL_STEPS else record


def _is_cancelled(store: Store, record: JobRecord) -> bool:
    """Tell whether somebody has cancelled a job, also one that is to be ended yet."""
    return record.step == "cancelled" or store.is_cancelled(record.job)


def activities(store: Store, job: str) -> Iterator[SiteActivity]:
    """Yield what sites do, in words, while there is a coordinator that waits for it."""
    if not goes_on(store, job):
        return
    for activity in store.activities.of(job):
        if activity.site.startswith("node-") and activity.doing == WAITING:
            continue  # it has said since which site it is
        yield replace(activity, doing=_DOING.get(activity.doing, activity.doing))


def goes_on(store: Store, job: str) -> bool:
    """Tell whether there is a coordinator that works on a job."""
    return store.load(job).step not in FINAL_STEPS and store.is_locked()


def state_of(store: Store, record: JobRecord, running: bool) -> str:
    """Return how far a job is, in words."""
    if record.step in FINAL_STEPS:
        return f"{record.step}, released" if record.released else record.step
    if running:
        return f"{record.step}, running"
    return f"{record.step}, {'cancelled' if store.is_cancelled(record.job) else 'interrupted'}"
