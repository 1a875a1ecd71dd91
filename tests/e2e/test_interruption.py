"""Ctrl-C and sudden death: the next start goes on, and ledgers, champion and registry agree."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from tests.mlflow_client import client_of

PATIENCE = 600.0


def run_until(fleet, reached, end):
    """Start the demo, send it a signal once a phase is reached and a little later, and return its exit code."""
    log = fleet.config.with_suffix(".log")
    with log.open("a") as stream:
        command = fleet.command("demo", "--config", str(fleet.config))
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=fleet.environment(), start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        if end is signal.SIGINT:
            process.send_signal(signal.SIGINT)
        else:
            os.killpg(process.pid, end)
        return process.wait(PATIENCE), log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_an_interrupted_demo_goes_on_where_it_stood(fleet):
    fleet.make_quick()

    def training():
        jobs = Store(fleet.state).jobs() if fleet.phase() == "dealt" else []
        return bool(jobs)

    code, text = run_until(fleet, training, signal.SIGINT)
    assert code == 130, text
    assert "Interrupted; run the command again" in text
    assert "Traceback" not in text
    assert fleet.phase() == "dealt"

    def unlearning():
        return fleet.phase() == "requested" and any(
            request.state is RequestState.UNLEARNING
            for folder in site_folders(fleet.state)
            for request in requests_of(folder)
        )

    code, text = run_until(fleet, unlearning, signal.SIGKILL)
    assert code == -signal.SIGKILL
    waiting = [request for folder in site_folders(fleet.state) for request in requests_of(folder)]
    assert len(waiting) == 4

    last = fleet.demo()
    assert last.returncode == 0, last.stderr
    assert "Going on with the run that was interrupted after the phase 'requested'" in last.stdout
    jobs = Store(fleet.state).jobs()
    # Interrupted jobs went on from their last finished step: there is no third one.
    assert [(job.kind, job.step) for job in jobs] == [("train", "settled"), ("erase", "settled")]
    assert jobs[-1].released
    for folder in site_folders(fleet.state):
        with Site(folder) as site:
            site.ledger.verify()
        assert {(request.state, request.job) for request in requests_of(folder)} == {
            (RequestState.COMPLETE, jobs[-1].job)
        }
    client = client_of(f"sqlite:///{fleet.state / 'mlflow.db'}")
    assert client.get_model_version_by_alias("dlfd-fleet", "champion").tags["dlfd.job"] == jobs[-1].job
    assert Store(fleet.state).champions.current().job == jobs[-1].job


def requests_of(folder):
    with Site(folder) as site:
        return site.ledger.requests()
