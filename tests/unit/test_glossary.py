"""The glossary defines every word that MLflow and the report show; `--help` those that a user types."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from dlfd_fleet.audit import SCORE_NAMES, Scores, gate_metrics
from dlfd_fleet.federation.protocol.messages import FitResult, UnlearnResult
from dlfd_fleet.federation.rounds.job_context import SiteUpdate
from dlfd_fleet.report.page import SCORE_TITLES
from dlfd_fleet.report.templates import ERASURE
from dlfd_fleet.report.words import STEPS

ROOT = Path(__file__).resolve().parents[2]
TABLES = [
    [line.strip("| ").split(" | ", 1) for line in table.splitlines()[1:]]
    for table in re.findall(
        r"^\| word \| what it is \|\n((?:\|.*\n)+)",
        (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
]
LINES = [line for table in TABLES for line in table]
WORDS = [word for word, _ in LINES]
# Metadata of an ONNX file and what a device reads of it have the same prefix as MLflow's tags.
TAGGING = [
    file
    for file in (ROOT / "dlfd_fleet").rglob("*.py")
    if file.relative_to(ROOT / "dlfd_fleet").parts[0] not in {"export", "device"}
]


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


@pytest.mark.parametrize("name", sorted({*metrics(), *SCORE_NAMES, *STEPS}))
def test_every_metric_and_step_has_a_line(name):
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


def test_the_lines_of_a_table_are_in_alphabetical_order_and_each_word_has_one():
    for table in TABLES:
        names = [word.replace("`", "").casefold() for word, _ in table]
        assert names == sorted(names)
    assert len(set(WORDS)) == len(WORDS) > 0
