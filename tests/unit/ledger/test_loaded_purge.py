"""A site whose rows come from a loader: what is made of them, and that forgotten ones are nowhere afterwards."""

import shutil
import sqlite3
from datetime import UTC, datetime

import numpy as np
import pytest

from dlfd_fleet.components import Component
from dlfd_fleet.data import image_digests
from dlfd_fleet.data.dataset import stored_dataset
from dlfd_fleet.data.decoded import DecodedRows
from dlfd_fleet.data.loaded import LoadedRows
from dlfd_fleet.data.loaders import write_npz
from dlfd_fleet.exceptions import ConfigurationError, DataError
from dlfd_fleet.ledger import (
    RequestState,
    init_site,
    loaded_purge,
    purge_request,
    purge_site,
    refresh_rows,
    request_forgetting,
    site_status,
)
from dlfd_fleet.model_input import ModelInput, image_input
from tests.loaders import VALUES, Visits, patients, write_database

NUMBERS = ModelInput(shape=(VALUES,), low=-4.0, high=4.0)


@pytest.fixture
def hospital(tmp_path):
    write_database(tmp_path / "hospital.db")
    return tmp_path


def make_site(folder, loader="database", **arguments):
    return init_site(
        folder / "site",
        name="clinic",
        loader=Component(name=f"tests.loaders:{loader}", arguments=arguments),
        model_input=NUMBERS,
        test_people=2,
    )


def release(site, person):
    request = request_forgetting(site, person, deadline_days=30)
    for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED):
        site.ledger.move(request.id, state, "as a job does", job="job-1", epoch=1)
    return site.ledger.get(request.id)


def trained(site):
    return next(row.identity for row in site.manifest().rows if row.split == "train")


def numbers_of(site, person):
    """What a site's file holds of a person, as bytes."""
    manifest = site.manifest()
    rows = [number for number, row in enumerate(manifest.rows) if row.identity == person]
    images = stored_dataset(manifest, image_digests(manifest), site.decoded, site.card.classes).images[:]
    return [images[number].numpy().tobytes() for number in rows]


def digests_of(site):
    manifest = site.manifest()
    return zip(image_digests(manifest), manifest.rows, strict=True)


def everything_in(folder):
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def left(site):
    return {leftover.file: leftover.reason for leftover in site.ledger.leftovers()}


def test_a_site_lists_the_rows_of_its_loader_and_decodes_them_once(hospital):
    with make_site(hospital) as site:
        manifest = site.manifest()
        names, values, labels = patients()
        assert [row.identity for row in manifest.rows] == names
        assert [row.label for row in manifest.rows] == [("well", "ill")[label] for label in labels]
        assert (site.card.classes, site.card.data.name) == (("well", "ill"), "tests.loaders:database")
        (hospital / "hospital.db").unlink()  # the storage is not asked again
        stored = stored_dataset(manifest, image_digests(manifest), site.decoded, site.card.classes)
        assert np.allclose(stored.images[:].numpy(), (values + 4.0) / 8.0, atol=1e-6)
        status = site_status(site, datetime.now(UTC))
        assert (status.people["test"], status.people["train"], status.left_out) == (2, 10, 0)
        assert status.undeletable == ()


def test_decoded_rows_that_were_lost_are_read_again_wherever_they_are_now(hospital):
    with make_site(hospital) as site:
        person = trained(site)
        before = numbers_of(site, person)
        other = next(row.identity for row in site.manifest().rows if row.identity != person)
        purge_request(site, release(site, other))  # rows before and after it have moved
        site.decoded.file.unlink()
        assert numbers_of(site, person) == before


def test_the_bytes_of_a_forgotten_row_are_nowhere_afterwards(hospital):
    with make_site(hospital) as site:
        person = trained(site)
        before = numbers_of(site, person)
        digests = [digest for digest in image_digests(site.manifest()) if digest]
        assert all(numbers in everything_in(site.folder) for numbers in before)
        request = release(site, person)
        assert purge_request(site, request) == 4
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert (site.ledger.count_purged("job-1"), left(site)) == (4, {})
        assert site.ledger.history(request.id)[-1].reason == "4 images purged"
        content = everything_in(site.folder)
        assert not any(numbers in content for numbers in before)
        assert person.encode() not in (site.folder / "manifest.csv").read_bytes()
        assert sum(bytes.fromhex(digest) in site.decoded.file.read_bytes() for digest in digests) == len(digests) - 4
        names, values, _ = patients()
        stored = (hospital / "hospital.db").read_bytes()
        gone = [value.tobytes() in stored for name, value in zip(names, values, strict=True) if name == person]
        assert gone == [False] * 4
        assert len(Visits(hospital / "hospital.db")) == len(names) - 4


def test_who_has_a_ledger_without_its_key_cannot_test_a_guess_of_a_purged_row(hospital):
    tombstones, folders = [], (hospital / "one", hospital / "other")
    for folder in folders:  # two sites with the same rows
        with make_site(folder, file=str(hospital / "hospital.db"), deletes=False) as site:
            person = trained(site)
            digests = [digest for digest, row in digests_of(site) if row.identity == person]
            purge_request(site, release(site, person))
            found = site.ledger.tombstones()
            assert [digest in found for digest in digests] == [True] * 4
            tombstones.append(set(found.requests))
        content = everything_in(site.folder)
        assert not any(digest.encode() in content or bytes.fromhex(digest) in content for digest in digests)
    assert len(tombstones[0]) == len(tombstones[1]) == 4
    assert tombstones[0].isdisjoint(tombstones[1])


STUBBORN = {
    "none": ("database", {"deletes": False}, "it has no delete: delete them there by hand"),
    "refuses": ("failing_delete", {}, r"its delete failed \(PermissionError\)"),
}


@pytest.mark.parametrize(("loader", "arguments", "why"), STUBBORN.values(), ids=STUBBORN)
def test_a_storage_that_keeps_rows_keeps_the_request_open_until_they_are_gone(hospital, loader, arguments, why):
    with make_site(hospital, loader, **arguments) as site:
        person = trained(site)
        before, request = numbers_of(site, person), release(site, person)
        purge_request(site, request)
        sentence = f"its own storage still holds 4 rows, and {why}"
        ((what, reason),) = left(site).items()
        assert what == f"the loader tests.loaders:{loader}"
        assert reason == sentence.replace("\\", "")
        assert site.ledger.get(request.id).state is RequestState.PURGING
        assert site.ledger.history(request.id)[-1].reason == f"4 images purged; {what}: {reason}"
        content = everything_in(site.folder)
        assert not any(numbers in content for numbers in before)
        assert person not in site.manifest().identities
        visits = Visits(hospital / "hospital.db")
        visits.delete([number for number, name in enumerate(visits.people()) if name == person])  # by hand
        purge_site(site)
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert left(site) == {}


def test_a_storage_that_does_not_answer_is_asked_again(hospital):
    with make_site(hospital) as site:
        request = release(site, trained(site))
        shutil.move(hospital / "hospital.db", hospital / "away.db")
        purge_request(site, request)
        assert (
            "its own storage may still hold rows, for it does not answer"
            in left(site)["the loader tests.loaders:database"]
        )
        assert site.ledger.get(request.id).state is RequestState.PURGING
        (hospital / "hospital.db").unlink(missing_ok=True)
        shutil.move(hospital / "away.db", hospital / "hospital.db")
        purge_site(site)
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert len(Visits(hospital / "hospital.db")) == 44


def test_rows_of_a_forgotten_person_that_come_back_into_the_storage_are_deleted(hospital):
    with make_site(hospital) as site:
        person = trained(site)
        purge_request(site, release(site, person))
        shutil.copy(hospital / "hospital.db", hospital / "kept.db")
        write_database(hospital / "again.db")
        shutil.move(hospital / "again.db", hospital / "hospital.db")
        assert purge_site(site) == (0, 0)
        assert person not in Visits(hospital / "hospital.db").people()


def test_a_row_with_the_same_pixels_goes_too_whosever_it_is_said_to_be(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    images[3] = images[0]
    people, labels = np.array(["anna", "anna", "bert", "bert", "cleo", "cleo"]), np.arange(6) % 2
    write_npz(tmp_path / "rows.npz", {"inputs": images, "labels": labels, "people": people})
    loader = Component(name="dlfd_fleet.data.loaders:npz", arguments={"file": str(tmp_path / "rows.npz")})
    with init_site(tmp_path / "site", name="clinic", loader=loader, model_input=image_input(8)) as site:
        assert site.card.classes == ("0", "1")
        purge_request(site, release(site, "anna"))
        assert [row.identity for row in site.manifest().rows] == ["bert", "cleo", "cleo"]
        kept = np.load(tmp_path / "rows.npz")
        assert np.array_equal(kept["inputs"], images[[2, 4, 5]])
        assert images[0].tobytes() not in everything_in(tmp_path)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("step", ["drop_rows", "LoadedRows.delete", "note_leftovers", "DecodedRows.purge"])
def test_a_purge_that_was_killed_anywhere_is_ended_by_the_next(hospital, monkeypatch, step, number):
    with make_site(hospital) as site:
        person = trained(site)
        request, before = release(site, person), numbers_of(site, person)
        owner = {"LoadedRows.delete": LoadedRows, "DecodedRows.purge": DecodedRows, "note_leftovers": type(site.ledger)}
        place, name = owner.get(step, loaded_purge), step.rpartition(".")[2]
        real, calls = getattr(place, name), []

        def die(*arguments, **named):
            calls.append(step)
            if len(calls) == number:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(place, name, die)
            try:
                purge_request(site, request)
            except KeyboardInterrupt:
                assert person not in site.usable_manifest().identities
        purge_site(site)
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert left(site) == {}
        assert not any(numbers in everything_in(site.folder) for numbers in before)
        assert person not in Visits(hospital / "hospital.db").people()


def test_a_loader_that_cannot_be_used_leaves_no_folder(hospital):
    with pytest.raises(DataError, match="names no people"):
        make_site(hospital, "wrong", what="no people")
    with pytest.raises(DataError, match="row 1: the value 9 is outside the declared range"):
        make_site(hospital, "one_row", value=9.0)
    assert not (hospital / "site").exists()
    with make_site(hospital), pytest.raises(ConfigurationError, match="is a site's folder already"):
        make_site(hospital)
    with pytest.raises(ConfigurationError, match="A site needs a manifest, or a loader"):
        init_site(hospital / "other", name="clinic")


def test_rows_that_come_and_go_in_the_storage_are_listed_when_it_is_read_again(hospital):
    with make_site(hospital) as site:
        before = site.manifest().rows
        forgotten, kept = trained(site), next(row.identity for row in before if row.split == "test")
        purge_request(site, release(site, forgotten))
        assert refresh_rows(site) == (0, 0)
        write_database(hospital / "later.db", people=1, seed=7, prefix="new-")
        with sqlite3.connect(hospital / "hospital.db") as database:
            database.execute("attach ? as later", (str(hospital / "later.db"),))
            database.execute("insert into visit select * from later.visit")
            for person in (kept, forgotten):  # both come again
                database.execute("insert into visit select ?, numbers, label from later.visit limit 2", (person,))
            database.execute("delete from visit where rowid = 1")
        database.close()
        gone = 1 if before[0].identity != forgotten else 0
        assert refresh_rows(site) == (6, gone)
        after = site.manifest().rows
        assert {row.identity for row in after} == {row.identity for row in before} - {forgotten} | {"new-00"}
        assert {row.split for row in after if row.identity == "new-00"} == {"train"}
        assert [row.split for row in after if row.identity == kept] == ["test"] * 6
        assert len({row.image for row in after}) == len(after) == 44 + 6 - gone
        assert len(numbers_of(site, "new-00")) == 4
        request_forgetting(site, "new-00", deadline_days=30)


def test_a_storage_that_cannot_be_read_again_leaves_the_site_as_it_was(hospital):
    with make_site(hospital) as site:
        manifest, decoded = site.manifest_file.read_bytes(), site.decoded.file.read_bytes()
        with sqlite3.connect(hospital / "hospital.db") as database:
            database.execute("update visit set label = 9 where rowid = 30")
        database.close()
        with pytest.raises(DataError, match="row 29: the label 9 is outside the 2 classes"):
            refresh_rows(site)
        assert (site.manifest_file.read_bytes(), site.decoded.file.read_bytes()) == (manifest, decoded)
        assert not list(site.folder.glob(".decoded*"))


def test_a_storage_without_any_row_is_one_that_does_not_answer_as_long_as_others_are_listed(hospital):
    """Its disk may not be mounted: whoever is to be deleted may still be on it."""
    with make_site(hospital) as site:
        person = trained(site)
        request = release(site, person)
        shutil.copy(hospital / "hospital.db", hospital / "away.db")
        with sqlite3.connect(hospital / "hospital.db") as storage:
            storage.execute("DELETE FROM visit")
        purge_request(site, request)
        (leftover,) = site.ledger.leftovers(request.id)
        assert "its own storage may still hold rows, for it does not answer" in leftover.reason
        assert site.ledger.get(request.id).state is RequestState.PURGING
        with pytest.raises(DataError, match="has no rows"):
            refresh_rows(site)
        shutil.copy(hospital / "away.db", hospital / "hospital.db")
        purge_request(site, site.ledger.get(request.id))
        assert site.ledger.leftovers(request.id) == []
