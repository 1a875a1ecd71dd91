"""Lay out the pages of the docs site in a folder: those of the repository, and a reference made from the code.

``make docs`` runs ``python docs/pages.py FOLDER``, and then MkDocs by docs/mkdocs.yml. The pages keep their places in
the repository, so that a link is the same on the site and in a checkout.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from dlfd_fleet.audit import SCORE_NAMES, Scores
from dlfd_fleet.cli import app
from dlfd_fleet.configuration import descriptions, flatten
from dlfd_fleet.device.cli import app as device_app
from dlfd_fleet.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
STAYS_AWAY = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.py", "mkdocs.yml")
PYTHON_API = {
    "dlfd_fleet.federation": "Forget in a Flower app of your own",
    "dlfd_fleet.data": "Data sets in which each row has a person",
    "dlfd_fleet.unlearning": "Unlearning methods on plain tensors",
    "dlfd_fleet.audit": "Attacks, scores and the verdict",
    "dlfd_fleet.formats": "Export formats",
    "dlfd_fleet.exceptions": "What is raised",
}
TAGGING = ("federation", "tracking", "plugins", "bench", "single.py", "demo.py")


def main(pages: Path) -> None:
    """Write the folder anew."""
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages / "docs", ignore=STAYS_AWAY)
    shutil.copytree(ROOT / "docs" / "examples", pages / "docs" / "examples", dirs_exist_ok=True)
    shutil.copytree(ROOT / "deploy", pages / "deploy", ignore=shutil.ignore_patterns("__pycache__", "keys", "sites"))
    shutil.copytree(ROOT / ".github", pages / ".github", ignore=shutil.ignore_patterns("workflows", "ISSUE_TEMPLATE"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, pages / name)
    reference = pages / "docs" / "reference"
    for name, page in {"cli": cli(), "settings": settings(), "mlflow": mlflow(), "python": python()}.items():
        (reference / f"{name}.md").write_text(page, encoding="utf-8")
    (reference / "messages.md").write_text(messages(), encoding="utf-8")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *rows)) + "\n"


def cell(text: str) -> str:
    """Return a text as a table's cell shows it."""
    return text.replace("|", "\\|").replace("[", "\\[")


def code(text: str) -> str:
    """Return what is typed as a table's cell shows it."""
    return f"`{text}`".replace("|", "\\|")


def cli() -> str:
    """Return the page of both programs' commands, as Typer has them."""
    said = ["# Commands\n\nMade from the programs. `COMMAND --help` says the same.\n"]
    for program, application in (("dlfd-fleet", app), ("dlfd-fleet-device", device_app)):
        said += [f"## The program `{program}`\n"]
        for typed, command in leaves(typer.main.get_command(application), program):
            said += [f"### `{typed}`\n\n{command.help}\n"]
            given = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
            if given:
                said += [table(("", "default", ""), [parameter_row(parameter) for parameter in given])]
            said += [f"```\n{command.epilog.removeprefix('Example: ')}\n```\n"]
    return "\n".join(said)


def leaves(command: Any, typed: str) -> Iterator[tuple[str, Any]]:
    """Yield each command that does something, and how it is typed."""
    below = getattr(command, "commands", None)
    if below is None:
        yield typed, command
        return
    for name, one in below.items():
        yield from leaves(one, f"{typed} {name}")


def parameter_row(parameter: Any) -> tuple[str, str, str]:
    """Return how a parameter is typed, its default, and what it is."""
    typed = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        typed = [parameter.metavar or parameter.name.upper()]
    shown = "required" if parameter.required else ""
    if isinstance(parameter.default, int | float | str) and parameter.default not in {"", False}:
        shown = code(str(parameter.default))
    return code(" ".join(typed)), shown, cell(parameter.help or "")


def settings() -> str:
    """Return the page of all settings: defaults, and what each is."""
    said = [
        "# Settings\n\nMade from the code. A flag (`--set training.rounds=8`) wins over a variable "
        "(`DLFD_FLEET_TRAINING__ROUNDS=8`), a variable over a file (`--config FILE`, TOML or JSON). "
        "`dlfd-fleet config show` shows every value, and where it came from.\n"
    ]
    defaults = flatten(Settings().model_dump(mode="json"))
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for key, what in descriptions().items():
        value = defaults.get(key)
        shown = "" if value is None else code(value if isinstance(value, str) else json.dumps(value))
        sections.setdefault(key.partition(".")[0] if "." in key else "", []).append((f"`{key}`", shown, cell(what)))
    for section, rows in sections.items():
        said += [f"## `{section}`\n" if section else "", table(("setting", "default", "what it is"), rows)]
    return "\n".join(said)


def mlflow() -> str:
    """Return the page of tags and scores: their names from the code, and the lines that the glossary has of them."""
    lines = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    glossary = dict(line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| "))
    found: set[str] = set()
    for place in TAGGING:
        path = ROOT / "dlfd_fleet" / place
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            found |= set(re.findall(r'"(dlfd\.[a-z_0-9]+\.?)(?=["{])', file.read_text(encoding="utf-8")))
    tags = [(word, what) for word, what in glossary.items() if any(is_named(word, tag) for tag in found)]
    scores = [(f"`{name}`", glossary[f"`{name}`"]) for name in dict.fromkeys((*SCORE_NAMES, *Scores.model_fields))]
    return (
        "# MLflow: tags and scores\n\nNames are from the code; the [glossary](../glossary.md) explains all others.\n\n"
        f"## Tags, and metadata of model files\n\n{table(('tag', ''), tags)}\n## Scores\n\n"
        "Each has a prefix, such as `original.` or `unlearned.`, and may have the bounds `_low` and `_high`.\n\n"
        f"{table(('metric', ''), scores)}"
    )


def is_named(word: str, tag: str) -> bool:
    """Tell whether a line of the glossary is a tag's; one that ends in a site or a version begins as its line does."""
    return word.startswith(f"`{tag}") if tag.endswith(".") else word == f"`{tag}`"


def python() -> str:
    """Return the page of the Python API: what each package's ``__all__`` names, from its docstrings."""
    said = ["# Python API\n\nMade from the docstrings. Public is what `__all__` of these packages names.\n"]
    for package, title in PYTHON_API.items():
        said += [f"## {title}\n", f"::: {package}\n"]
    return "\n".join(said)


def messages() -> str:
    """Return the page of the messages between the coordinator and the sites."""
    return (
        "# Messages between the coordinator and the sites\n\n"
        "Made from the code: every field of every message has bounds. "
        "Who sees what: [threat model](../explanation/security.md).\n\n::: dlfd_fleet.federation.protocol.messages\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
