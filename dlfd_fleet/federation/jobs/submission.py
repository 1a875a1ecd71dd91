"""Hand a job to a SuperLink by ``flwr run``, show its log, and tell how its run ended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from dlfd_fleet.exceptions import GoesOnError, JobError, VerdictError
from dlfd_fleet.federation.records.decisions import accepted_reason
from dlfd_fleet.federation.records.job_record import JobKind
from dlfd_fleet.ledger.requests import LONGEST_NAME
from dlfd_fleet.plain_text import printed

# Flower would else build an environment for every run; ours is the one that this command was installed into.
_FLOWER = {
    "PYTHONUNBUFFERED": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
_STARTED = re.compile(r"started run (\d+)")
_AFTERWARDS = (
    " On the coordinator's machine `dlfd-fleet job status` says how far the job is; unless it was cancelled, "
    "`dlfd-fleet job resume` goes on from its last finished step."
)
_GOES_ON_ALONE = (
    "Interrupted, and the run {} goes on without this command: `flwr log` shows its log, and on the coordinator's "
    "machine `dlfd-fleet job status` says how far the job is, and `dlfd-fleet job cancel` ends it."
)
_RAISED = re.compile(r"\w+ failed with exception: ")  # Flower's words before those of an error
_APP = Path(__file__).resolve().parents[3]
_ENDED, _GOES_ON, _UNKNOWN = "finished:", ("starting", "running"), "unknown"  # as Flower calls the states of a run
_SECONDS_BETWEEN_QUESTIONS, _LONGEST_QUESTION = 5.0, 60.0


def submit(
    kind: JobKind,
    app: Path | None,
    superlink: str | None,
    federation_config: str | None,
    *,
    patience: float,
    by: str = "",
    reason: str = "",
    fresh: bool = False,
    if_due: bool = False,
) -> None:
    """Hand a job to a SuperLink by ``flwr run``, show its log, and return when its run has ended well.

    Parameters
    ----------
    app
        Folder of the Flower app (the one with ``pyproject.toml``); this checkout by default.
    superlink
        A SuperLink of Flower's own configuration; its default one when omitted.
    federation_config
        Handed on to ``flwr run``, such as ``num-supernodes=4`` for simulated nodes.
    patience
        Longest wait, after the log has ended, for a SuperLink that does not say that the run goes on; in seconds.
    by, reason
        Who starts it, as they call themselves, and why; the job's record says it, if the app's configuration has the
        keys ``by`` and ``reason``.
    fresh
        Whether a training job begins with fresh weights in place of the champion's.
    if_due
        Whether an erasure begins only if one is due.

    Raises
    ------
    VerdictError
        If the run says that the verdict is FAIL.
    GoesOnError
        If this command is interrupted once the run has started.
    JobError
        If there is no app or no SuperLink, nobody can be called so, ``flwr run`` fails, or the run does.
    """
    app = app or _APP
    if not (app / "pyproject.toml").exists():
        raise JobError(f"There is no Flower app in {app}; name the folder of its pyproject.toml with --app.")
    configuration = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr") / "config.toml"  # as Flower looks for it
    if not superlink and not federation_config and not configuration.exists():
        raise JobError(
            f"Flower has no configuration here ({configuration}), and would simulate a fleet on this machine. Set "
            "FLWR_HOME to the folder of yours, or name one of its SuperLinks with --superlink; to simulate, give "
            "--federation-config num-supernodes=N."
        )
    flwr, where = str(Path(sys.executable).with_name("flwr")), [superlink] if superlink else []
    run_config = f'job="{kind}"' + (" fresh=true" if fresh else "") + (" if_due=true" if if_due else "")
    run_config += _decision(app, by, accepted_reason(reason))
    arguments = ["run", str(app), *where, "--stream", "--run-config", run_config]
    arguments += ["--federation-config", federation_config] if federation_config else []
    code, run = _run([flwr, *arguments])
    if run is None:
        raise JobError(f"`flwr run` ended with exit code {code}; the lines above say why.{_AFTERWARDS}")
    # Its log may end before the run does, and whatever `flwr run` ends with then says nothing about the run.
    question = [flwr, "list", *where, "--run-id", run, "--format", "json"]
    try:
        status, details = _end_of(run, lambda: _asked(question), patience)
    except KeyboardInterrupt:
        raise GoesOnError(_GOES_ON_ALONE.format(run)) from None
    if (said := _RAISED.sub("", details, count=1)).startswith(VerdictError.BEGINNING):
        raise VerdictError(f"{said}.")
    if status != f"{_ENDED}completed":
        raise JobError(f"Flower says of the run {run}: {said or status}.{_AFTERWARDS}")


def _run(command: Sequence[str]) -> tuple[int, str | None]:
    """Print what ``flwr run`` prints; return its exit code, and the number of the run that it has started."""
    run = None
    try:
        with subprocess.Popen(  # noqa: S603 - our own words
            command,
            env=_FLOWER | dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # Flower's own log, in colours
            text=True,
            errors="replace",
        ) as process:
            for line in process.stdout or ():
                print(printed(line.rstrip("\n")), flush=True)
                run = run or _STARTED.search(line)
    except KeyboardInterrupt:
        if run is None:
            raise
        raise GoesOnError(_GOES_ON_ALONE.format(run[1])) from None
    except OSError as error:
        raise JobError(f"{command[0]} cannot be started: {error.strerror}; install dlfd-fleet[server].") from error
    return process.returncode, run[1] if run else None


def _end_of(run: str, ask: Callable[[], tuple[str, str]], patience: float) -> tuple[str, str]:
    """Return a run's status and its details once it has ended, however long that takes.

    Raises
    ------
    JobError
        If for longer than our patience nobody says that the run goes on, as a SuperLink does that is not there.
    """
    heard = time.monotonic()
    status, details = ask()
    if status in _GOES_ON:
        print(f"The log has ended, and the run {run} goes on: this command ends with it.", flush=True)
    elif not status.startswith(_ENDED):
        print(f"The log has ended. Flower is asked for {patience:.0f} s how the run {run} goes.", flush=True)
    while not status.startswith(_ENDED):
        if status in _GOES_ON:
            heard = time.monotonic()
        elif time.monotonic() - heard > patience:
            raise JobError(
                f"The log of the run {run} has ended, and for {patience:.0f} s Flower has not said that the run goes "
                f"on, nor how it ended: its status is {status}.{_AFTERWARDS}"
            )
        time.sleep(_SECONDS_BETWEEN_QUESTIONS)
        status, details = ask()
    return status, details


def _asked(command: Sequence[str]) -> tuple[str, str]:
    """Return the status that Flower says a run has, and its details."""
    try:
        answer = subprocess.run(  # noqa: S603 - our own words
            command,
            env=_FLOWER | dict(os.environ),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_LONGEST_QUESTION,
        )
        (run,) = json.loads(answer.stdout)["runs"]
        details = printed(str(run["status-details"])).strip().rstrip(".")
        return str(run["status"]), "" if details == "N/A" else details
    except (ValueError, KeyError, TypeError, RecursionError, subprocess.TimeoutExpired):
        return _UNKNOWN, ""


def _decision(app: Path, by: str, reason: str) -> str:
    """Return the part of a run's configuration that says who started it and why, as far as the app has keys for it."""
    if not by.isprintable() or len(by) > LONGEST_NAME:
        raise JobError(f"--by is no name; write one line of {LONGEST_NAME} characters at most.")
    try:  # an app knows the keys of its own pyproject.toml, and Flower refuses others
        known = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    except (OSError, ValueError, KeyError, TypeError):  # what is wrong with it Flower says
        known = {}
    words = ""
    for key, value, what in (("by", by, f"that {by} started it"), ("reason", reason, "why it was started")):
        if value and key in known:
            words += f' {key}="{_escaped(value)}"'
        elif value:
            where = f'add {key} = "" to [tool.flwr.app.config] of {app}'
            print(f"The record of the job will not say {what}; to keep that, {where}.")
    return words


def _escaped(text: str) -> str:
    """Return a text as Flower reads it, which takes a value apart at quotation marks, whatever stands before them."""
    return "".join(sign if sign.isalnum() or sign in " .-_@" else f"\\U{ord(sign):08x}" for sign in text)
