from __future__ import annotations

import json

import pytest

from dlfd_fleet.data import Row, copy_images, purge_people, read_manifest, write_manifest
from dlfd_fleet.exceptions import ConfigurationError, LedgerError
from dlfd_fleet.ledger import RequestState, Site, SiteCard, create_site, deal_to_sites, request_forgetting, site_folders
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
        for state in list(RequestState)[1:]:
            site.ledger.move(request.id, state, "done", epoch=3)
        purge_people(site.manifest_file, site.image_root, ["anna"])
        site.ledger.forget_identity(request.id)
        with pytest.raises(LedgerError, match=r"was forgotten already, by request .* with epoch 3"):
            request_forgetting(site, "anna", deadline_days=30)


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
    with Site(folder) as site, pytest.raises(ConfigurationError, match=r"site\.key cannot be read"):
        request_forgetting(site, "anna", deadline_days=30)


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
