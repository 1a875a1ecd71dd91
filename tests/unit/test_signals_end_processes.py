"""A signal ends a command with one sentence and 128 + its number, wherever it finds the process."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from dlfd_fleet.interruption import end, interruptible, own_children


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_interrupts_and_is_noted(number):
    before = signal.getsignal(number)
    with interruptible() as interruption:
        assert not interruption
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert interruption
        assert interruption.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_signal_that_comes_while_python_drops_exceptions_is_raised_again():
    class Collected:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def collect_and_work():
        Collected()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            pass

    with interruptible(), pytest.raises(KeyboardInterrupt):
        collect_and_work()


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert not interruption
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_children_are_ended_by_force_if_need_be_and_what_has_a_session_of_its_own_stays(monkeypatch):
    monkeypatch.setattr("dlfd_fleet.interruption._PATIENCE", 0.2)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); input()"
    command = [sys.executable, "-c", stubborn]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(command, **pipes) as child,
        subprocess.Popen(command, **pipes, start_new_session=True) as daemon,
    ):
        for process in (child, daemon):
            process.stdout.readline()
        end([process for process in own_children() if process.pid in (child.pid, daemon.pid)])
        assert not psutil.pid_exists(child.pid)
        assert psutil.Process(daemon.pid).is_running()
        daemon.kill()


def test_another_thread_than_the_main_one_changes_nothing():
    def run():
        with interruptible() as interruption:
            entered.append(bool(interruption))

    entered = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [False]
