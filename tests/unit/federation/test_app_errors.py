"""What Flower logs of an app's error."""

from __future__ import annotations

import io
import logging

import pytest
from flwr.supercore.exit.exit_code import EXIT_CODE_HELP, ExitCode
from flwr.supercore.logger import log

from dlfd_fleet.exceptions import JobCancelledError, JobError
from dlfd_fleet.federation import app_errors


@pytest.fixture
def logged(monkeypatch):
    """What Flower's log says while errors are in words."""
    flower, words = logging.getLogger("flwr"), io.StringIO()
    monkeypatch.setattr(flower, "filters", [])
    monkeypatch.setattr(flower, "handlers", [logging.StreamHandler(words)])
    monkeypatch.setattr(app_errors, "_IN_WORDS", app_errors.OneSentence())  # one a process
    app_errors.log_errors_in_words()
    return words


def raised(error):
    """Log an error as Flower's runtime does."""
    try:
        raise error
    except Exception as caught:
        log(logging.ERROR, "%s raised an exception", "ServerApp", exc_info=caught)


def end_of_an_app():
    """End an app as Flower's runtimes do after any error."""
    for code in (ExitCode.SERVERAPP_EXCEPTION, ExitCode.SIMULATION_EXCEPTION):
        log(logging.ERROR, f"Exit Code: {code}\n\n{EXIT_CODE_HELP[code]}\n\nFor more information, visit: <...>")


@pytest.mark.parametrize("error", [JobError("There is no champion; train first."), JobCancelledError("It was ended.")])
def test_what_a_person_can_mend_is_one_sentence(logged, error):
    raised(error)
    end_of_an_app()
    assert logged.getvalue() == f"{error}\n"


def test_what_only_a_programmer_can_mend_keeps_its_traceback(logged):
    raised(ZeroDivisionError("division by zero"))
    log(logging.INFO, "Round %s", 1)
    end_of_an_app()
    assert "ServerApp raised an exception\nTraceback" in logged.getvalue()
    assert "division by zero\nRound 1\nExit Code" in logged.getvalue()
