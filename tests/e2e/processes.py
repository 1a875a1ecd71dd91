"""Ports for processes that a test starts, and what it does until they are there and when they must go."""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing, suppress

import psutil

PATIENCE = 900.0  # a machine with other work takes its time; nothing is asserted of that


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE:.0f} s"
        time.sleep(0.2)


def free_ports(count):
    """The first of some neighbouring ports that nobody listens on."""
    for start in range(20000 + os.getpid() % 20000, 60000, count):
        with closing(socket.socket()) as last:
            try:
                for port in range(start, start + count):
                    with closing(socket.socket()) as probe:
                        probe.bind(("127.0.0.1", port))
                last.bind(("127.0.0.1", start))
            except OSError:
                continue
        return start
    raise AssertionError("no free ports")


def kill_tree(process, how):
    """End a process that a test started, and everything that it has started; return when they are gone."""
    try:
        root = psutil.Process(process.pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(how)
    _, alive = psutil.wait_procs(family, timeout=60)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=60)
    process.wait()
