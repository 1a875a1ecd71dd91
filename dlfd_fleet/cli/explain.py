"""``dlfd-fleet explain``: the page that an error names, for whoever has the package and no checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlfd_fleet.exceptions import ConfigurationError

PAGES = {
    "bench": "docs/how-to/compare.md",
    "certificate": "docs/how-to/evidence.md",
    "certify": "docs/how-to/certify.md",
    "config": "docs/how-to/operate.md#settings",
    "data": "docs/reference/data.md",
    "delivery": "docs/how-to/delivery.md",
    "demo": "docs/tutorials/demo.md",
    "desk": "docs/how-to/desk.md",
    "device": "docs/how-to/device.md",
    "explain": "docs/README.md",
    "forget": "docs/how-to/requests.md",
    "job": "docs/how-to/operate.md",
    "outbox": "docs/how-to/mlflow.md",
    "prune": "docs/how-to/operate.md#disk-space",
    "publish": "docs/how-to/delivery.md",
    "registry": "docs/how-to/mlflow.md",
    "report": "docs/how-to/evidence.md",
    "rollout": "docs/how-to/delivery.md",
    "site": "docs/how-to/site.md",
    "unlearn": "docs/how-to/tensors.md",
}
"""The page that explains each command, and with it what the command refuses; ``device`` is dlfd-fleet-device."""

_PACKAGE = Path(__file__).resolve().parents[1]


def explain(
    command: Annotated[str, typer.Argument(help="A command, such as 'site'; 'device' is dlfd-fleet-device.")],
) -> None:
    """Print the page of the docs about a command."""
    if command not in PAGES:
        raise ConfigurationError(f"There is no page about '{command}'; name one of {', '.join(PAGES)}.")
    page = PAGES[command].partition("#")[0]
    # A wheel has these pages in the package; in a checkout they are beside it.
    file = next(place / page for place in (_PACKAGE, _PACKAGE.parent) if (place / "docs").is_dir())
    typer.echo(file.read_text(encoding="utf-8"))
