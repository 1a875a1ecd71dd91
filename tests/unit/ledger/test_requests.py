from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.data import Row, copy_images, read_manifest, write_manifest
from dlfd_fleet.exceptions import ConfigurationError, DataError, LedgerError
from dlfd_fleet.ledger import (
    RequestState,
    Site,
    SiteCard,
    canonical,
    create_site,
    deal_to_sites,
    init_site,
    join_requests,
    purge_request,
    purge_site,
    request_forgetting,
    site_folders,
    site_status,
    withdraw,
)
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.settings import DataSettings, Settings


def make_site(folder, rows):
    folder.mkdir(parents=True)
    write_manifest(rows, folder / "manifest.csv")
    create_site(folder, SiteCard(name="clinic", image_size=32, classes=("no", "yes")))
    return folder


@pytest.fixture
def folder(tmp_path):
    rows = [
        Row("a1.png", "anna", "yes", "clinic", "train"),
        Row("a2.png", "anna", "no", "clinic", "train"),
        Row("b1.png", "bert", "no", "clinic", "train"),
        Row("b2.png", "bert", "yes", "clinic", "train"),
        Row("c1.png", "cleo", "no", "clinic", "train"),
        Row("c2.png", "cleo", "no", "clinic", "train"),
        Row("t1.png", "tess", "yes", "", "test"),
    ]
    return make_site(tmp_path / "clinic", rows)


def test_a_request_is_accepted_and_the_person_is_no_longer_trained_on(folder):
    with Site(folder) as site:
        request = request_forgetting(site, "anna", deadline_days=30)
        assert request.state is RequestState.ACCEPTED
        assert site.gone(["anna", "bert"]) == {"anna"}
    with Site(folder) as reopened:
        assert [each.id for each in reopened.ledger.requests(RequestState.ACCEPTED)] == [request.id]


@pytest.mark.parametrize(
    ("person", "sentence"),
    [
        ("ana", "no person 'ana' at clinic; did you mean 'anna'"),
        ("zzz", "no person 'zzz' at clinic; 4 people are"),
        ("tess", "of the test people, whom no model was trained on"),
    ],
)
def test_who_cannot_be_forgotten_is_told_why(folder, person, sentence):
    with Site(folder) as site, pytest.raises(LedgerError, match=sentence):
        request_forgetting(site, person, deadline_days=30)
    with Site(folder) as site:
        assert site.ledger.requests() == []


def test_a_person_cannot_ask_twice_nor_after_being_forgotten(folder):
    with Site(folder) as site:
        request = request_forgetting(site, "anna", deadline_days=30)
        with pytest.raises(LedgerError, match="has asked already"):
            request_forgetting(site, "anna", deadline_days=30)
        release(site, request, epoch=3)
        purge_request(site, site.ledger.get(request.id))
        with pytest.raises(LedgerError, match=r"was forgotten already, by request .* with epoch 3"):
            request_forgetting(site, "anna", deadline_days=30)


def release(site, request, epoch=1):
    for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED):
        site.ledger.move(request.id, state, "as a job does", job="job-1", epoch=epoch)


def draw_images(folder):
    for row in read_manifest(folder / "manifest.csv").rows:
        (folder / row.image).write_bytes(f"the picture {row.image}".encode())


def test_a_purge_leaves_tombstones_and_no_name(folder):
    draw_images(folder)
    with Site(folder) as site:
        request = request_forgetting(site, "anna", deadline_days=30)
        release(site, request)
        assert purge_site(site) == (2, 0)
        done = site.ledger.get(request.id)
        assert (done.state, done.identity, done.epoch) == (RequestState.ROLLING_OUT, None, 1)
        assert len(site.ledger.tombstones()) == 2
        assert "anna" not in site.manifest().identities
        assert not (folder / "a1.png").exists()
        site.ledger.verify()


@pytest.mark.parametrize("killed_at", ["purged", "forget_identity", "move"])
def test_a_purge_that_was_killed_is_ended_by_the_next_and_no_tombstone_is_lost(folder, monkeypatch, killed_at):
    draw_images(folder)
    with Site(folder) as site:
        request = request_forgetting(site, "anna", deadline_days=30)
        release(site, request)
        found, calls = site.ledger.get(request.id), []
        real = getattr(site.ledger, killed_at)

        def die(*arguments, **named):
            calls.append(arguments)
            if killed_at != "move" or len(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        monkeypatch.setattr(site.ledger, killed_at, die)
        with pytest.raises(KeyboardInterrupt):
            purge_request(site, found)
        monkeypatch.undo()
        purge_site(site)
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
        assert len(site.ledger.tombstones()) == 2
        assert not {"a1.png", "a2.png"} & {file.name for file in folder.iterdir()}


def test_a_purge_by_hand_takes_the_held_model_along(folder):
    """The site may have been away from a release, and may never be asked again."""
    with Site(folder) as site:
        (folder / HELD_MODEL_FILE).write_bytes(b"weights")
        assert purge_site(site) == (0, 0)
        assert not (folder / HELD_MODEL_FILE).exists()


def test_purged_images_that_come_back_are_left_out_and_purged_again(folder):
    draw_images(folder)
    content = (folder / "a1.png").read_bytes()
    with Site(folder) as site:
        release(site, request_forgetting(site, "anna", deadline_days=30))
        purge_site(site)
        (folder / "x.png").write_bytes(content)  # the same picture under another name
        (folder / "y.png").write_bytes(b"a new picture")  # and a new one of the same person
        rows = [*site.manifest().rows, Row("x.png", "xena", "yes", "clinic", "train")]
        write_manifest([*rows, Row("y.png", "anna", "yes", "clinic", "train")], site.manifest_file)
        assert "xena" not in site.usable_manifest().identities
        assert site.gone(["anna"]) == {"anna"}
        status = site_status(site, datetime.now(UTC))
        assert (status.left_out, status.purged) == (2, 2)
        assert purge_site(site) == (0, 2)
        assert not (folder / "x.png").exists()
        assert not (folder / "y.png").exists()
        assert site.manifest().identities == ("bert", "cleo", "tess")


def test_a_request_is_withdrawn_unless_a_job_works_on_it(folder):
    with Site(folder) as site:
        request = request_forgetting(site, "anna", deadline_days=30)
        assert withdraw(site, request.id).state is RequestState.WITHDRAWN
        assert site.gone(["anna"]) == frozenset()
        again = request_forgetting(site, "anna", deadline_days=30)
        site.ledger.move(again.id, RequestState.UNLEARNING, "DLFD started", job="job-7")
        with pytest.raises(LedgerError, match="cannot be withdrawn: the job job-7 works on it"):
            withdraw(site, again.id)
        with pytest.raises(LedgerError, match="cannot be withdrawn: it is WITHDRAWN"):
            withdraw(site, request.id)


def test_a_site_status_counts_people_images_and_requests(folder):
    with Site(folder) as site:
        request_forgetting(site, "anna", deadline_days=30)
        withdraw(site, request_forgetting(site, "cleo", deadline_days=30).id)
        status = site_status(site, datetime.now(UTC) + timedelta(days=31))
        assert (status.people, status.images) == ({"train": 3, "test": 1}, {"train": 6, "test": 1})
        assert status.requests == {"ACCEPTED": 1, "WITHDRAWN": 1}
        assert [request.identity for request in status.overdue] == ["anna"]
        assert (status.left_out, status.purged, status.fleet_secret) == (2, 0, False)


def test_a_person_of_two_sites_is_recognised_under_a_secret_and_only_there(tmp_path):
    secret, other = bytes(range(32)), bytes(range(1, 33))
    sites = {}
    for name, person, shared in (("a", "Zoë  Doe", secret), ("b", "zoe\u0308 doe", secret), ("c", "Zoë Doe", other)):
        rows = [Row(f"{n}.png", who, "yes" if n else "no", name, "train") for n, who in enumerate((person, "bert"))]
        write_manifest(rows, tmp_path / name / "manifest.csv")
        card = SiteCard(name=name, image_size=32, classes=("no", "yes"))
        create_site(tmp_path / name, card, shared)
        sites[name] = Site(tmp_path / name)
    names = {name: site.fleet_pseudonym(site.manifest().rows[0].identity, "job-1") for name, site in sites.items()}
    assert names["a"] == names["b"] != names["c"]
    assert sites["a"].fleet_pseudonym("Zoë Doe", "job-2") != names["a"]  # nobody is followed from job to job
    deadline = datetime.now(UTC) + timedelta(days=5)
    (joined,) = join_requests(sites["b"], "job-1", {names["a"]: deadline})
    assert (joined.identity, joined.deadline) == ("zoe\u0308 doe", deadline)
    assert [event.reason for event in sites["b"].ledger.history(joined.id)] == ["asked at another site"]
    assert join_requests(sites["b"], "job-1", {names["a"]: deadline}) == []
    assert join_requests(sites["c"], "job-1", {names["a"]: deadline}) == []
    for site in sites.values():
        site.ledger.close()


def test_a_site_without_the_secret_names_nobody(folder):
    with Site(folder) as site:
        assert site.fleet_pseudonym("anna", "job-1") is None
        assert join_requests(site, "job-1", {"0" * 64: datetime.now(UTC)}) == []


@given(st.text(max_size=20))
def test_a_canonical_identity_stays_what_it_is(identity):
    assert canonical(canonical(identity)) == canonical(identity)
    assert canonical(f"  {identity.upper()} ".lower()) == canonical(identity.upper().lower())


def test_a_site_is_made_from_a_manifest_and_its_images_stay(tmp_path, synthetic_faces):
    secret = tmp_path / "secret"
    secret.write_text("ab" * 32)
    folder = tmp_path / "clinic"
    with init_site(
        folder,
        name="clinic",
        manifest=synthetic_faces,
        image_size=32,
        validation_people=2,
        test_people=3,
        fleet_secret=secret,
    ) as site:
        status = site_status(site, datetime.now(UTC))
        assert status.people == {"train": 7, "validation": 2, "test": 3}
        assert status.fleet_secret
        manifest = site.manifest()
        assert all(row.site == "clinic" for row in manifest.rows)  # its own unseen people answer for themselves
        assert all((manifest.root / row.image).exists() for row in manifest.rows)
        assert not (folder / "images").exists()
    for name in ("site.key", "fleet.secret"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigurationError, match="is a site's folder already"):
        init_site(folder, name="clinic", manifest=synthetic_faces)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"classes": ("class-0",)}, DataError, "has the label 'class-1'; the classes are class-0"),
        ({"validation_people": 12}, DataError, "12 people are too few"),
        ({"ledger": "postgresql+psycopg://me:secret@host/ledger"}, ConfigurationError, "'ledger': it holds a password"),
        ({"ledger": "mysql+none://host/ledger"}, LedgerError, "The ledger's URL"),
        ({"image_size": 3}, ConfigurationError, "'image_size'"),
    ],
)
def test_a_site_that_cannot_be_made_says_why_and_is_none(tmp_path, synthetic_faces, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces, **changes)
    assert not (tmp_path / "clinic" / "site.json").exists()


@pytest.mark.parametrize("content", ["", "ab" * 15, "no hexadecimal"])
def test_a_fleet_secret_that_is_none_is_refused(tmp_path, synthetic_faces, content):
    (tmp_path / "secret").write_text(content)
    with pytest.raises(ConfigurationError, match="The fleet's secret"):
        init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces, fleet_secret=tmp_path / "secret")
    assert not (tmp_path / "clinic").exists()


def test_images_that_come_back_are_not_trained_on(folder):
    with Site(folder) as site:
        request = request_forgetting(site, "anna", deadline_days=30)
        site.ledger.forget_identity(request.id)
        assert site.gone(site.manifest().identities) == {"anna"}


def test_the_last_images_of_a_class_or_a_site_are_kept(folder, tmp_path):
    with Site(folder) as site:
        request_forgetting(site, "anna", deadline_days=30)
        with pytest.raises(LedgerError, match="would leave clinic no image of the class 'yes'"):
            request_forgetting(site, "bert", deadline_days=30)
    alone = make_site(tmp_path / "alone", [Row("a.png", "anna", "yes", "clinic", "train")])
    with Site(alone) as site, pytest.raises(LedgerError, match="would leave clinic 0 images"):
        request_forgetting(site, "anna", deadline_days=30)


def test_a_key_keeps_digests_of_two_sites_apart(folder, tmp_path):
    other = make_site(tmp_path / "other", [Row("a.png", "anna", "yes", "clinic", "train")])
    with Site(folder) as first, Site(other) as second:
        assert first.person_digest("anna") != second.person_digest("anna")
    assert (folder / "site.key").stat().st_mode & 0o077 == 0


def test_a_folder_that_is_no_site_is_refused(tmp_path, folder):
    with pytest.raises(ConfigurationError, match="is no site's folder"):
        Site(tmp_path)
    card = json.loads((folder / "site.json").read_text())
    (folder / "site.json").write_text(json.dumps(card | {"image_size": "large"}))
    with pytest.raises(ConfigurationError, match="'image_size'"):
        Site(folder)
    (folder / "site.json").write_text(json.dumps(card))
    (folder / "site.key").unlink()
    with pytest.raises(ConfigurationError, match=r"site\.key cannot be read"):
        Site(folder)


def test_people_are_dealt_to_site_folders(tmp_path, synthetic_faces, silent):
    data = DataSettings(
        source="manifest", manifest=synthetic_faces, image_size=32, validation_people=2, test_people=2, sites=3
    )
    settings = Settings(state_folder=tmp_path / "state", data=data)
    names = deal_to_sites(settings, silent)
    assert names == ["site-1", "site-2", "site-3"]
    trained = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            manifest = site.manifest()
            assert site.card.classes == ("class-0", "class-1")
            assert all((manifest.root / row.image).exists() for row in manifest.rows)
            trained += {row.identity for row in manifest.rows if row.split == "train"}
            assert len({row.identity for row in manifest.rows if row.split == "test"}) == 2
    assert len(trained) == len(set(trained)) == 8
    with pytest.raises(ConfigurationError, match="exists"):
        deal_to_sites(settings, silent)


def test_sites_are_in_the_order_of_their_numbers(tmp_path, synthetic_faces):
    manifest = read_manifest(synthetic_faces)
    for name in ("site-10", "site-9", "site-1"):
        copy_images(manifest, tmp_path / "sites" / name)
        create_site(tmp_path / "sites" / name, SiteCard(name=name, image_size=32, classes=("a", "b")))
    assert [folder.name for folder in site_folders(tmp_path)] == ["site-1", "site-9", "site-10"]
    with pytest.raises(ConfigurationError, match="dlfd-fleet data deal"):
        site_folders(tmp_path / "nowhere")
