"""Hook of MkDocs: list the pages of each folder that docs/mkdocs.yml names."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> None:
    """Put the pages of a folder in its place, README.md first."""
    config.nav = [listed(entry, Path(config.docs_dir)) for entry in config.nav]


def listed(entry: Any, pages: Path) -> Any:
    """Return an entry of the navigation, or the pages of the folder that it names."""
    if isinstance(entry, dict):
        ((title, below),) = entry.items()
        return {title: listed(below, pages)}
    if isinstance(entry, list):
        found = [listed(one, pages) for one in entry]
        return [page for one in found for page in (one if isinstance(one, list) else [one])]
    if not (pages / entry).is_dir():
        return entry
    files = sorted((pages / entry).glob("*.md"), key=lambda file: (file.name != "README.md", file.name))
    return [file.relative_to(pages).as_posix() for file in files]
