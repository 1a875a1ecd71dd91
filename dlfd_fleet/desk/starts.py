"""Jobs that were started from the desk: each is a process of its own, which goes on when the desk ends."""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from dlfd_fleet.configuration import CONFIG_VARIABLE, ENVIRONMENT_PREFIX
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.names import plain_name
from dlfd_fleet.plain_text import printed
from dlfd_fleet.settings import Settings

Kind = Literal["plan", "train", "erase", "references"]
KINDS: tuple[Kind, ...] = ("plan", "train", "erase", "references")
_KEPT, _LONGEST_LOG = 30, 64 * 1024


@dataclass(frozen=True)
class Start:
    """A job that somebody started from the desk.

    Attributes
    ----------
    running
        Whether its process goes on.
    log
        The end of what it printed.
    """

    name: str
    running: bool
    log: str


@dataclass
class Starts:
    """The processes of ``dlfd-fleet job start`` and ``job plan``, and their logs in a folder.

    Attributes
    ----------
    options
        Of these commands, such as ``--app FOLDER``.
    variables
        Added to the environment of the processes.
    program
        What the commands are of.
    """

    folder: Path
    options: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    program: Sequence[str] = (sys.executable, "-m", "dlfd_fleet")
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def begin(self, kind: Kind, by: str, reason: str = "", *, fresh: bool = False) -> str:
        """Start a job for somebody and a reason, and return under which name its log is kept.

        Raises
        ------
        JobError
            If the log cannot be written, or there is no such program.
        """
        name = f"started-{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        words = ["job", "plan"] if kind == "plan" else ["job", "start", kind]
        command = [
            *self.program,
            *words,
            f"--by={by}",
            f"--reason={reason}",
            *self.options,
            *(["--fresh"] if fresh else []),
        ]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._drop_old()
            with self._file(name).open("xb") as log, self._file(name).open("rb") as held:
                # The lock goes with the process, however it ends, and with it alone: what it starts has only the log.
                fcntl.flock(held, fcntl.LOCK_EX)
                child = subprocess.Popen(  # noqa: S603 - our own words
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | self.variables,
                    pass_fds=[held.fileno()],
                    start_new_session=True,  # a signal that ends the desk is none for it
                )
        except OSError as error:
            raise JobError(f"The job cannot be started: {error.strerror} ({error.filename}).") from error
        self._children.append(child)
        return name

    def names(self) -> list[str]:
        """Return what was started, newest first."""
        self._children = [child for child in self._children if child.poll() is None]
        return [file.stem for file in sorted(self.folder.glob("*.log"), key=_when, reverse=True)]

    def read(self, name: str) -> Start:
        """Return how a start goes.

        Raises
        ------
        JobError
            If there was none of this name.
        """
        self._children = [child for child in self._children if child.poll() is None]
        try:
            with self._file(name).open("rb") as log:
                running = _is_held(log.fileno())  # before the log is read: so its end is in it
                if log.seek(max(0, log.seek(0, os.SEEK_END) - _LONGEST_LOG)):
                    log.readline()  # the rest of a line, or of a colour
                return Start(name, running, printed(log.read().decode(errors="replace")))
        except (OSError, ValueError) as error:
            raise JobError(f"Nothing was started from the desk as '{name}'.") from error

    def _file(self, name: str) -> Path:
        return self.folder / f"{plain_name(name)}.log"

    def _drop_old(self) -> None:
        for name in self.names()[_KEPT:]:
            if not self.read(name).running:
                self._file(name).unlink(missing_ok=True)


def starting_options(
    settings: Settings, config: Path | None, app: Path | None, superlink: str | None, federation_config: str | None
) -> tuple[list[str], dict[str, str]]:
    """Return the options and variables with which jobs are started as this desk was.

    What a job does is set where its SuperLink was started; a local one has the environment of who starts it.
    """
    given = {"--app": app, "--superlink": superlink, "--federation-config": federation_config}
    options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    variables = {f"{ENVIRONMENT_PREFIX}STATE_FOLDER": str(settings.state_folder)}
    return options, variables | ({CONFIG_VARIABLE: str(config.absolute())} if config else {})


def _when(file: Path) -> list[str]:
    return file.stem.rsplit("-", 3)[1:]


def _is_held(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(number, fcntl.LOCK_UN)
    return False
