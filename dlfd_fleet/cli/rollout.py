"""``dlfd-fleet rollout``: who may take a new release, and when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlfd_fleet.cli.delivery import Keys
from dlfd_fleet.cli.options import By, Config, Overrides, console, decided_by, load

if TYPE_CHECKING:
    from dlfd_fleet.delivery.delivery import RolloutStep
    from dlfd_fleet.federation.release.rollout_decisions import Decided

Reason = Annotated[str, typer.Option(help="Why; it is kept with the jobs.")]
app = typer.Typer(no_args_is_help=True, help="Control which devices may take a release published with --rings.")


@app.command("start", epilog="Example: dlfd-fleet rollout start")
def start(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Give the release to the canaries; without any, to the first share of the devices."""
    _change("start", keys, config, overrides)


@app.command("widen", epilog="Example: dlfd-fleet rollout widen")
def widen(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Give it to the next share of the devices."""
    _change("widen", keys, config, overrides)


@app.command("pause", epilog="Example: dlfd-fleet rollout pause --reason 'cameras restart'")
def pause(reason: Reason, by: By = None, keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Let no more devices take it; those that have it keep it."""
    _decide("pause", reason, by, keys, config, overrides)


@app.command("resume", epilog="Example: dlfd-fleet rollout resume --reason 'cameras are mended'")
def resume(
    reason: Reason, by: By = None, keys: Keys = None, config: Config = None, overrides: Overrides = None
) -> None:
    """Go on after a pause."""
    _decide("resume", reason, by, keys, config, overrides)


@app.command("abort", epilog="Example: dlfd-fleet rollout abort --reason 'it answers wrongly'")
def abort(reason: Reason, by: By = None, keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Take it back from the devices that have it; they return to the release before."""
    _decide("abort", reason, by, keys, config, overrides)


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


def _decide(
    step: Decided,
    reason: str,
    by: str | None,
    keys: list[Path] | None,
    config: Path | None,
    overrides: list[str] | None,
) -> None:
    from dlfd_fleet.delivery.status import rollout_line
    from dlfd_fleet.federation.release.rollout_decisions import change_rollout

    changed = change_rollout(load(config, overrides).settings, step, decided_by(by), reason, keys or ())
    console.print(rollout_line(changed), soft_wrap=True, highlight=False)
