"""What Flower logs of an app's error."""

from __future__ import annotations

import io
import logging

import pytest
from flwr.supercore.logger import log

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation import app_errors


@pytest.fixture
def logged(monkeypatch):
    """What Flower's log says while errors are in words."""
    flower, words = logging.getLogger("flwr"), io.StringIO()
    monkeypatch.setattr(flower, "filters", [])
    monkeypatch.setattr(flower, "handlers", [logging.StreamHandler(words)])
    app_errors.log_errors_in_words()
    return words


def raised(error):
    """Log an error as Flower's runtime does."""
    try:
        raise error
    except Exception as caught:
        log(logging.ERROR, "%s raised an exception", "ServerApp", exc_info=caught)


def test_what_a_person_can_mend_is_one_sentence(logged):
    raised(JobError("There is no champion; train first."))
    assert logged.getvalue() == "There is no champion; train first.\n"


def test_what_only_a_programmer_can_mend_keeps_its_traceback(logged):
    raised(ZeroDivisionError("division by zero"))
    log(logging.INFO, "Round %s", 1)
    assert "ServerApp raised an exception\nTraceback" in logged.getvalue()
    assert logged.getvalue().endswith("division by zero\nRound 1\n")
