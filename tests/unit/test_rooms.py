"""The boundaries of the rooms, as pyproject.toml draws them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_imports_keep_to_the_rooms():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("room", ["dlfd_fleet.device.cli", "dlfd_fleet.audit", "dlfd_fleet.formats"])
def test_devices_and_the_audit_load_nothing_of_the_training_side(room):
    code = f"import sys, {room}; print([n for n in ('torch', 'flwr', 'mlflow') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_sources_and_formats_are_checked_without_torch():
    code = (
        "import sys; from dlfd_fleet.configuration import load_settings; "
        "load_settings(overrides={'data.source': 'celeba', 'export.formats': 'fp32,int8'}, environment={}); "
        "print([n for n in ('torch', 'onnx', 'onnxruntime') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
