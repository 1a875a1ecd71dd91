"""The ``dlfd-fleet`` command: reads arguments, calls the library, prints. No logic of its own; a module a group."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from rich.text import Text
from typer.main import get_command

from dlfd_fleet.cli import bench, certificate, config, data, delivery, forget, job, outbox, registry, rollout, site
from dlfd_fleet.cli.desk import desk
from dlfd_fleet.cli.explain import PAGES, explain
from dlfd_fleet.cli.main_commands import certify, demo, prune, unlearn
from dlfd_fleet.cli.report import report
from dlfd_fleet.cli.texts import take_texts_alone
from dlfd_fleet.exceptions import DataError, FleetError, GoesOnError, file_refusal
from dlfd_fleet.interruption import Interruption, end, interruptible, own_children
from dlfd_fleet.plain_text import PlainConsole, visible

_INTERRUPTED = "Interrupted; run the command again to continue or start over."

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they would print local variables, and with them people's names
    help="Right to be forgotten for federated fleets.",
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dlfd-fleet {version('dlfd-fleet')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Right to be forgotten for federated fleets."""


_TRY, _SITE, _COORDINATOR, _DEVICES, _MEASURE = (
    "Try it",
    "At a site",
    "At the coordinator",
    "Devices",
    "Measure and set",
)
app.command(rich_help_panel=_TRY, epilog="Example: dlfd-fleet demo --compare-retrain")(demo)
app.command(
    rich_help_panel=_TRY,
    epilog="Example: dlfd-fleet unlearn --model my-model --data faces/manifest.csv --forget anna --output unlearned",
)(unlearn)
app.command(rich_help_panel=_TRY, epilog="Example: dlfd-fleet explain site")(explain)
app.add_typer(site.app, name="site", rich_help_panel=_SITE)
app.add_typer(forget.app, name="forget", rich_help_panel=_SITE)
app.add_typer(data.app, name="data", rich_help_panel=_SITE)
app.command(rich_help_panel=_SITE, epilog="Example: dlfd-fleet desk --site /srv/site")(desk)
app.add_typer(job.app, name="job", rich_help_panel=_COORDINATOR)
app.command(rich_help_panel=_COORDINATOR, epilog="Example: dlfd-fleet report --output report.html")(report)
app.add_typer(certificate.app, name="certificate", rich_help_panel=_COORDINATOR)
app.command(rich_help_panel=_COORDINATOR, epilog="Example: dlfd-fleet certify --runs 20 --budget 2h")(certify)
app.add_typer(registry.app, name="registry", rich_help_panel=_COORDINATOR)
app.add_typer(outbox.app, name="outbox", rich_help_panel=_COORDINATOR)
app.command(rich_help_panel=_COORDINATOR, epilog="Example: dlfd-fleet prune --dry-run")(prune)
app.command("publish", rich_help_panel=_DEVICES, epilog="Example: dlfd-fleet publish champion --rings")(
    delivery.publish
)
app.add_typer(delivery.app, name="delivery", rich_help_panel=_DEVICES)
app.add_typer(rollout.app, name="rollout", rich_help_panel=_DEVICES)
app.add_typer(bench.app, name="bench", rich_help_panel=_MEASURE)
app.add_typer(config.app, name="config", rich_help_panel=_MEASURE)


def main() -> None:
    """Run the command; a mistake is one sentence with its page and exit code 2, a signal one and 128 + its number.

    What each code means is in docs/how-to/operate.md.
    """
    with interruptible() as interruption:
        try:
            command = get_command(app)
            take_texts_alone(command)
            command(prog_name="dlfd-fleet")
        except BaseException as error:
            if interruption:
                _end(interruption, str(error) if isinstance(error, GoesOnError) else _INTERRUPTED)
            if isinstance(error, FleetError):
                _refuse(str(error), _explained_by(error), error.exit_code)
            refusal = file_refusal(error)
            if refusal:
                _refuse(refusal)
            raise


def _end(interruption: Interruption, said: str) -> NoReturn:
    end(own_children())
    PlainConsole(stderr=True).print(said, soft_wrap=True)
    sys.exit(interruption.exit_code)


def _explained_by(error: FleetError) -> str | None:
    """Return the command whose page explains an error."""
    if isinstance(error, DataError):
        return "data"
    return next((word for word in sys.argv[1:] if word in PAGES), None)


def _refuse(sentence: str, command: str | None = None, exit_code: int = 2) -> NoReturn:
    words = Text.assemble(("Error:", "red"), f" {visible(sentence)}")
    if command is not None:
        words.append(f" See {PAGES[command]} (dlfd-fleet explain {command}).", "dim")
    PlainConsole(stderr=True).print(words, soft_wrap=True, highlight=False)
    sys.exit(exit_code)
