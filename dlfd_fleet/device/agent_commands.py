"""The device agent's commands: ``init``, ``run``, ``once``, ``status`` and ``serve``."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.table import Table
from rich.text import Text

from dlfd_fleet.exceptions import DeviceError
from dlfd_fleet.plain_text import PlainConsole, visible

if TYPE_CHECKING:
    from dlfd_fleet.device.answering import Loaded

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="The device's folder.")]


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder: settings, key, floor, models.")],
    url: Annotated[str, typer.Option(help="Address of the coordinator's repository.")],
    root: Annotated[Path, typer.Option(help="The repository's root.json, from a source that you trust.")],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Format that the device takes; repeatable, best first: fp32, fp16, int8 or ort. [default: int8, fp32]",
        ),
    ] = None,
    lease_days: Annotated[
        float | None,
        typer.Option(help="Days without contact to the coordinator after which the device stops answering."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of one prediction.")] = 1,
    poll_seconds: Annotated[float, typer.Option(help="Mean seconds between polls of the repository.")] = 600.0,
) -> None:
    """Make a device's folder, with a key of its own."""
    from pydantic import ValidationError

    from dlfd_fleet.device.folder import DeviceSettings, init_device

    values: dict[str, Any] = {"url": url, "lease_days": lease_days, "threads": threads, "poll_seconds": poll_seconds}
    try:
        settings = DeviceSettings(**values, **({"formats": tuple(formats)} if formats else {}))
    except ValidationError as error:
        first = error.errors()[0]
        raise DeviceError(f"{first['loc'][0]}: {first['msg']}.") from error
    device = init_device(folder, settings, root)
    typer.echo(f"Device {device.device}")
    typer.echo(f"Enrol its public key at the coordinator: {(folder / 'device.pub').absolute()}")


def once(
    folder: FolderArgument,
    clock_is_right: Annotated[
        bool, typer.Option("--clock-is-right", help="Trust the device's clock, although it was ahead before.")
    ] = False,
) -> None:
    """Poll the repository once: exit code 0 if the device is up to date and answers, 2 if it is not."""
    from dlfd_fleet.device.agent import Agent
    from dlfd_fleet.device.clock import Clock
    from dlfd_fleet.device.folder import DeviceFolder

    opened = DeviceFolder(folder)
    with opened.only_agent():
        if clock_is_right:
            Clock(opened.clock).trust()
            opened.client().trust_clock()
        agent = Agent(opened)
        agent.poll()
        if agent.state.unreported:
            typer.echo(visible(agent.state.unreported), err=True)
        typer.echo(visible(_named(agent.answering.loaded())))


def run(folder: FolderArgument) -> None:
    """Poll the repository until stopped."""
    from dlfd_fleet.device.agent import Agent
    from dlfd_fleet.device.folder import DeviceFolder
    from dlfd_fleet.device.polling import Stopped, keep_polling

    opened, stopped = DeviceFolder(folder), Stopped()
    with opened.only_agent():
        keep_polling(Agent(opened), opened.settings.poll_seconds, stopped, _say)
    _say_who_stopped(stopped.number)


def serve(
    folder: FolderArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
) -> None:
    """Answer over HTTP in the Open Inference Protocol (v2), and poll the repository meanwhile."""
    from dlfd_fleet.device.agent import Agent
    from dlfd_fleet.device.folder import DeviceFolder
    from dlfd_fleet.device.polling import Stopped, keep_polling
    from dlfd_fleet.device.serve import serving

    opened = DeviceFolder(folder)
    with opened.only_agent():
        agent = Agent(opened)
        stopped = Stopped()
        with serving(agent.answering, host, port) as address:
            typer.echo(f"Answers at {address}/v2")
            keep_polling(agent, opened.settings.poll_seconds, stopped, _say)
    _say_who_stopped(stopped.number)


def status(
    folder: FolderArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print what the device runs, what it still holds, and what is wrong."""
    from dlfd_fleet.device.folder import DeviceFolder
    from dlfd_fleet.device.reading import describe

    rows = describe(DeviceFolder(folder))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = Table("", "", show_header=False)
    for key, value in rows.items():
        table.add_row(key.replace("_", " "), Text(_in_words(value), overflow="fold"))
    PlainConsole().print(table)


def _in_words(value: object) -> str:
    if value is None:  # the epoch, which only a model has
        return "no model yet"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _say(line: str) -> None:
    typer.echo(visible(line))


def _say_who_stopped(number: int) -> NoReturn:
    typer.echo(f"Stopped by {signal.Signals(number).name}; the next start goes on with the same model.", err=True)
    raise typer.Exit(128 + number)


def _named(loaded: Loaded) -> str:
    return f"Runs version {loaded.release.version} ({loaded.release.format}), epoch {loaded.release.epoch}."
