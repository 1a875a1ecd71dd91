"""Long commands end when they are told to, with one sentence and 128 + the signal, and nothing of theirs goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from dlfd_fleet.ledger import SiteCard, create_site
from dlfd_fleet.model_input import image_input

PATIENCE = 120.0
SENTENCE = "Interrupted; run the command again to continue or start over.\n"
SIMULATION = """
import os, signal, sys, threading, time
import dlfd_fleet.cli as cli
from dlfd_fleet.settings import Settings
from dlfd_fleet.simulation import simulate

def forever(grid):
    print("begun", flush=True)
    while True:
        list(grid.get_node_ids())
        time.sleep(0.05)

def signals_its_own_thread(grid):
    time.sleep(2)  # the main thread waits for the end by now
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        list(grid.get_node_ids())
        time.sleep(0.05)
    print("was not interrupted", flush=True)

@cli.app.command()
def wait(folder: str):
    simulate(Settings(state_folder=folder), forever)

@cli.app.command()
def signal_itself(folder: str):
    simulate(Settings(state_folder=folder), signals_its_own_thread)

cli.main()
"""


def wait_until(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(processes):
    """Whether all have ended within a while; zombies whose new parent has not looked at them count as gone."""
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE / 4)
    return not [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def start(*words):
    return subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_simulated_fleet_ends_with_its_nodes_on_sigterm(tmp_path):
    create_site(tmp_path / "sites" / "site-1", SiteCard(name="site-1", input=image_input(32), classes=("no", "yes")))
    with start("-c", SIMULATION, "wait", tmp_path) as process:
        assert process.stdout.readline() == "begun\n"
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (128 + signal.SIGTERM, "", SENTENCE)
    assert gone(family)


def test_a_simulated_fleet_ends_though_another_thread_than_the_main_one_takes_the_signal(tmp_path):
    create_site(tmp_path / "sites" / "site-1", SiteCard(name="site-1", input=image_input(32), classes=("no", "yes")))
    with start("-c", SIMULATION, "signal-itself", tmp_path) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (128 + signal.SIGINT, "", SENTENCE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_workers_of_a_bench_end_with_it(tmp_path, synthetic_faces, number):
    changes = ["data.image_size=32", "data.validation_people=3", "data.test_people=3", f"state_folder={tmp_path}"]
    sets = [part for change in changes for part in ("--set", change)]
    with start("-m", "dlfd_fleet", "bench", "methods", "--data", synthetic_faces, "--seeds", "1", *sets) as process:
        parent = psutil.Process(process.pid)
        wait_until(lambda: len(parent.children(recursive=True)) > 1, process)
        family = parent.children(recursive=True)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=PATIENCE)
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert err == SENTENCE
    assert gone(family)
