"""The command as a person types it, run in this process: what it imports takes longer than what it does."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from dlfd_fleet.cli import main
from dlfd_fleet.cli.options import console

WIDTH = 200
CONFIGURED = "DLFD_FLEET_"


def environment_of(variables: Mapping[str, object]) -> dict[str, str]:
    """Return the environment of a command: this one, with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CONFIGURED)}
    return kept | {"COLUMNS": str(WIDTH)} | {name: str(value) for name, value in variables.items()}


def run_command(*words: object, **variables: object) -> SimpleNamespace:
    """Run ``dlfd-fleet`` with these words and variables; return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    environment = environment_of(variables)
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment.keys():
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["dlfd-fleet", *map(str, words)])
        patch.setattr(console, "_width", WIDTH)
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
    return SimpleNamespace(returncode=end.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())
