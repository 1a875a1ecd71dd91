"""The glossary defines every word that a user types, and every one that MLflow and the report show."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import typer

from dlfd_fleet.audit import SCORE_NAMES, Scores, gate_metrics
from dlfd_fleet.cli import app
from dlfd_fleet.device.cli import app as device_app
from dlfd_fleet.federation.protocol.messages import FitResult, UnlearnResult
from dlfd_fleet.federation.rounds.job_context import SiteUpdate
from dlfd_fleet.report.page import SCORE_TITLES
from dlfd_fleet.report.templates import ERASURE
from dlfd_fleet.report.words import STEPS

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    line.strip("| ").split(" | ", 1)
    for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and line != "| word | what it is |"
]
WORDS = [word for word, _ in LINES]
# Metadata of an ONNX file and what a device reads of it have the same prefix as MLflow's tags.
TAGGING = [
    file
    for file in (ROOT / "dlfd_fleet").rglob("*.py")
    if file.relative_to(ROOT / "dlfd_fleet").parts[0] not in {"export", "device"}
]


def commands(command, words=()):
    """Yield every command and group below a command, as it is typed, and its parameters."""
    for name, below in getattr(command, "commands", {}).items():
        yield " ".join((*words, name)), below.params
        yield from commands(below, (*words, name))


def typed():
    """Yield every command and option of both programs."""
    for program, application in ((), app), (("dlfd-fleet-device",), device_app):
        for name, parameters in commands(typer.main.get_command(application), program):
            yield name
            for parameter in parameters:
                yield from (option for option in (*parameter.opts, *parameter.secondary_opts) if option[:2] == "--")


def tags():
    """Yield the names of MLflow tags in the code; of one that ends in a site or a version, what it begins with."""
    for file in TAGGING:
        yield from re.findall(r'"(dlfd\.[a-z_0-9]+\.?)(?=["{])', file.read_text(encoding="utf-8"))


def metrics():
    """Yield the names of metrics, without their bounds."""
    yield from Scores.model_fields
    for name in re.findall(r'"(gate_\w+)"', inspect.getsource(gate_metrics)):
        yield re.sub("_(low|high)$", "", name)
    of_sites = {*FitResult.model_fields, *UnlearnResult.model_fields} - {"epoch", "requests"}
    of_sites |= set(re.findall(r'"(\w+)":', inspect.getsource(SiteUpdate.metrics)))
    yield from (f"PURPOSE_{name}" for name in of_sites)


def headings():
    """Yield the headings of the erasure report, and of the figures under its title."""
    yield from re.findall(r"<(?:h2|h3|dt)>([^<{]+)</", ERASURE)


@pytest.mark.parametrize("name", sorted({*typed(), *metrics(), *SCORE_NAMES, *STEPS}))
def test_every_command_option_metric_and_step_has_a_line(name):
    assert f"`{name}`" in WORDS, f"docs/glossary.md has no line `{name}`"


@pytest.mark.parametrize("tag", sorted(set(tags())))
def test_every_tag_has_a_line(tag):
    begins = [word for word in WORDS if word.startswith(f"`{tag}" if tag[-1] == "." else f"`{tag}`")]
    assert begins, f"docs/glossary.md has no line `{tag}`"


@pytest.mark.parametrize("heading", sorted(set(headings())))
def test_every_heading_of_the_report_has_a_line(heading):
    assert heading.casefold() in {word.casefold() for word in WORDS}, f"docs/glossary.md has no line {heading}"


@pytest.mark.parametrize(("name", "title"), SCORE_TITLES.items())
def test_the_line_of_a_score_says_what_the_report_calls_it(name, title):
    (said,) = [said for word, said in LINES if word == f"`{name}`"]
    assert f'"{title}"' in said


def test_the_lines_are_in_alphabetical_order_and_each_word_has_one():
    names = [word.replace("`", "").lstrip("-").casefold() for word in WORDS]
    assert names == sorted(names)
    assert len(set(WORDS)) == len(WORDS)
