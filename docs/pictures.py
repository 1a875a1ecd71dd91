"""Make the pictures of the docs from a real run: ``python docs/pictures.py STATE_FOLDER``, after ``dlfd-fleet demo``.

Needs Chromium (Debian's package ``chromium``), which draws the erasure report as a reader sees it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 1000, 750
COLOURS = 64
FIGURES = ("losses", "trade_off")


def main(state: Path) -> None:
    """Picture the beginning of the last erasure's report, and keep two of its figures."""
    chromium = shutil.which("chromium")
    reports = sorted(state.glob("coordinator/jobs/erase-*/report.html"))
    if chromium is None:
        sys.exit("There is no Chromium: apt-get install chromium.")
    if not reports:
        sys.exit(f"There is no erasure in {state}: dlfd-fleet demo makes one.")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "report.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        command = [chromium, *options, f"--screenshot={shot}", reports[-1].resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own words and files
        keep(shot, "erasure-report")
    for figure in FIGURES:
        keep(reports[-1].with_name(f"{figure}.png"), figure)


def keep(picture: Path, name: str) -> None:
    """Write a picture to the folder of images, in few colours: a repository keeps it for ever."""
    small = Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS)
    small.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dlfd-fleet-state"))
