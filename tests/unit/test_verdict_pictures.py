"""The pictures of docs/explanation/verdicts.md show the verdicts that their names say, by the product's own code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def pictures(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import verdict_pictures

    return verdict_pictures


def test_each_case_is_judged_as_it_is_called(pictures):
    verdicts = {name: pictures.judged(name)[1] for name in pictures.CASES}
    assert {name: verdict.outcome.lower() for name, verdict in verdicts.items()} == {
        name: name.partition("-")[0] for name in pictures.CASES
    }
    for name, words in {
        "remembered": "still remembered",
        "overdone": "conspicuous",
        "utility": "accuracy fell",
    }.items():
        assert words in verdicts[f"fail-{name}"].reasons[0]


def test_the_page_shows_every_picture(pictures):
    page = (DOCS / "explanation" / "verdicts.md").read_text(encoding="utf-8")
    assert re.findall(r"images/verdict-(.*)\.png", page) == list(pictures.CASES)
