"""``dlfd-fleet outbox``: what MLflow does not have yet."""

from __future__ import annotations

from typing import Annotated

import typer

from dlfd_fleet.cli.options import Config, Overrides, console, load

app = typer.Typer(no_args_is_help=True, help="List, send and drop records that MLflow has not taken.")


@app.command("list", epilog="Example: dlfd-fleet outbox list")
def list_records(config: Config = None, overrides: Overrides = None) -> None:
    """List the records that wait, and those that MLflow refused, with the reason."""
    from dlfd_fleet.federation.release.unsent import unsent_table

    table = unsent_table(load(config, overrides).settings)
    console.print(table if table.row_count else "Nothing waits for MLflow.")


@app.command("send", epilog="Example: dlfd-fleet outbox send")
def send(config: Config = None, overrides: Overrides = None) -> None:
    """Send what waits and what was refused."""
    from dlfd_fleet.federation.release.unsent import send_unsent

    said = send_unsent(load(config, overrides).settings)
    console.print(said, soft_wrap=True, highlight=False, markup=False)


@app.command("drop", epilog="Example: dlfd-fleet outbox drop 17")
def drop(
    record: Annotated[int, typer.Argument(help="Number of the record, as `outbox list` shows it.")],
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Let go of one record for good."""
    from dlfd_fleet.federation.release.unsent import drop_unsent

    said = drop_unsent(load(config, overrides).settings, record)
    console.print(said, soft_wrap=True, highlight=False, markup=False)
