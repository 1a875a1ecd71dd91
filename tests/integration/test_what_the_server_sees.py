"""The server learns nobody's name and sees nobody's face: all that reaches it or is written by it is searched."""

from __future__ import annotations

import hashlib
import io

import pytest
from flwr.app import ArrayRecord, ConfigRecord
from rich.console import Console

from dlfd_fleet.data import synthesize
from dlfd_fleet.data.dataset import load_dataset
from dlfd_fleet.federation.rounds.fleet import site_name
from dlfd_fleet.ledger import Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.model_input import image_input
from dlfd_fleet.progress import ConsoleProgress
from tests.integration.fleet_in_process import InProcessGrid, run_job, small_settings


def bytes_of_message(message):
    parts = [repr(message.metadata).encode()]
    if message.has_error():
        parts.append(str(message.error.reason).encode())
    for record in message.content.values() if message.has_content() else ():
        if isinstance(record, ArrayRecord):
            parts += [array.data for array in record.values()]
        elif isinstance(record, ConfigRecord):
            parts += [str(value).encode() for value in record.values()]
        else:
            pytest.fail(f"a {type(record).__name__} travels, and this test does not read it")
    return b"\0".join(parts)


def bytes_of_folder(folder):
    return b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def test_no_name_no_path_and_no_pixel_of_anybody_reaches_the_server(tmp_path, caplog):
    progress, out = ConsoleProgress(Console(file=io.StringIO())), io.StringIO()
    manifest = synthesize(
        tmp_path / "faces", people=14, images_per_person=3, image_size=32, classes=2, seed=0, progress=progress
    )
    settings = small_settings(tmp_path / "state", manifest)
    deal_to_sites(settings, progress)
    names, pictures, pseudonyms = set(), set(), set()
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            names |= {site.card.name, *site.manifest().identities}
            pseudonyms.add(site_name(site.card.id).encode())
            names |= {row.image for row in site.manifest().rows}
            faces = load_dataset(site.manifest(), model_input=image_input(32), classes=site.card.classes)
            pictures |= {image.numpy().tobytes()[:128] for image in faces.images}
            at_the_site = bytes_of_folder(folder)
            assert any(name.encode() in at_the_site for name in names)  # the search finds what is there

    caplog.set_level("DEBUG", logger="dlfd_fleet")
    grid = InProcessGrid(settings)
    run_job(settings, "train", grid, out)
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            person = next(row.identity for row in site.manifest().rows if row.split == "train")
            request_forgetting(site, person, deadline_days=30)
    record = run_job(settings, "erase", grid, out)
    assert (record.released, record.requests) == (True, 2)

    # A site that fails says so without saying whose picture it could not read.
    with Site(site_folders(settings.state_folder)[0]) as site:
        lost = next(row for row in site.manifest().rows if row.split == "train")
        (site.image_root / lost.image).unlink()
        site.manifest_file.touch()
    record_of_failure = run_job(settings, "train", grid, out)
    with Site(site_folders(settings.state_folder)[0]) as site:
        failed = f"site-{site.card.id}"
    assert record_of_failure.absent == {
        failed: "failed at query.pending: ImageError at this site; its site.log says more."
    }

    seen = b"\0".join(bytes_of_message(message) for message in grid.seen)
    seen += bytes_of_folder(settings.state_folder / "coordinator") + out.getvalue().encode() + caplog.text.encode()
    assert record.job.encode() in seen
    for pseudonym in pseudonyms:  # a random one may begin as a name does: site-1, site-17d9baed
        seen = seen.replace(pseudonym, b"")
    guesses = {hashlib.sha256(name.encode()).hexdigest() for name in names}
    assert [text for text in names | guesses if text.encode() in seen] == []
    assert not any(picture in seen for picture in pictures)
