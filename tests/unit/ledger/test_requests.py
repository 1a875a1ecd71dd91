from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from dlfd_fleet.cli import app
from dlfd_fleet.cli.options import console
from dlfd_fleet.data import Row, TrainedOn, copy_images, read_manifest, write_manifest
from dlfd_fleet.exceptions import ConfigurationError, DataError, LedgerError
from dlfd_fleet.ledger import (
    RequestState,
    Site,
    SiteCard,
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
from dlfd_fleet.ledger.site_uses import site_uses, what_a_request_means
from dlfd_fleet.model_input import image_input
from dlfd_fleet.settings import DataSettings, Settings


def make_site(folder, rows):
    folder.mkdir(parents=True)
    write_manifest(rows, folder / "manifest.csv")
    create_site(folder, SiteCard(name="clinic", input=image_input(32), classes=("no", "yes")))
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


def test_an_id_in_the_report_of_a_job_leads_to_its_request_at_the_site_alone(folder, monkeypatch):
    with Site(folder) as site:
        request = request_forgetting(site, "anna", deadline_days=30).id
        request_forgetting(site, "cleo", deadline_days=30)
        for job in ("job-7", "job-8"):
            site.ledger.move(request, RequestState.UNLEARNING, "a job took it up", job=job)
            site.ledger.move(request, RequestState.ACCEPTED, "it failed", job=job)
        ids = {job: site.job_request_id(request, job) for job in ("job-7", "job-8")}
        assert len({request, *ids.values()}) == 3
        assert all(site.find_request(name).id == request for name in (request, *ids.values()))
        with pytest.raises(LedgerError, match="There is no request"):
            site.find_request(site.job_request_id(request, "job-9"))
    monkeypatch.setattr(console, "_width", 200)  # undone, it follows COLUMNS again
    shown = CliRunner().invoke(app, ["forget", "show", ids["job-7"], "--site", str(folder)])
    assert shown.exit_code == 0
    assert all(word in shown.output for word in ("anna", request, *ids.values()))


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
        card = SiteCard(name=name, input=image_input(32), classes=("no", "yes"))
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


def test_a_site_is_made_from_a_manifest_and_its_images_stay(tmp_path, synthetic_faces):
    secret = tmp_path / "secret"
    secret.write_text("ab" * 32)
    folder = tmp_path / "clinic"
    with init_site(
        folder,
        name="clinic",
        manifest=synthetic_faces,
        model_input=image_input(32),
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


def test_a_site_knows_whom_its_model_was_trained_on_and_never_calls_them_unseen(tmp_path, synthetic_faces):
    (tmp_path / "trained.txt").write_text("PERSON-00003\nperson-00004\nperson-00099\n")
    trained = TrainedOn.read(str(tmp_path / "trained.txt"))
    clinic = {"name": "clinic", "manifest": synthetic_faces, "validation_people": 4, "test_people": 6}
    with init_site(tmp_path / "clinic", **clinic, trained_on=trained) as site:  # nobody else is left, and need not be
        assert site_status(site, datetime.now(UTC)).people == {"train": 2, "validation": 4, "test": 6}
        rows = list(site.manifest().rows)
        assert {row.split for row in rows if row.identity in ("person-00003", "person-00004")} == {"train"}
        newcomer = replace(rows[0], image="new.png", identity="Person-00099", split="test")
        rows = [replace(row, split="test") if row.identity == "person-00003" else row for row in rows]
        write_manifest([*rows, newcomer], site.manifest_file)
        uses = site_uses(site, site.manifest().rows, [row.image for row in site.manifest().rows])
        left_out = {row.identity for row, use in zip(site.manifest().rows, uses, strict=True) if use.why}
        assert left_out == {"person-00003", "Person-00099"}
        (remark,) = (said for said in site_status(site, datetime.now(UTC)).remarks if "trained on before" in said)
        assert remark.startswith("2 people of the splits validation and test were trained on before")
        site.ledger.verify()


def test_a_site_whose_people_were_all_trained_on_has_nobody_unseen(tmp_path, synthetic_faces):
    clinic = {"name": "clinic", "manifest": synthetic_faces, "trained_on": TrainedOn.read("all")}
    with pytest.raises(DataError, match="12 people, of whom 12 have a split, are too few for 1 test"):
        init_site(tmp_path / "clinic", **clinic, test_people=1)
    init_site(tmp_path / "clinic", **clinic).ledger.close()
    with Site(tmp_path / "clinic") as site:
        assert site_status(site, datetime.now(UTC)).people == {"train": 12}
        assert len(site.trained(site.manifest().identities)) == 12


def test_the_people_of_a_file_are_told_to_a_new_site_by_its_command(tmp_path, synthetic_faces):
    (tmp_path / "trained.csv").write_text("identity\nperson-00003\n")
    made = ["site", "init", str(tmp_path / "clinic"), "--name", "clinic", "--manifest", str(synthetic_faces)]
    result = CliRunner().invoke(app, [*made, "--trained-on", str(tmp_path / "trained.csv"), "--test-people", "2"])
    assert result.exit_code == 0, result.output
    with Site(tmp_path / "clinic") as site:
        assert site.trained(["PERSON-00003", "person-00001"]) == {"PERSON-00003"}
    manifest = read_manifest(synthetic_faces)
    write_manifest([replace(row, split="test") for row in manifest.rows], synthetic_faces)
    made[2] = str(tmp_path / "other")
    result = CliRunner().invoke(app, [*made, "--trained-on", str(tmp_path / "trained.csv")])
    assert isinstance(result.exception, DataError)
    assert "trained.csv, row 2: 'person-00003' was trained on" in str(result.exception)
    assert not (tmp_path / "other").exists()


def test_a_site_is_not_made_with_an_image_that_is_trained_on_among_the_unseen_ones(tmp_path, synthetic_faces):
    manifest = read_manifest(synthetic_faces)
    rows = [replace(row, split="test" if row.identity == "person-00001" else "train") for row in manifest.rows]
    first, copied = manifest.root / rows[0].image, manifest.root / rows[4].image
    copied.write_bytes(first.read_bytes())
    write_manifest(rows, synthetic_faces)
    with pytest.raises(DataError, match="has the same bytes as"):
        init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces)
    write_manifest([replace(row, split="") for row in rows], synthetic_faces)
    with pytest.raises(DataError, match="has the same bytes as"):
        init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces, test_people=11)
    assert not (tmp_path / "clinic").exists()


def test_a_site_is_made_of_people_and_not_of_spellings(tmp_path, synthetic_faces):
    manifest = read_manifest(synthetic_faces)
    rows = [replace(row, split="") for row in manifest.rows if row.identity < "person-00009"]
    rows[0] = replace(rows[0], identity="Person-00000 ")
    write_manifest(rows, synthetic_faces)
    with init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces, test_people=2) as site:
        assert len(site.manifest().identities) == 9
        assert site_status(site, datetime.now(UTC)).people == {"train": 7, "test": 2}
        assert "'Person-00000 ', 'person-00000'" in site_status(site, datetime.now(UTC)).remarks[0]


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"classes": ("CLASS-0 ",)}, DataError, "has the label 'class-1'; the classes are CLASS-0 "),
        ({"validation_people": 12}, DataError, "12 people are too few"),
        ({"ledger": "postgresql+psycopg://me:secret@host/ledger"}, ConfigurationError, "'ledger': it holds a password"),
        ({"ledger": "mysql+none://host/ledger"}, LedgerError, "The ledger's URL"),
        ({"name": "a/b"}, ConfigurationError, "'name'"),
        ({"name": "nan"}, ConfigurationError, "'nan' means an empty cell; give the site another name"),
    ],
)
def test_a_site_that_cannot_be_made_says_why_and_is_none(tmp_path, synthetic_faces, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        init_site(tmp_path / "clinic", **{"name": "clinic", "manifest": synthetic_faces, **changes})
    assert not (tmp_path / "clinic").exists()


@pytest.mark.parametrize("ledger", ["missing/ledger.db", "postgresql+psycopg://127.0.0.1:9/none"])
def test_a_site_whose_ledger_cannot_be_made_leaves_nothing_behind(tmp_path, synthetic_faces, ledger):
    clinic = {"name": "clinic", "manifest": synthetic_faces}
    with pytest.raises(LedgerError):
        init_site(tmp_path / "clinic", ledger=ledger, **clinic)
    assert not (tmp_path / "clinic").exists()
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic" / "notes").touch()
    with pytest.raises(LedgerError):
        init_site(tmp_path / "clinic", ledger=ledger, **clinic)
    assert [file.name for file in (tmp_path / "clinic").iterdir()] == ["notes"]
    init_site(tmp_path / "clinic", **clinic).ledger.close()


def test_a_site_without_anybody_to_train_on_is_made_and_says_what_it_can_do(tmp_path, synthetic_faces):
    rows = [replace(row, split="test") for row in read_manifest(synthetic_faces).rows]
    write_manifest(rows, synthetic_faces)
    with init_site(tmp_path / "clinic", name="clinic", manifest=synthetic_faces) as site:
        assert "0 images are left to train on: this site takes part in audits" in " ".join(
            site_status(site, datetime.now(UTC)).remarks
        )


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


def test_a_person_may_ask_whose_images_are_the_last_ones_and_is_told_what_is_left(folder):
    with Site(folder) as site:
        anna = request_forgetting(site, "anna", deadline_days=30)
        assert what_a_request_means(site, anna) == ("The request is about 2 images, 2 of them trained on here.",)
        bert = request_forgetting(site, "bert", deadline_days=30)
        assert what_a_request_means(site, bert)[1:] == ("No image of the class 'yes' is left to train on here.",)
        cleo = request_forgetting(site, "cleo", deadline_days=30)
        assert what_a_request_means(site, cleo)[1].startswith(
            "0 images are left to train on: this site takes part in audits, and other sites do the unlearning"
        )


@pytest.mark.parametrize("split", ["test", "validation", ""])
def test_who_was_never_trained_on_may_ask_and_is_purged(tmp_path, split):
    rows = [Row("a1.png", "anna", "yes", "clinic", "train"), Row("t1.png", "tess", "yes", "", split)]
    folder = make_site(tmp_path / "clinic", rows)
    draw_images(folder)
    with Site(folder) as site:
        request = request_forgetting(site, "tess", deadline_days=30)
        taken = "1 of them" if not split else "0 of them"  # a person without a split is trained on
        assert taken in what_a_request_means(site, request)[0]
        release(site, request)
        assert purge_site(site) == (1, 0)
        assert site.manifest().identities == ("anna",)
        assert not (folder / "t1.png").exists()


def test_a_row_without_a_split_or_in_another_one_is_forgotten_with_its_person(tmp_path):
    rows = [
        *(Row(f"{who}1.png", who, "yes", "clinic", "train") for who in ("anna", "bert", "cleo")),
        Row("anna2.png", "anna", "yes", "clinic"),
        Row("anna3.png", "anna", "no", "clinic", "test"),
    ]
    folder = make_site(tmp_path / "clinic", rows)
    draw_images(folder)
    with Site(folder) as site:
        assert "1 images have no split; each gets its person's split" in site_status(site, datetime.now(UTC)).remarks[0]
        request = request_forgetting(site, "anna", deadline_days=30)
        assert what_a_request_means(site, request)[0] == "The request is about 3 images, 2 of them trained on here."
        assert site_status(site, datetime.now(UTC)).left_out == 3
        release(site, request)
        assert purge_site(site) == (3, 0)


SPELLINGS = ("Zoë  Doe", "zoe\u0308 doe", "ZOË DOE ", "\uff3aoë\u00a0Doe")


@pytest.mark.parametrize("asks_as", SPELLINGS)
def test_a_person_is_one_person_in_every_spelling(tmp_path, asks_as):
    rows = [Row(f"{n}.png", who, "yes", "clinic", "train") for n, who in enumerate((*SPELLINGS, "bert", "cleo"))]
    folder = make_site(tmp_path / "clinic", rows)
    draw_images(folder)
    with Site(folder) as site:
        status = site_status(site, datetime.now(UTC))
        assert status.people == {"train": 3}
        assert status.remarks == (f"These spellings are read as one name: {', '.join(map(repr, SPELLINGS))}.",)
        request = request_forgetting(site, asks_as, deadline_days=30)
        assert request.identity == SPELLINGS[0]
        for spelling in SPELLINGS:
            assert site.gone([spelling]) == {spelling}
            with pytest.raises(LedgerError, match="has asked already"):
                request_forgetting(site, spelling, deadline_days=30)
        release(site, request)
        assert purge_site(site) == (4, 0)
        assert site.manifest().identities == ("bert", "cleo")
        again = [Row("5.png", "zoë doe", "yes", "clinic", "train")]
        write_manifest([*site.manifest().rows, *again], site.manifest_file)
        assert site.gone(site.manifest().identities) == {"zoë doe"}
        with pytest.raises(LedgerError, match="was forgotten already"):
            request_forgetting(site, "Zoë Doe", deadline_days=30)


def test_copies_of_an_image_of_who_asks_are_named_and_purged_with_it(folder):
    draw_images(folder)
    (folder / "c1.png").write_bytes((folder / "a1.png").read_bytes())
    (folder / "t1.png").write_bytes((folder / "a2.png").read_bytes())
    with Site(folder) as site:
        before = site_status(site, datetime.now(UTC))
        assert before.remarks == (
            "t1.png of 'tess' has the same bytes as a2.png of 'anna', in the split 'test' here and in 'train' there; "
            "remove one of the two, or put both people in one split.",
        )
        request = request_forgetting(site, "anna", deadline_days=30)
        after = site_status(site, datetime.now(UTC))
        assert after.left_out == 4
        assert [remark.split(":")[0] for remark in after.remarks[:2]] == [
            "c1.png of 'cleo' has the same bytes as a1.png of 'anna', who asked to be forgotten",
            "t1.png of 'tess' has the same bytes as a2.png of 'anna', who asked to be forgotten",
        ]
        release(site, request)
        assert purge_site(site) == (4, 0)
        assert {file.name for file in folder.glob("*.png")} == {"b1.png", "b2.png", "c2.png"}
        assert site.manifest().identities == ("bert", "cleo")


def test_a_person_joins_in_whatever_split(tmp_path):
    secret, deadline = bytes(range(32)), datetime.now(UTC) + timedelta(days=5)
    rows = [
        Row(f"{n}.png", who, "yes", "b", split)
        for n, (who, split) in enumerate(
            (("ANNA ", "test"), ("bert", "validation"), ("cleo", ""), ("dora", "train"), ("eve", "test"))
        )
    ]
    write_manifest(rows, tmp_path / "b" / "manifest.csv")
    create_site(tmp_path / "b", SiteCard(name="b", input=image_input(32), classes=("no", "yes")), secret)
    with Site(tmp_path / "b") as site:
        asked = {site.fleet_pseudonym(name, "job-1"): deadline for name in ("anna", "BERT", "cleo", "dora", "nobody")}
        assert [joined.identity for joined in join_requests(site, "job-1", asked)] == ["ANNA ", "bert", "cleo", "dora"]


def test_a_key_keeps_digests_of_two_sites_apart(folder, tmp_path):
    other = make_site(tmp_path / "other", [Row("a.png", "anna", "yes", "clinic", "train")])
    with Site(folder) as first, Site(other) as second:
        assert first.person_digest("anna") != second.person_digest("anna")
    assert (folder / "site.key").stat().st_mode & 0o077 == 0


def test_a_folder_that_is_no_site_is_refused(tmp_path, folder):
    with pytest.raises(ConfigurationError, match="is no site's folder"):
        Site(tmp_path)
    card = json.loads((folder / "site.json").read_text())
    (folder / "site.json").write_text(json.dumps(card | {"input": "large"}))
    with pytest.raises(ConfigurationError, match="'input'"):
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
        create_site(tmp_path / "sites" / name, SiteCard(name=name, input=image_input(32), classes=("a", "b")))
    assert [folder.name for folder in site_folders(tmp_path)] == ["site-1", "site-9", "site-10"]
    with pytest.raises(ConfigurationError, match="dlfd-fleet data deal"):
        site_folders(tmp_path / "nowhere")
