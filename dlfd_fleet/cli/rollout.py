"""``dlfd-fleet rollout``: who may take a new release, and when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dlfd_fleet.cli.delivery import Keys
from dlfd_fleet.cli.options import Config, Overrides, console, load

if TYPE_CHECKING:
    from dlfd_fleet.delivery.delivery import RolloutStep

app = typer.Typer(no_args_is_help=True, help="Control which devices may take a release published with --rings.")


@app.command("start", epilog="Example: dlfd-fleet rollout start")
def start(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Give the release to the canaries; without any, to the first share of the devices."""
    _change("start", keys, config, overrides)


@app.command("widen", epilog="Example: dlfd-fleet rollout widen")
def widen(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Give it to the next share of the devices."""
    _change("widen", keys, config, overrides)


@app.command("pause", epilog="Example: dlfd-fleet rollout pause")
def pause(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Let no more devices take it; those that have it keep it."""
    _change("pause", keys, config, overrides)


@app.command("resume", epilog="Example: dlfd-fleet rollout resume")
def resume(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Go on after a pause."""
    _change("resume", keys, config, overrides)


@app.command("abort", epilog="Example: dlfd-fleet rollout abort")
def abort(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Take it back from the devices that have it; they return to the release before."""
    _change("abort", keys, config, overrides)


@app.command("complete", epilog="Example: dlfd-fleet rollout complete")
def complete(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Forbid and delete everything under the release's epoch; needs the releases' keys."""
    _change("complete", keys, config, overrides)


@app.command("status", epilog="Example: dlfd-fleet rollout status")
def status(config: Config = None, overrides: Overrides = None) -> None:
    """Show how far the rollout is, and how devices fare with it."""
    from dlfd_fleet.delivery.delivery import opened
    from dlfd_fleet.delivery.status import rollout_status

    with opened(load(config, overrides).settings) as delivery:
        console.print(rollout_status(delivery), soft_wrap=True, highlight=False)


def _change(step: RolloutStep, keys: list[Path] | None, config: Path | None, overrides: list[str] | None) -> None:
    from dlfd_fleet.delivery.delivery import opened
    from dlfd_fleet.delivery.status import rollout_line

    with opened(load(config, overrides).settings, keys or ()) as delivery:
        console.print(rollout_line(delivery.change_rollout(step)), soft_wrap=True, highlight=False)
