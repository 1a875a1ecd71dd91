"""Log errors of an app in one sentence, without a traceback."""

from __future__ import annotations

import logging

from dlfd_fleet.exceptions import FleetError
from dlfd_fleet.plain_text import visible

_END_OF_AN_APP = "An unhandled exception occurred"


class OneSentence(logging.Filter):
    """Removes the traceback of a :class:`~dlfd_fleet.exceptions.FleetError`; other errors keep theirs."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; leave out the page by which Flower ends an app whose error has been said."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, FleetError):
            record.msg, record.args, record.exc_info = visible(str(error)), (), None
            self._said = True
            return True
        return not (self._said and _END_OF_AN_APP in record.getMessage())


_IN_WORDS = OneSentence()  # one: a logger takes the same filter once


def log_errors_in_words() -> None:
    """Make Flower's log show errors that a person can fix in one sentence."""
    logging.getLogger("flwr").addFilter(_IN_WORDS)
