"""A fleet small enough for a test: synthetic faces, two sites, one round of everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.command import environment_of, run_command
from tests.integration.fleet_in_process import answer_here


class SmallFleet:
    """Settings of a small fleet in a state folder, and the command that runs on it."""

    def __init__(self, folder: Path, manifest: Path) -> None:
        self.state = folder / "state"
        self.config = folder / "fleet.json"
        self.settings = {
            "state_folder": str(self.state),
            "data": {
                "source": "manifest",
                "manifest": str(manifest),
                "image_size": 32,
                "sites": 2,
                "validation_people": 2,
                "test_people": 2,
            },
            "training": {"rounds": 2, "local_epochs": 2, "batch_size": 8},
            "erasure": {"rounds": 1, "unlearning": {"batch_size": 8}, "repair_epochs": 2, "max_attempts": 1},
            # Three dozen drawings cannot show anything: what is tested is the way, so the bounds are wide.
            "audit": {
                "resamples": 200,
                "margin": 0.49,
                "max_accuracy_drop": 1.0,
                "max_retain_drop": 1.0,
                "min_gain_over_majority": -1.0,
            },
        }
        self.configure({})

    def make_quick(self) -> None:
        """For what is told of processes, not of what they learn."""
        self.configure(
            {
                "model": {"architecture": "mobilenet_v3_small"},
                "training": {"rounds": 1, "local_epochs": 1},
                "erasure": {"repair_epochs": 1, "relearning_rounds": 0, "largest_forget_share": 1.0},
            }
        )

    def configure(self, sections: dict[str, dict]) -> None:
        """Write the settings, some of them changed."""
        for section, changes in sections.items():
            self.settings[section] = self.settings.get(section, {}) | changes
        self.config.write_text(json.dumps(self.settings))

    def variables(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}

    def environment(self) -> dict[str, str]:
        return environment_of(self.variables())

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dlfd_fleet", *arguments]

    def run(self, *arguments: str) -> SimpleNamespace:
        """Run a command in this process."""
        return run_command(*arguments, **self.variables())

    def demo(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*self._demo(overrides)), capture_output=True, text=True, env=self.environment(), check=False
        )

    def demo_here(self, *overrides: str) -> SimpleNamespace:
        """Run the same command in this process, and its sites too: there are no virtual nodes to start."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dlfd_fleet.demo.simulate", answer_here)
            return self.run(*self._demo(overrides))

    def _demo(self, overrides: tuple[str, ...]) -> list[str]:
        return ["demo", "--config", str(self.config), *[part for each in overrides for part in ("--set", each)]]

    def phase(self) -> str:
        file = self.state / "demo.json"
        return json.loads(file.read_text())["phase"] if file.exists() else ""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> SmallFleet:
    from dlfd_fleet.data import synthesize
    from dlfd_fleet.progress import ConsoleProgress

    folder = tmp_path_factory.mktemp("fleet")
    with (folder / "log").open("w") as log:
        manifest = synthesize(
            folder / "faces",
            people=16,
            images_per_person=4,
            image_size=32,
            classes=2,
            seed=0,
            progress=ConsoleProgress(Console(file=log)),
        )
    return SmallFleet(folder, manifest)
