"""Who may use a desk: the file of tokens, sessions, and how often somebody may fail to log in."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dlfd_fleet.desk.login_record import LoginRecord
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.ledger.requests import LONGEST_NAME

SHORTEST_TOKEN = 20
SESSION_SECONDS = 8 * 3600.0
MOST_FAILURES, FAILURE_SECONDS = 5, 300.0
_T = TypeVar("_T")
_MOST_SESSIONS = _MOST_ADDRESSES = 1000


def read_tokens(file: Path) -> dict[str, str]:
    """Return who may log in: the SHA-256 of each token, and the name of its holder.

    Raises
    ------
    ConfigurationError
        If the file cannot be read, others may read it, or a line of it is wrong.
    """
    try:
        mode, text = file.stat().st_mode & 0o777, file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigurationError(f"The tokens in {file} (desk.tokens) cannot be read: {why}.") from error
    if mode & 0o077:
        raise ConfigurationError(
            f"Others may read {file} (mode {mode:o}), which lets people in; run `chmod 600` on it."
        )
    found = dict[str, str]()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, token = line.strip().rpartition(" ")
        name = name.strip()
        if not name or not name.isprintable() or len(name) > LONGEST_NAME or len(token) < SHORTEST_TOKEN:
            raise ConfigurationError(
                f"{file}, line {number}, is no name and token: write a name, a blank, and {SHORTEST_TOKEN} characters "
                "or more that nobody can guess."
            )
        found[_digest(token)] = name
    if not found:
        raise ConfigurationError(f"{file} lets nobody in: write a name, a blank and a token in a line.")
    return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class _Session:
    token: str
    begun: float


@dataclass
class Logins:
    """The people of a file of tokens, and who of them is logged in.

    A name that is taken out of the file is out at once.

    Attributes
    ----------
    record
        Keeps who logged in, and who failed to; without it nobody does.
    """

    file: Path
    record: LoginRecord | None = None
    clock: Callable[[], float] = time.monotonic
    _sessions: OrderedDict[str, _Session] = field(default_factory=OrderedDict)
    _failures: OrderedDict[str, list[float]] = field(default_factory=OrderedDict)

    def log_in(self, address: str, token: str) -> str | None:
        """Return a new session for a token; None if nobody has it.

        Parameters
        ----------
        address
            Who tries: after a few failures that address must wait.
        """
        given, holder, tokens = _digest(token.strip()), None, read_tokens(self.file)
        for known in tokens:
            if hmac.compare_digest(known, given):
                holder = known
        if self.record is not None:  # first: nobody is let in whose login cannot be kept
            self.record.note(tokens[holder] if holder else "", address)
        if holder is None:
            self._failures.setdefault(address, []).append(self.clock())
            self._failures.move_to_end(address)
            _shorten(self._failures, _MOST_ADDRESSES)
            return None
        self._failures.pop(address, None)
        session = secrets.token_urlsafe(32)
        self._sessions[_digest(session)] = _Session(holder, self.clock())
        _shorten(self._sessions, _MOST_SESSIONS)
        return session

    def must_wait(self, address: str) -> bool:
        """Tell whether an address has failed too often of late."""
        since = self.clock() - FAILURE_SECONDS
        recent = [moment for moment in self._failures.get(address, ()) if moment > since]
        if recent:
            self._failures[address] = recent
        else:
            self._failures.pop(address, None)
        return len(recent) >= MOST_FAILURES

    def who(self, session: str) -> str | None:
        """Return whose session it is, if it still goes on."""
        found = self._sessions.get(_digest(session))
        if found is None or self.clock() - found.begun > SESSION_SECONDS:
            self.log_out(session)
            return None
        return read_tokens(self.file).get(found.token)

    def log_out(self, session: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(session), None)


def _shorten(table: OrderedDict[str, _T], most: int) -> None:
    while len(table) > most:
        table.popitem(last=False)
