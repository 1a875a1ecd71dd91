"""What Flower logs of an app that could not go on: what is wrong and what to do, without the way through the code."""

from __future__ import annotations

import logging

from dlfd_fleet.exceptions import FleetError
from dlfd_fleet.plain_text import visible


class OneSentence(logging.Filter):
    """Leaves of a :class:`~dlfd_fleet.exceptions.FleetError` its words; of any other error everything."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record, and let it pass."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, FleetError):
            record.msg, record.args, record.exc_info = visible(str(error)), (), None
        return True


_IN_WORDS = OneSentence()  # one: a logger takes the same filter once


def log_errors_in_words() -> None:
    """Let Flower's log of this process say in one sentence what a person can mend."""
    logging.getLogger("flwr").addFilter(_IN_WORDS)
