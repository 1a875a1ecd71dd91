"""A verdict of FAIL is exit code 1 of every command that makes one: docs/how-to/operate.md has the table."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dlfd_fleet import demo
from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.exceptions import JobError, VerdictError
from dlfd_fleet.federation.jobs import submission
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.settings import Settings
from tests.command import run_command


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.PASS, 0), (Outcome.INCONCLUSIVE, 0), (Outcome.FAIL, 1)])
def test_the_demo_ends_with_its_verdict(monkeypatch, tmp_path, outcome, code):
    verdict = Verdict(outcome=outcome, reasons=("it was measured",), margin=0.05, power=0.5)
    record = JobRecord(job="erase-1", kind="erase", step="settled", started_at=datetime.now(UTC), verdict=verdict)
    monkeypatch.setattr(demo, "run_demo", lambda *_: record)
    assert run_command("demo", "--set", f"state_folder={tmp_path}").returncode == code


@pytest.mark.parametrize(("error", "code"), [(VerdictError, 1), (JobError, 2)])
def test_a_job_that_was_started_or_taken_up_again_ends_with_its_verdict(monkeypatch, tmp_path, error, code):
    def failed(*_, **__):
        raise error("The verdict is FAIL: it leaks.")

    Store(tmp_path).save(Store(tmp_path).new_job("erase", Settings()).model_copy(update={"step": "failed"}))
    monkeypatch.setattr(submission, "submit", failed)
    for words in (("start", "erase"), ("start", "train"), ("resume", "--set", f"state_folder={tmp_path}")):
        done = run_command("job", *words)
        assert (done.returncode, done.stderr) == (
            code,
            "Error: The verdict is FAIL: it leaks. See docs/how-to/operate.md (dlfd-fleet explain job).\n",
        )
