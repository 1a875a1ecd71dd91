from __future__ import annotations

import hashlib

import pytest

from dlfd_fleet.data import (
    Manifest,
    Row,
    copy_images,
    delete_files,
    drop_rows,
    image_digest,
    plan_purge,
    read_manifest,
    returned_images,
)
from dlfd_fleet.exceptions import DataError


@pytest.fixture
def site(synthetic_faces, tmp_path):
    return copy_images(read_manifest(synthetic_faces), tmp_path / "site")


def test_a_site_has_its_own_copies(site, synthetic_faces):
    own, source = read_manifest(site), read_manifest(synthetic_faces)
    assert own.identities == source.identities
    for mine, theirs in zip(own.rows, source.rows, strict=True):
        assert (own.root / mine.image).read_bytes() == (source.root / theirs.image).read_bytes()


def rows_of(site, person):
    return [row for row in read_manifest(site).rows if row.identity == person]


def purge_rows(manifest_file, root, rows):
    """As a site's purge does, without its ledger; how many files were deleted."""
    plan = plan_purge(read_manifest(manifest_file, root), rows)
    drop_rows(manifest_file, root, plan.rows)
    return delete_files(root, plan, "refuse").deleted


def test_purged_rows_are_gone_from_disk_and_manifest(site):
    before, rows = read_manifest(site), rows_of(site, "person-00002")
    assert purge_rows(site, site.parent, rows) == len(rows)
    after = read_manifest(site)
    assert "person-00002" not in after.identities
    assert len(after.rows) == len(before.rows) - len(rows)
    assert not any((before.root / row.image).exists() for row in rows)
    assert all((after.root / row.image).exists() for row in after.rows)


def test_a_purge_that_was_killed_midway_goes_on(site):
    rows = rows_of(site, "person-00002")
    (site.parent / rows[0].image).unlink()
    assert purge_rows(site, site.parent, rows) == len(rows) - 1
    assert purge_rows(site, site.parent, rows) == 0
    assert "person-00002" not in read_manifest(site).identities


def test_an_image_that_comes_back_is_known_by_its_content(site):
    manifest, rows = read_manifest(site), rows_of(site, "person-00002")
    expected = hashlib.sha256((site.parent / rows[0].image).read_bytes()).hexdigest()
    assert image_digest(manifest, rows[0]) == expected
    other = rows_of(site, "person-00003")[0]
    (site.parent / other.image).write_bytes((site.parent / rows[0].image).read_bytes())
    assert returned_images(manifest, {expected}) == {rows[0], other}
    (site.parent / rows[0].image).unlink()
    assert image_digest(manifest, rows[0]) is None
    assert returned_images(manifest, {expected}) == {other}


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"Cannot copy .*none\.png"):
        copy_images(Manifest((Row("none.png", "anna", "yes"),), tmp_path), tmp_path / "site")
