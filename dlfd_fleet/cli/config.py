"""``dlfd-fleet config``: the settings."""

from __future__ import annotations

import typer
from rich.table import Table

from dlfd_fleet.cli.options import Config, Overrides, console, load

app = typer.Typer(no_args_is_help=True, help="Settings.")


@app.command("show")
def show(config: Config = None, overrides: Overrides = None) -> None:
    """Print every effective setting and where its value came from."""
    table = Table("setting", "value", "from")
    for row in load(config, overrides).rows():
        table.add_row(*row)
    console.print(table)
