"""``make docs`` builds the site without a warning; it loads nothing from elsewhere, and its reference is whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlfd_fleet.configuration import descriptions
from dlfd_fleet.federation.protocol import messages
from tests.unit.test_examples_in_help import COMMANDS
from tests.unit.test_glossary import tags

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Make the target, in a folder of its own and with the programs of this environment."""
    build = tmp_path_factory.mktemp("docs")
    words = ["make", "docs", f"BUILD={build}", f"BIN={Path(sys.executable).parent}", "--old-file=.venv/.installed"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return build / "site"


def test_no_page_loads_anything_from_elsewhere(site):
    loading = r"""(?:src|srcset)=["']?https?:|<link[^>]+href=["']?https?:|url\(["']?https?:"""
    for page in site.rglob("*.html"):
        assert not re.search(loading, page.read_text(encoding="utf-8")), page


def test_every_page_of_the_repository_is_on_the_site(site):
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]:
        place = page.relative_to(ROOT)
        name = "index.html" if page.name == "README.md" else f"{page.stem}.html"
        assert (site / place.parent / name).exists(), place


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("cli", {f"<code>{typed}</code>" for typed in COMMANDS}),
        ("settings", {f"<code>{key}</code>" for key in descriptions()}),
        ("mlflow", {f"<code>{tag}" for tag in tags()}),
        ("messages", {f"messages.{name}" for name in vars(messages) if name.endswith(("Task", "Result"))}),
        (
            "python",
            {"federation.FederatedUnlearning", "federation.Task", "federation.add_unlearning", "unlearning.dlfd"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_reference_has_a_place_for_everything(site, page, names):
    said = (site / "docs" / "reference" / f"{page}.html").read_text(encoding="utf-8")
    assert names
    assert not [name for name in names if name not in said]
