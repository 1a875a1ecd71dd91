from __future__ import annotations

import hashlib

import pytest

from dlfd_fleet.data import Manifest, Row, copy_images, purge_people, read_manifest
from dlfd_fleet.exceptions import DataError


@pytest.fixture
def site(synthetic_faces, tmp_path):
    return copy_images(read_manifest(synthetic_faces), tmp_path / "site")


def test_a_site_has_its_own_copies(site, synthetic_faces):
    own, source = read_manifest(site), read_manifest(synthetic_faces)
    assert own.identities == source.identities
    for mine, theirs in zip(own.rows, source.rows, strict=True):
        assert (own.root / mine.image).read_bytes() == (source.root / theirs.image).read_bytes()


def test_a_purged_person_is_gone_from_disk_and_manifest(site):
    before = read_manifest(site)
    files = [before.root / row.image for row in before.rows if row.identity == "person-00002"]
    expected = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert purge_people(site, site.parent, ["person-00002"]) == expected
    after = read_manifest(site)
    assert "person-00002" not in after.identities
    assert len(after.rows) == len(before.rows) - len(files)
    assert not any(file.exists() for file in files)
    assert all((after.root / row.image).exists() for row in after.rows)


def test_a_purge_that_was_killed_midway_goes_on(site):
    manifest = read_manifest(site)
    rows = [row for row in manifest.rows if row.identity == "person-00002"]
    (manifest.root / rows[0].image).unlink()
    assert len(purge_people(site, site.parent, ["person-00002"])) == len(rows) - 1
    assert purge_people(site, site.parent, ["person-00002"]) == []
    assert "person-00002" not in read_manifest(site).identities


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"Cannot copy .*none\.png"):
        copy_images(Manifest((Row("none.png", "anna", "yes"),), tmp_path), tmp_path / "site")
