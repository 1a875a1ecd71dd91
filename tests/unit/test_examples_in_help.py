"""Every command's help ends with an example, and the example is one that the command takes."""

from __future__ import annotations

import shlex

import pytest
import typer

from dlfd_fleet.cli import app
from dlfd_fleet.device.cli import app as device_app
from tests.command import run_command


def leaves(command, words):
    """Yield each command that does something, and how it is typed."""
    below = getattr(command, "commands", None)
    if below is None:
        yield words, command
        return
    for name, one in below.items():
        yield from leaves(one, (*words, name))


PROGRAMS = {"dlfd-fleet": typer.main.get_command(app), "dlfd-fleet-device": typer.main.get_command(device_app)}
COMMANDS = {" ".join(words): one for name, program in PROGRAMS.items() for words, one in leaves(program, (name,))}


@pytest.mark.parametrize("typed", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example_that_it_takes(typed):
    command = COMMANDS[typed]
    assert command.epilog, f"{typed} has no example"
    words = shlex.split(command.epilog.removeprefix("Example: "))
    length = len(typed.split())
    assert " ".join(words[:length]) == typed
    command.make_context(typed, words[length:])  # a usage error if it does not take them


@pytest.mark.parametrize("typed", COMMANDS)
def test_the_help_of_a_command_says_what_it_does_and_what_each_argument_and_option_is(typed):
    command = COMMANDS[typed]
    assert command.help
    assert not [parameter.name for parameter in command.params if not parameter.help]


def test_the_help_of_the_program_fits_a_screen():
    assert len(run_command("--help", TERMINAL_WIDTH=80, COLUMNS=80).stdout.splitlines()) <= 45
