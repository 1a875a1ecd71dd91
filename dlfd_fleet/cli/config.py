"""``dlfd-fleet config``: the settings."""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from dlfd_fleet.cli.options import Config, Overrides, console, load
from dlfd_fleet.configuration import descriptions
from dlfd_fleet.plain_text import plain

_WIDE = 160

app = typer.Typer(no_args_is_help=True, help="Show the settings.")


@app.command("show", epilog="Example: dlfd-fleet config show --set training.rounds=30")
def show(config: Config = None, overrides: Overrides = None) -> None:
    """Print every setting: its value, where that came from, and what it is."""
    loaded, known = load(config, overrides), descriptions()
    # A log has no width of its own. On a narrow terminal a setting's line is above what it is.
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)
    table = Table(show_lines=console.width < _WIDE)
    table.add_column("setting", width=max(map(len, known)))
    for heading in ("value", "from"):
        table.add_column(heading, overflow="fold")
    if console.width >= _WIDE:
        table.add_column("what it is", overflow="fold")
    for key, value, origin in loaded.rows():
        if console.width >= _WIDE:
            table.add_row(key, value, origin, known[key])
        else:
            table.add_row(Text("\n").join([plain(key), plain(known[key], "dim")]), value, origin)
    console.print(table)
