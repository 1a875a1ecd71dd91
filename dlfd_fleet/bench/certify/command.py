"""The command ``dlfd-fleet certify``."""

from __future__ import annotations

import csv
import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, pstdev, stdev

from rich.console import Console
from rich.table import Table

from dlfd_fleet.audit import Outcome, Rate
from dlfd_fleet.bench.certify.trial import ERASED, Trial, TrialResult
from dlfd_fleet.bench.experiment import code_of_networks
from dlfd_fleet.bench.results import parse_duration, run_name
from dlfd_fleet.bench.rows import ORIGINAL, RETRAINED
from dlfd_fleet.configuration import flatten
from dlfd_fleet.data import SOURCES
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.run import settings_of_job
from dlfd_fleet.files import whole_file
from dlfd_fleet.plain_text import plain
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.report.contents import AimedAt
from dlfd_fleet.report.page import render_procedure
from dlfd_fleet.report.procedure import FOLDER, PROCEDURE_FILE, ProcedureCertificate, Spread, counting
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_tracker

_KIND = "certify"
_PATIENCE = 120.0
_ID_FILE, _PAGE_FILE, _RUNS_FILE = "id", "procedure.html", "runs.csv"
_SECTIONS = {"data", "model", "training", "audit", "erasure", "references", "fleet"}


def certify_command(
    settings: Settings,
    runs: int,
    marked: int,
    confidence: float,
    budget: str,
    console: Console,
    *,
    exchange: bool = True,
) -> None:
    """Try a fleet's procedure in several runs; print what came of them, write it down, and tell MLflow.

    Parameters
    ----------
    runs
        How many there are to be, those of earlier starts included.
    marked
        People of a run whose labels are exchanged.
    confidence
        Of the bounds of every rate.
    exchange
        Whether labels of marked people are exchanged; else they are ordinary people.
    budget
        No run is begun after it.

    Raises
    ------
    ConfigurationError
        For a budget that is no duration, or marked people that cannot be drawn.
    JobError
        If no run is done.
    """
    deadline = time.monotonic() + parse_duration(budget)
    chosen, progress = settings_of_job("erase", settings), ConsoleProgress(console)
    folder = settings.state_folder / FOLDER / _key(chosen, marked, exchange=exchange)
    done = list[TrialResult]()
    for number in range(runs):
        own = chosen.model_copy(update={"seed": number, "state_folder": folder / f"run-{number:03}"})
        trial = Trial(own, marked, exchange, progress)
        known = trial.result()
        if known is None and time.monotonic() < deadline:
            progress.say(f"Run {number + 1} of {runs}")
            known = trial.run()
            progress.say(f"Run {number + 1} of {runs}: {_said(known)}")
        done += [known] if known else []
    if not done:
        raise JobError("The budget ended before a run was done; run the same command again, or give more: --budget 2h.")
    certificate = certified(done, chosen, marked, confidence, _id(folder), exchange=exchange)
    _show(certificate, runs, console)
    page = _write(certificate, done, folder)
    _tell(settings, certificate, folder)
    console.print(f"Procedure certificate: {page}", soft_wrap=True, highlight=False)


def _key(settings: Settings, marked: int, *, exchange: bool) -> str:
    """Return a name of all that decides what runs come to: settings, networks, and how many marked people there are."""
    tree = settings.model_dump_json(include=_SECTIONS)
    people = f"{marked} {'exchanged' if exchange else 'kept'}"
    return hashlib.sha256("".join((tree, people, *code_of_networks(settings.model))).encode()).hexdigest()[:12]


def _id(folder: Path) -> str:
    """Return the id of a certificate: the same one for all starts that go on with its runs."""
    file = folder / _ID_FILE
    if not file.exists():
        with whole_file(file, JobError) as new:
            new.write_text(run_name(_KIND), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _said(result: TrialResult) -> str:
    verdicts = ", ".join(f"{name} {verdict.outcome}" for name, verdict in result.verdicts.items())
    return f"{result.asked} of {result.asked + result.never} marked people asked; {verdicts}; {result.seconds:.0f} s"


def certified(
    results: Sequence[TrialResult], settings: Settings, marked: int, confidence: float, name: str, *, exchange: bool
) -> ProcedureCertificate:
    """Return what runs came to.

    Parameters
    ----------
    settings
        Those of the erasures.
    name
        The certificate's id.
    """

    def rate(model: str, outcome: Outcome) -> Rate:
        happened = sum(result.verdicts[model].outcome is outcome for result in results)
        return Rate(happened=happened, tries=len(results), confidence=confidence)

    guesses = sum(result.asked + result.never for result in results)
    return ProcedureCertificate(
        certificate=name,
        made_at=datetime.now(UTC),
        data=SOURCES.find(settings.data.source).title(settings.data),
        settings=counting(settings.model_dump(mode="json")),
        runs=len(results),
        marked=marked,
        labels="exchanged" if exchange else "kept",
        asked=fmean(result.asked for result in results),
        aims=_aims(results),
        evidence=dict(Counter(result.verdicts[RETRAINED].evidence for result in results)),
        power=rate(RETRAINED, Outcome.PASS),
        false_pass=rate(ORIGINAL, Outcome.PASS),
        false_fail=rate(RETRAINED, Outcome.FAIL),
        erased={outcome.value: rate(ERASED, outcome) for outcome in Outcome},
        told_apart=Rate(happened=sum(result.guessed_right for result in results), tries=guesses, confidence=confidence),
        distances={key: _spread([result.distances[key] for result in results]) for key in results[0].distances},
        costs={key: fmean(result.costs[key] for result in results) for key in results[0].costs},
    )


def _aims(results: Sequence[TrialResult]) -> dict[AimedAt, int]:
    """Return what erasures aimed at, and how many of them; nothing if it is not known of one."""
    aims = [result.aim for result in results if result.aim is not None]
    return dict(Counter(aims)) if len(aims) == len(results) else {}


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean=fmean(values), sd=stdev(values) if len(values) > 1 else pstdev(values))


def _show(certificate: ProcedureCertificate, wanted: int, console: Console) -> None:
    table = Table(title=f"Procedure certificate {certificate.certificate}: {certificate.runs} of {wanted} runs")
    table.add_column("what")
    table.add_column(plain(f"measured [exact {certificate.confidence:.0%} bounds]"), no_wrap=True)
    for name, value in certificate.rows():
        table.add_row(plain(name), plain(value))
    console.print(table)
    if certificate.runs < wanted:
        console.print(f"{wanted - certificate.runs} runs are missing; run the same command again to go on.")


def _write(certificate: ProcedureCertificate, results: Sequence[TrialResult], folder: Path) -> Path:
    """Write the certificate, its page and its runs; it is the fleet's from now on. Return the page."""
    content = certificate.to_json()
    for file in (folder / PROCEDURE_FILE, folder.parent / PROCEDURE_FILE):
        with whole_file(file, JobError) as new:
            new.write_bytes(content)
    page = folder / _PAGE_FILE
    with whole_file(page, JobError) as new:
        new.write_text(render_procedure(certificate), encoding="utf-8")
    with whole_file(folder / _RUNS_FILE, JobError) as new, new.open("w", newline="", encoding="utf-8") as stream:
        rows = [_row(result) for result in results]
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return page


def _row(result: TrialResult) -> dict[str, object]:
    row: dict[str, object] = {
        "run": result.number,
        "aim": result.aim or "",
        "asked": result.asked,
        "never": result.never,
    }
    for name, verdict in result.verdicts.items():
        row |= {f"{name}_verdict": verdict.outcome.value, f"{name}_power": verdict.power}
    return row | {
        "guessed_right": result.guessed_right,
        "run_seconds": result.seconds,
        **result.distances,
        **result.costs,
    }


def _tell(settings: Settings, certificate: ProcedureCertificate, folder: Path) -> None:
    """Record it in MLflow: a run of its own, by the certificate's id, that every start adds to."""
    rates = {"power": certificate.power, "false_pass": certificate.false_pass, "false_fail": certificate.false_fail}
    rates |= {"told_apart": certificate.told_apart}
    rates |= {f"erased_{outcome.lower()}": rate for outcome, rate in certificate.erased.items()}
    metrics = {"runs": float(certificate.runs)} | certificate.costs
    for name, rate in rates.items():
        metrics |= {name: rate.value or 0.0, f"{name}_low": rate.low, f"{name}_high": rate.high}
    for name, spread in certificate.distances.items():
        metrics |= {name: spread.mean, f"{name}_sd": spread.sd}
    run, tags = certificate.certificate, {"dlfd.procedure_sha256": certificate.settings_sha256}
    with open_tracker(settings.tracking, settings.state_folder) as tracker:
        tracker.start_job(run, kind=_KIND, parameters=flatten(settings.model_dump(mode="json")), tags=tags)
        tracker.log_metrics(run, metrics, step=certificate.runs)
        for name in (PROCEDURE_FILE, _PAGE_FILE, _RUNS_FILE):
            tracker.log_file(run, f"certify/{name}", (folder / name).read_bytes())
        tracker.describe(run, "\n\n".join(f"{name}: {value}" for name, value in certificate.rows()))
        tracker.finish_job(run, "FINISHED")
        tracker.flush(_PATIENCE)
