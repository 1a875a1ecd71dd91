"""The cores that this process may use, and threads that leave them to others while they wait.

Torch's OpenMP threads spin while they wait for each other. On cores that other work keeps busy they spin instead of it,
and each parallel step waits for a thread that the others keep from running (docs/adr/0021).
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def wait_without_spinning() -> None:
    """Make OpenMP's threads sleep while they wait, unless the user has set it. Call it before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def usable_cores() -> int:
    """Return how many cores this process may use at once: by its affinity, and by the CPU quota of its cgroups."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(_CGROUPS, _OWN_CGROUPS)
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def cgroup_quota(root: Path, own: Path) -> float | None:
    """Return the smallest quota of a process's cgroups and of those above them, cores; None where there is none.

    Parameters
    ----------
    root
        Where cgroups are mounted, of version 2 or 1.
    own
        What ``/proc/PID/cgroup`` says: ``0::/PATH`` for version 2, ``N:cpu,cpuacct:/PATH`` for version 1.
    """
    quotas = []
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "none", "")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "cpu" if controllers else root
        # In a container the path is the host's, and what is mounted is the container's own group.
        folder = mounted / path.lstrip("/")
        for group in (folder, *folder.parents):
            quotas += _quota(group)
            if group == mounted:
                break
    return min(quotas, default=None)


def _quota(group: Path) -> list[float]:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return [int(quota) / int(period)] if quota != "max" and int(quota) > 0 and int(period) > 0 else []
    except (OSError, ValueError):
        return []


def limit_torch_threads() -> None:
    """Limit torch's threads to the cores that this process may use; torch ignores quotas."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
