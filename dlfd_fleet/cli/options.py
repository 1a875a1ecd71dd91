"""What the commands share: their common options, the console, and the settings that a command line makes."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlfd_fleet.configuration import LoadedSettings, load_settings
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.passwords import without_passwords
from dlfd_fleet.plain_text import PlainConsole, is_text

if TYPE_CHECKING:
    from dlfd_fleet.report.archive import Records

Config = Annotated[Path | None, typer.Option("--config", help="TOML or JSON file of settings.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="A setting, as KEY=VALUE; may be repeated.")]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="Names of the classes in order, separated by commas; default: those of the manifest. "
        "A name that holds a comma stands in quotation marks: '\"hat, red\",none'.",
    ),
]
MultiLabel = Annotated[
    bool,
    typer.Option("--multi-label", help="A label cell may hold several labels: 'hat;glasses', or 'none'."),
]
FollowLinks = Annotated[
    bool,
    typer.Option(
        "--follow-links", help="Accept images that are links out of their folder; a purge deletes link and file."
    ),
]
TrainedOnOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|all",
        help="People on whom the model was trained before: a file with one identity a line or a column 'identity', "
        "or 'all' for everybody in the manifest. None of them counts as unseen.",
    ),
]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides; the login name by default.")]
console = PlainConsole()


def load(config: Path | None, overrides: list[str] | None, flags: dict[str, object] | None = None) -> LoadedSettings:
    """Read the settings of a command line: ``--config``, ``--set``, and what its own flags set."""
    values: dict[str, object] = dict(flags or {})
    for text in overrides or []:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigurationError(f"--set {without_passwords(text)} has no value; write --set KEY=VALUE.")
        values[key.strip()] = value
    return load_settings(config, values)


def say_archive(output: Path, records: Records, end: date) -> None:
    """Say what an archive holds, and how far it goes where its period goes on until a later day."""
    counts = ", ".join(f"{name} {number}" for name, number in records.predicate.rows.items())
    console.print(f"{output} holds the records: {counts}.", soft_wrap=True, highlight=False)
    if (today := records.predicate.end) < end:
        console.print(f"It ends today, {today}: the period goes on until {end}.", soft_wrap=True, highlight=False)


def decided_by(by: str | None) -> str:
    """Return who decides: the name that was given, or the login name."""
    from getpass import getuser

    if by is not None and by.strip():
        return by
    try:
        name = getuser()
    except (KeyError, OSError) as error:
        raise ConfigurationError("This process has no login name; say who you are with --by NAME.") from error
    if not is_text(name):
        raise ConfigurationError(f"The login name {name} is no text in UTF-8; say who you are with --by NAME.")
    return name
