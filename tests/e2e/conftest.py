"""A fleet small enough for a test: synthetic faces, two sites, one round of everything."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dlfd_fleet.cli import main
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
            "training": {"rounds": 2, "local_epochs": 6, "batch_size": 8},
            "erasure": {"rounds": 1, "unlearning": {"batch_size": 8}, "repair_epochs": 4, "max_attempts": 1},
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

    def configure(self, sections: dict[str, dict]) -> None:
        """Write the settings, some of them changed."""
        for section, changes in sections.items():
            self.settings[section] = self.settings.get(section, {}) | changes
        self.config.write_text(json.dumps(self.settings))

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DLFD_FLEET_")}
        return kept | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "dlfd_fleet", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, env=self.environment(), check=False
        )

    def demo(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        flags = [part for override in overrides for part in ("--set", override)]
        return self.run("demo", "--config", str(self.config), *flags)

    def demo_here(self, *overrides: str) -> SimpleNamespace:
        """Run the same command in this process, and its sites too: there are no virtual nodes to start."""
        flags = [part for override in overrides for part in ("--set", override)]
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("DLFD_FLEET_")]:
                patch.delenv(name)
            patch.setattr(sys, "argv", ["dlfd-fleet", "demo", "--config", str(self.config), *flags])
            patch.setattr("dlfd_fleet.cli.main_commands.console", Console(file=out, width=200))
            patch.setattr("dlfd_fleet.demo.simulate", answer_here)
            with redirect_stderr(err), pytest.raises(SystemExit) as end:
                main()
        return SimpleNamespace(returncode=end.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())

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
