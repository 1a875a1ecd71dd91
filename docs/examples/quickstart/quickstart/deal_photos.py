"""Deal a drawn face set to the disks of sites: ``python -m quickstart.deal_photos FACES PHOTOS SITES``."""

import shutil
import sys
from pathlib import Path

from dlfd_fleet.data import read_manifest

LABELS = {"class-0": "no glasses", "class-1": "glasses"}  # of `dlfd-fleet data synthesize`


def main(faces: str, photos: str, sites: str) -> None:
    """Copy each person's photos to one site, as PHOTOS/SITE/PERSON/LABEL-NUMBER.png."""
    manifest = read_manifest(Path(faces) / "manifest.csv")
    for name in manifest.classes:
        if name not in LABELS:
            sys.exit(f"{faces} has the class '{name}', and this app knows {' and '.join(LABELS)} of `data synthesize`.")
    for number, (person, rows) in enumerate(manifest.by_person().items()):
        folder = Path(photos) / str(number // 2 % int(sites)) / person  # of neighbours one wears glasses
        folder.mkdir(parents=True)
        for photo, row in enumerate(rows):
            shutil.copyfile(manifest.file_of(row), folder / f"{LABELS[row.label]}-{photo}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
