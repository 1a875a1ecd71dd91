"""What a site deletes that it needs no more, and what it never touches."""

from __future__ import annotations

import os
import time

import pytest

from dlfd_fleet.ledger import init_site
from dlfd_fleet.ledger.prune import prune_site
from dlfd_fleet.ledger.references import ReferenceSet
from dlfd_fleet.model_input import image_input

_LONG_AGO = time.time() - 60 * 24 * 3600.0


@pytest.fixture
def site(tmp_path, synthetic_faces):
    with init_site(tmp_path / "site", name="a", manifest=synthetic_faces, model_input=image_input(32)) as made:
        yield made


def aged(file):
    os.utime(file, (_LONG_AGO, _LONG_AGO))
    return file


def test_rows_of_other_models_and_what_killed_processes_left_go_and_nothing_else(site):
    before = {file.name for file in site.folder.iterdir()}
    (site.folder / "decoded-0000aaaa.rows").write_bytes(b"faces")
    left = site.folder / ".manifest.csv.new"
    left.write_bytes(b"half")
    aged(left)
    (site.folder / ".site.json.new").write_bytes(b"somebody writes it now")
    site.decoded.file.write_bytes(b"")
    wanted = {".manifest.csv.new", "decoded-0000aaaa.rows"}
    assert set(prune_site(site, dry_run=True).files) == wanted
    assert left.exists()
    pruned = prune_site(site)
    assert (set(pruned.files), pruned.bytes) == (wanted, len(b"faces") + len(b"half"))
    assert {file.name for file in site.folder.iterdir()} == before | {".site.json.new", site.decoded.file.name}
    assert prune_site(site).files == ()


def test_reference_answers_that_were_never_finished_go_once_their_job_must_be_over(site):
    wanted = ReferenceSet(job="references-1", models=2, classes=site.card.classes)
    begun = site.references.begin(wanted, dict)
    assert prune_site(site).files == ()
    for file in site.references.unfinished():
        aged(file)
    assert len(prune_site(site).files) == 2
    assert site.references.begin(wanted, dict) == begun
