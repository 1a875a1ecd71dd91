"""Deleting means gone: links, other names, copies, people on one photograph, and disks that do not let go."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dlfd_fleet.cli import main
from dlfd_fleet.data import Row, check_manifest, read_manifest, site_images, write_manifest
from dlfd_fleet.data.dataset import load_dataset
from dlfd_fleet.exceptions import DataError, FleetError
from dlfd_fleet.ledger import (
    RequestState,
    Site,
    SiteCard,
    create_site,
    init_site,
    purge_request,
    purge_site,
    request_forgetting,
    site_status,
)
from dlfd_fleet.model_input import image_input
from tests.small_disk import fill, make_room

ROWS = [
    Row(f"{person}/{number}.png", person, ("no", "yes")[number % 2], "clinic", "train")
    for person in ("anna", "bert", "cleo")
    for number in (1, 2, 3)
]


@pytest.fixture
def images(tmp_path):
    """An image folder outside the site's own, with a picture for each row."""
    for row in ROWS:
        file = tmp_path / "images" / row.image
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"picture {row.image}".encode())
    return tmp_path / "images"


def make_site(images, rows=ROWS, links="refuse"):
    folder = images.parent / "clinic"
    write_manifest(rows, folder / "manifest.csv")
    create_site(folder, SiteCard(name="clinic", input=image_input(32), classes=("no", "yes"), root=images, links=links))
    return folder


def release(site, person):
    request = request_forgetting(site, person, deadline_days=30)
    for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED):
        site.ledger.move(request.id, state, "as a job does", job="job-1", epoch=1)
    return site.ledger.get(request.id)


def purge(site, person):
    request = release(site, person)
    purge_request(site, request)
    return site.ledger.get(request.id)


def left(site):
    return {leftover.file: leftover.reason for leftover in site.ledger.leftovers()}


def paths(site):
    return {row.image for row in site.manifest().rows}


def refuse_to_delete(monkeypatch, folder, error=errno.EACCES):
    """A folder whose files nobody may delete, for root too."""
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if folder in path.parents and path.exists():
            raise OSError(error, os.strerror(error), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)


# ---------------------------------------------------------------- links


def test_of_an_image_that_is_a_link_inside_the_folder_the_link_and_the_photograph_go(images):
    (images / "store").mkdir()
    (images / "anna/1.png").rename(images / "store/x.png")
    (images / "store/y.png").symlink_to("x.png")
    (images / "anna/1.png").symlink_to("../store/y.png")
    with Site(make_site(images)) as site:
        assert purge(site, "anna").state is RequestState.ROLLING_OUT
        assert list((images / "store").iterdir()) == list((images / "anna").iterdir()) == []
        assert (site.ledger.count_purged(), left(site)) == (3, {})


@pytest.mark.parametrize("kind", ["file", "folder", "chain"])
def test_a_link_that_leaves_the_image_folder_is_refused_where_images_are_read(images, tmp_path, silent, kind):
    outside = tmp_path / "elsewhere"
    if kind == "folder":
        (images / "anna").rename(outside)
        (images / "anna").symlink_to(outside)
    else:
        outside.mkdir()
        (images / "anna/1.png").rename(outside / "x.png")
        (images / "anna/1.png").symlink_to(outside / "x.png")
        if kind == "chain":  # back into the folder: on the way it is outside
            (outside / "x.png").rename(images / "x.png")
            (outside / "x.png").symlink_to(images / "x.png")
    write_manifest(ROWS, images / "manifest.csv")
    sentence = r"anna/1\.png is a link that leaves the image folder, to .*elsewhere|x\.png; put the file itself"
    with pytest.raises(DataError, match=sentence):
        init_site(tmp_path / "new", name="clinic", manifest=images / "manifest.csv", model_input=image_input(32))
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match=sentence):
        load_dataset(read_manifest(images / "manifest.csv"), model_input=image_input(32))
    found = check_manifest(images / "manifest.csv", None, None, silent)
    assert any(problem.row == 2 and "leaves the image folder" in problem.sentence for problem in found)
    found = check_manifest(images / "manifest.csv", None, None, silent, "follow")
    assert not any("leaves the image folder" in problem.sentence for problem in found)
    with init_site(
        tmp_path / "new", name="clinic", manifest=images / "manifest.csv", model_input=image_input(32), links="follow"
    ):
        pass


def test_where_links_are_followed_the_photograph_outside_goes(images, tmp_path):
    (images / "anna").rename(tmp_path / "elsewhere")
    (images / "anna").symlink_to(tmp_path / "elsewhere")
    with Site(make_site(images, links="follow")) as site:
        assert purge(site, "anna").state is RequestState.ROLLING_OUT
        assert list((tmp_path / "elsewhere").iterdir()) == []
        assert site.ledger.count_purged() == 3


def test_a_link_that_came_later_and_leaves_the_folder_is_named_until_the_photograph_is_gone(images, tmp_path):
    with Site(make_site(images)) as site:
        real = tmp_path / "elsewhere.png"
        (images / "anna/1.png").rename(real)
        (images / "anna/1.png").symlink_to(real)
        request = purge(site, "anna")
        assert request.state is RequestState.PURGING
        assert "outside the image folder" in left(site)[str(real)]
        assert real.exists()
        assert not (images / "anna/2.png").exists()
        real.unlink()
        purge_site(site)
        assert (site.ledger.get(request.id).state, left(site)) == (RequestState.ROLLING_OUT, {})


def test_an_image_folder_that_is_a_link_itself_is_as_any_other(images, tmp_path):
    images.rename(tmp_path / "disk")
    images.symlink_to(tmp_path / "disk")
    with Site(make_site(images)) as site:
        assert purge(site, "anna").state is RequestState.ROLLING_OUT
        assert list((tmp_path / "disk/anna").iterdir()) == []


def test_a_link_to_itself_and_one_to_nothing_end_no_purge(images):
    for name, target in (("1.png", "1.png"), ("2.png", "nowhere.png")):
        (images / "anna" / name).unlink()
        (images / "anna" / name).symlink_to(target)
    with Site(make_site(images)) as site:
        assert purge(site, "anna").state is RequestState.ROLLING_OUT
        assert list((images / "anna").iterdir()) == []
        assert site.ledger.count_purged() == 1


# ---------------------------------------------------------------- other names and copies


def test_other_names_of_a_purged_file_are_named(images, tmp_path):
    os.link(images / "anna/1.png", images / "holiday.png")
    os.link(images / "anna/1.png", tmp_path / "outside.png")
    shutil.copy(images / "anna/2.png", images / "backup.png")
    (images / "same-size.png").write_bytes(b"picture xxxx/2.png")
    with Site(make_site(images)) as site:
        request = purge(site, "anna")
        assert request.state is RequestState.ROLLING_OUT  # what is listed is gone; the rest is the people's to decide
        assert left(site) == {
            "holiday.png": "another name (hard link) of a purged image",
            "backup.png": "a copy of a purged image",
        }
        reason = site.ledger.history(request.id)[-1].reason
        assert reason.startswith("3 images purged; 2 copies found")
        assert "1 other names (hard links) of these files are outside the image folder" in reason
        assert "backup.png is still there" in (site.folder / "site.log").read_text()
        (images / "backup.png").unlink()
        (images / "holiday.png").write_bytes(b"another picture")
        purge_site(site)
        assert left(site) == {}


def test_the_same_bytes_under_another_person_go_too(images):
    shutil.copy(images / "anna/1.png", images / "bert/1.png")
    with Site(make_site(images)) as site:
        assert purge(site, "anna").state is RequestState.ROLLING_OUT
        assert paths(site) == {"bert/2.png", "bert/3.png", "cleo/1.png", "cleo/2.png", "cleo/3.png"}
        assert not (images / "bert/1.png").exists()


@pytest.mark.parametrize("spelling", ["anna/1.png", "./anna//1.png", "bert/link.png"])
def test_of_a_photograph_of_two_people_every_row_goes(images, spelling):
    (images / "bert/link.png").symlink_to("../anna/1.png")
    with Site(make_site(images, [*ROWS, Row(spelling, "bert", "yes", "clinic", "train")])) as site:
        purge(site, "anna")
        assert paths(site) == {row.image for row in ROWS if row.identity != "anna"}
        assert [name.name for name in (images / "bert").iterdir() if name.is_symlink() and spelling == str(name)] == []
        assert all(site.manifest().file_of(row).exists() for row in site.manifest().rows)


# ---------------------------------------------------------------- what cannot be deleted


def test_what_cannot_be_deleted_is_listed_and_holds_up_nobody_else(images, monkeypatch):
    refuse_to_delete(monkeypatch, images / "anna")
    with Site(make_site(images)) as site:
        anna, bert = release(site, "anna"), release(site, "bert")
        assert purge_site(site) == (3, 0)
        assert site.ledger.get(bert.id).state is RequestState.ROLLING_OUT
        waiting = site.ledger.get(anna.id)
        assert (waiting.state, waiting.identity) == (RequestState.PURGING, "anna")
        assert left(site) == {f"anna/{number}.png": "Permission denied" for number in (1, 2, 3)}
        assert {row.identity for row in site.usable_manifest().rows} == {"cleo"}
        assert len(site.ledger.tombstones()) == 6  # nobody trains on them
        status = site_status(site, datetime.now(UTC))
        assert status.purged == site.ledger.count_purged("job-1") == 3  # but only what is gone is counted
        assert len(status.leftovers) == 3
        events = len(site.ledger.history(anna.id))
        for _ in range(3):
            purge_site(site)
        assert len(site.ledger.history(anna.id)) <= events + 1
        monkeypatch.undo()
        assert purge_site(site) == (3, 0)
        done = site.ledger.get(anna.id)
        assert (done.state, done.identity, left(site)) == (RequestState.ROLLING_OUT, None, {})
        assert site.ledger.count_purged("job-1") == 6
        site.ledger.verify()
    assert b"anna" not in b"".join(file.read_bytes() for file in (images.parent / "clinic").glob("ledger.db*"))


def test_a_file_that_took_the_place_of_one_that_could_not_be_deleted_stays(images, monkeypatch):
    with Site(make_site(images)) as site:
        with monkeypatch.context() as patched:
            refuse_to_delete(patched, images / "anna")
            request = purge(site, "anna")
        for number in (1, 2, 3):
            (images / f"anna/{number}.png").write_bytes(b"a photograph of somebody else")
        purge_site(site)
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert len(list((images / "anna").iterdir())) == 3


@pytest.mark.parametrize("error", [errno.EPERM, errno.EBUSY, errno.EROFS, errno.EIO, errno.ESTALE])
def test_whatever_the_disk_says_is_the_reason(images, monkeypatch, error):
    refuse_to_delete(monkeypatch, images / "anna", error)
    with Site(make_site(images)) as site:
        assert purge(site, "anna").state is RequestState.PURGING
        assert set(left(site).values()) == {os.strerror(error)}


def test_a_folder_in_the_place_of_an_image_is_listed_and_not_emptied(images):
    (images / "anna/1.png").unlink()
    (images / "anna/1.png").mkdir()
    (images / "anna/1.png/keep.png").touch()
    with Site(make_site(images)) as site:
        assert purge(site, "anna").state is RequestState.PURGING
        assert list(left(site)) == ["anna/1.png"]
        assert (images / "anna/1.png/keep.png").exists()


def test_an_image_that_came_back_and_cannot_be_deleted_is_listed(images, monkeypatch):
    with Site(make_site(images)) as site:
        content = (images / "anna/1.png").read_bytes()
        request = purge(site, "anna")
        (images / "bert/1.png").write_bytes(content)
        with monkeypatch.context() as patched:
            refuse_to_delete(patched, images / "bert")
            assert purge_site(site) == (0, 0)
            assert [(each.request, each.file) for each in site.ledger.leftovers()] == [(request.id, "bert/1.png")]
            assert site.ledger.count_purged() == 2
            assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert purge_site(site) == (0, 1)
        assert left(site) == {}


@pytest.mark.parametrize("way", ["missing", "empty"])
def test_images_on_a_disk_that_is_not_mounted_are_not_gone(images, tmp_path, way):
    with Site(make_site(images)) as site:
        images.rename(tmp_path / "unmounted")
        if way == "empty":
            images.mkdir()
        request = purge(site, "anna")
        assert request.state is RequestState.PURGING
        assert "is missing or empty: mount its disk" in left(site)["anna/1.png"]
        if way == "empty":
            images.rmdir()
        (tmp_path / "unmounted").rename(images)
        assert purge_site(site) == (3, 0)
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert site.ledger.count_purged("job-1") == 3


@pytest.mark.parametrize("way", ["missing", "empty"])
def test_images_in_a_folder_whose_disk_is_not_mounted_are_not_gone(images, tmp_path, way):
    with Site(make_site(images)) as site:
        (images / "anna").rename(tmp_path / "unmounted")
        if way == "empty":
            (images / "anna").mkdir()
        assert purge(site, "anna").state is RequestState.PURGING
        assert f"the folder {images / 'anna'} is missing or empty: mount its disk" in left(site)["anna/1.png"]
        assert purge(site, "bert").state is RequestState.ROLLING_OUT
        if way == "empty":
            (images / "anna").rmdir()
        (tmp_path / "unmounted").rename(images / "anna")
        assert purge_site(site) == (3, 0)
        assert {request.state for request in site.ledger.requests()} == {RequestState.ROLLING_OUT}
        assert len(site.ledger.tombstones()) == 6


def test_images_that_were_deleted_by_hand_hold_up_no_purge(images):
    with Site(make_site(images)) as site:
        for number in (1, 2, 3):
            (images / "anna" / f"{number}.png").unlink()
        assert purge(site, "anna").state is RequestState.PURGING
        (images / "anna" / "nothing").touch()  # as the reason says
        assert purge_site(site) == (0, 0)
        (images / "bert" / "1.png").unlink()
        assert purge(site, "bert").state is RequestState.ROLLING_OUT
        assert left(site) == {}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("step", ["drop_rows", "delete_files", "note_leftovers"])
def test_a_purge_that_was_killed_anywhere_is_ended_by_the_next(images, monkeypatch, step, number):
    (images / "bert/1.png").unlink()
    rows = [*ROWS[:3], Row("anna/1.png", "bert", "yes", "clinic", "train"), *ROWS[4:]]
    with Site(make_site(images, rows)) as site:
        request = release(site, "anna")
        owner = site.ledger if step == "note_leftovers" else __import__("dlfd_fleet.ledger.purge", fromlist=["purge"])
        real, calls = getattr(owner, step), []

        def die(*arguments):
            calls.append(step)
            if len(calls) == number:
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(owner, step, die)
            try:
                purge_request(site, request)
            except KeyboardInterrupt:
                assert all(site.manifest().file_of(row).exists() for row in site.usable_manifest().rows)
        purge_site(site)
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert (site.ledger.count_purged("job-1"), left(site)) == (3, {})
        assert list((images / "anna").iterdir()) == []
        assert paths(site) == {"bert/2.png", "bert/3.png", "cleo/1.png", "cleo/2.png", "cleo/3.png"}


def test_a_read_only_disk_is_told_before_and_after(tmp_path, mount_disk, images, capsys):
    disk = mount_disk(1)
    shutil.copytree(images, disk / "images")
    (disk / "images/manifest.csv").write_text(
        "image,identity,label\n" + "\n".join(f"{row.image},{row.identity},{row.label}" for row in ROWS)
    )
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    folder = tmp_path / "clinic"
    command = ["site", "init", str(folder), "--name", "clinic", "--manifest", str(disk / "images/manifest.csv")]
    assert run_command(*command) == 0
    assert f"Images in {disk}/images/anna and 2 more folders cannot be deleted" in capsys.readouterr().out
    with Site(folder) as site:
        request = purge(site, "anna")
        assert request.state is RequestState.PURGING
    assert run_command("site", "status", str(folder)) == 0
    out = capsys.readouterr().out
    assert f"Still there, of request {request.id}: anna/1.png: Read-only file system." in out
    assert "Images purged so far: 0." in out
    assert f"then run: dlfd-fleet site purge {folder}" in out
    assert run_command("site", "purge", str(folder)) == 1
    assert "3 files are still there" in capsys.readouterr().out
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert run_command("site", "purge", str(folder)) == 0
    assert "Deleted 3 images" in capsys.readouterr().out
    assert list((disk / "images/anna").iterdir()) == []


def run_command(*arguments):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["dlfd-fleet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code or 0


def test_files_whose_names_are_no_text_are_found_again(images, monkeypatch):
    """A name in Latin-1 on a disk of UTF-8: a copy, and what a link leads to."""
    strange = os.fsdecode(b"ann\xe9.png")
    (images / "anna/1.png").rename(images / strange)
    (images / "anna/1.png").symlink_to(images / strange)
    shutil.copy(images / "anna/2.png", images / f"copy of {strange}")
    with Site(make_site(images)) as site:
        with monkeypatch.context() as patched:
            refuse_to_delete(patched, images)
            request = purge(site, "anna")
            assert "hex:" + os.fsencode(strange).hex() in left(site)
        (images / f"copy of {strange}").rename(images / "kept")
        purge_site(site)
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert left(site) == {"kept": "a copy of a purged image"}
        assert not (images / strange).exists()


def test_the_last_person_of_a_site_is_purged_and_the_site_goes_on(images):
    with Site(make_site(images, ROWS[:3])) as site:
        request = site.ledger.request("anna", site.person_digest("anna"), datetime.now(UTC))
        for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED):
            site.ledger.move(request.id, state, "as a job does", job="job-1", epoch=1)
        assert purge_site(site) == (3, 0)
        assert site.manifest().rows == ()
        assert purge_site(site) == (0, 0)
        assert site_status(site, datetime.now(UTC)).requests == {"ROLLING_OUT": 1}
        assert len(load_dataset(site.usable_manifest(), model_input=image_input(32), classes=("no", "yes"))) == 0


STEPS = {
    "the tombstones": ("site", "purged", 1),
    "the list of files": ("site", "note_leftovers", 1),
    "the manifest": ("images", "write_manifest", 1),
    "what is left": ("site", "note_leftovers", 2),
    "the name": ("site", "forget_identity", 1),
    "the last state": ("site", "move", 2),
}


def purge_and_fill_up(site, request):
    """The log of SQLite may have some room left in it."""
    purge_request(site, site.ledger.get(request.id))
    for number in range(1000):
        site.ledger.request(f"person {number}", os.urandom(500).hex(), datetime.now(UTC))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_purge_that_a_full_disk_stops_is_ended_when_there_is_room(images, tmp_path, mount_disk, monkeypatch, step):
    """The site's folder is on the full disk, its images are elsewhere: deleting them makes no room."""
    disk = mount_disk(1)
    make_site(images)
    shutil.move(tmp_path / "clinic", disk / "clinic")
    with Site(disk / "clinic") as site:
        request = release(site, "anna")
        before = (disk / "clinic/manifest.csv").read_bytes()
        where, name, number = step
        owner = {"site": site.ledger, "images": site_images}[where]
        write, calls = getattr(owner, name), iter(range(1, 100))

        def on_a_full_disk(*arguments, **named):
            if next(calls) == number:
                fill(disk)
            return write(*arguments, **named)

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, on_a_full_disk)
            with pytest.raises(FleetError, match=r"No space left on device|database or disk is full|cannot be used"):
                purge_and_fill_up(site, request)
        after = (disk / "clinic/manifest.csv").read_bytes()
        assert after == before or b"anna" not in after
        assert not list((disk / "clinic").glob(".*.new"))
        make_room(disk)
        site.ledger.verify()
        purge_site(site)
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert (site.ledger.count_purged("job-1"), left(site)) == (3, {})
        assert not list((images / "anna").iterdir())
        assert paths(site) == {row.image for row in ROWS if row.identity != "anna"}
        site.ledger.verify()
