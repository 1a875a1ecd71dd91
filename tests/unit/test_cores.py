"""Cores by affinity and by the quota of cgroups; OpenMP waits as its user says."""

import os
import subprocess
import sys

import pytest

from dlfd_fleet import cores


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4.0),
        ("0::/a/b", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "400000 100000"}, 4.0),
        ("0::/docker/host-path", {"cpu.max": "200000 100000"}, 2.0),  # in a container
        ("0::/../../other", {"cpu.max": "200000 100000"}, 2.0),
        (
            "5:cpu,cpuacct:/a\n4:memory:/m",
            {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("5:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
        ("nonsense", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_smallest_quota_on_the_way_up_counts(tmp_path, own, files, quota):
    root, own_file = tmp_path / "cgroup", tmp_path / "own"
    own_file.write_text(own + "\n")
    root.mkdir()
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    assert cores.cgroup_quota(root, own_file) == quota


def test_no_cgroups_are_no_quota(tmp_path):
    assert cores.cgroup_quota(tmp_path, tmp_path / "nothing") is None


@pytest.mark.parametrize(("quota", "usable"), [(None, 4), (2.7, 2), (0.5, 1), (64.0, 4)])
def test_cores_are_the_fewer_of_affinity_and_quota_and_at_least_one(monkeypatch, quota, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cores, "cgroup_quota", lambda *_: quota)
    assert cores.usable_cores() == usable


def test_torch_keeps_to_the_cores_and_to_what_its_user_has_set(monkeypatch):
    import torch

    before = torch.get_num_threads()
    try:
        for had, usable, has in ((4, 2, 2), (1, 2, 1)):
            torch.set_num_threads(had)
            monkeypatch.setattr(cores, "usable_cores", lambda usable=usable: usable)
            cores.limit_torch_threads()
            assert torch.get_num_threads() == has
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("set_to", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_waits_without_spinning_unless_its_user_says_otherwise(set_to, policy):
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = "import os, dlfd_fleet; print(os.environ['OMP_WAIT_POLICY'])"
    environment = kept | ({"OMP_WAIT_POLICY": set_to} if set_to else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == policy
