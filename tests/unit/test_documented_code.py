"""What the pages tell a reader to run: Python runs as it stands, and every command takes what it is given."""

from __future__ import annotations

import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest
import typer

from dlfd_fleet.cli import app
from dlfd_fleet.configuration import CONFIG_VARIABLE, ENVIRONMENT_PREFIX, descriptions
from dlfd_fleet.device.cli import app as device_app

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "quickstart"
FOLDERS = ("tutorials", "how-to", "reference", "explanation")
PAGES = [ROOT / "README.md", ROOT / "deploy" / "README.md"]
PAGES += sorted(page for folder in FOLDERS for page in (ROOT / "docs" / folder).glob("*.md"))
PROGRAMS = {"dlfd-fleet": typer.main.get_command(app), "dlfd-fleet-device": typer.main.get_command(device_app)}
MADE = {".venv/.installed", *re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)}
SEPARATORS = {";", "&", "&&", "|", ">", "do", "done"}


def blocks(page, *languages):
    """Return the fenced blocks of a page that are of one of these languages."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def told(page):
    """Yield each line of a page's shell blocks, as words."""
    for block in blocks(page, "", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            try:
                yield line, shlex.split(line, comments=True)
            except ValueError:  # what a program prints
                continue


def begins(words, position):
    """Tell whether a word of a line is a program, and not what another program is given."""
    before = ["&&", "&&", *words[:position]][-2:]
    return before[1] in {*SEPARATORS, "--"} or "=" in before[1] or before[0] == "exec"


def commands():
    """Yield each command of ours in a shell block, as words."""
    for page in PAGES:
        for line, words in told(page):
            for position, word in enumerate(words):
                program = word.rpartition("/")[2]
                if program in PROGRAMS and begins(words, position):
                    given = [*takewhile(lambda one: one not in SEPARATORS, words[position + 1 :])]
                    yield pytest.param(program, given, id=f"{page.name}: {line.strip()[:90]}")


def mentioned():
    """Yield each command of ours that a page names in its text."""
    for page in PAGES:
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for code in dict.fromkeys(re.findall(r"`((?:dlfd-fleet|dlfd-fleet-device) [^`]+)`", text)):
            program, *words = code.replace("\\|", "|").replace("[", " ").replace("]", " ").split()
            yield pytest.param(program, words, id=f"{page.name}: {code[:90]}")


def found(program, words):
    """Return the command that words begin with, how it is typed, and the words that are left."""
    command, typed, left = PROGRAMS[program], program, list(words)
    while left and getattr(command, "commands", None) and left[0] in command.commands:
        command, typed = command.commands[left[0]], f"{typed} {left[0]}"
        left.pop(0)
    return command, typed, left


@pytest.mark.parametrize(("program", "words"), commands())
def test_a_command_of_a_page_takes_what_it_is_given(program, words):
    command, typed, left = found(program, words)
    assert left or not getattr(command, "commands", None), f"{typed} is no command"
    context = command.make_context(typed, left)  # a usage error if it does not take them
    for setting in context.params.get("overrides") or ():
        assert setting.partition("=")[0] in descriptions(), setting


@pytest.mark.parametrize(("program", "words"), mentioned())
def test_a_command_that_a_page_names_is_there_with_its_options(program, words):
    command, typed, left = found(program, words)
    assert not getattr(command, "commands", None) or not left or left[0].startswith("-"), f"{typed} has no {left[0]}"
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in left if word.startswith("--")} <= {*options, "--help"}, typed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_makes_or_sets_is_there(page):
    for _, words in told(page):
        for position, word in enumerate(words):
            if word == "make" and begins(words, position):
                assert words[position + 1] in MADE, f"make {words[position + 1]}"
            name, is_set, _ = word.partition("=")
            if is_set and name.startswith(ENVIRONMENT_PREFIX) and name != CONFIG_VARIABLE:
                assert name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".") in descriptions(), name


@pytest.mark.parametrize(
    ("page", "said"), [("README.md", ""), ("docs/how-to/tensors.md", "AUC")], ids=("apps", "tensors")
)
def test_the_python_of_a_page_runs(page, said, capsys, monkeypatch):
    """Exactly as it stands there; the app's own modules are those of the example."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    (code,) = blocks(ROOT / page, "python")
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
    assert said in capsys.readouterr().out


def test_the_python_of_the_tutorials_is_of_the_example_that_an_end_to_end_test_runs():
    source = {line.strip() for file in EXAMPLE.rglob("*.py") for line in file.read_text(encoding="utf-8").splitlines()}
    said = [code for page in (ROOT / "docs" / "tutorials").glob("*.md") for code in blocks(page, "python")]
    assert said
    assert {line.strip() for code in said for line in code.splitlines()} <= source
