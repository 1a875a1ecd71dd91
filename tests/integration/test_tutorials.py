"""The shell blocks of tutorials, as somebody copies them; those of the demo and of one's own fleet run in tests/e2e."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import environment_of
from tests.unit.test_documented_code import blocks

ROOT = Path(__file__).resolve().parents[2]
# What trains, serves until it is stopped, or needs a fleet, a server or a released model: tests/integration and
# tests/e2e have tests of that, with other sizes.
NEEDS_A_FLEET = (
    "dlfd-fleet certify",
    "dlfd-fleet demo",
    "dlfd-fleet desk",
    "dlfd-fleet job start",
    "dlfd-fleet report",
    "dlfd-fleet publish",
    "dlfd-fleet delivery serve",
    "dlfd-fleet-device once",
    "dlfd-fleet-device predict",
    "deploy/local-fleet.sh",
)
FIRST_WORDS = {"dlfd-fleet", "export", "grep", "deploy/local-fleet.sh"}


@pytest.mark.parametrize(
    ("name", "said", "named"),
    [
        ("certify", "Wrote 720 images", "people/manifest.csv"),
        ("desk", "sites/site-1", "desk-fleet/sites/site-1"),
        ("own-data", "no problem found. 240 images of 40 people", "faces/manifest.csv"),
        ("sites-and-device", "camera is in the fleet", "faces/images/person-00001/000.png"),
    ],
)
def test_lines_that_need_no_fleet_run_and_test_documented_code_checks_the_options_of_the_others(
    name, said, named, tmp_path
):
    shell = [
        block for block in blocks(ROOT / "docs" / "tutorials" / f"{name}.md", "") if block.split()[0] in FIRST_WORDS
    ]
    lines = [line for block in shell for line in block.splitlines()]
    assert any(named in line for line in lines if line.startswith(NEEDS_A_FLEET))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(line for line in lines if not line.startswith(NEEDS_A_FLEET))],
        cwd=tmp_path,
        env=environment_of({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": ROOT}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
    assert (tmp_path / named).exists()  # what a line names that did not run
