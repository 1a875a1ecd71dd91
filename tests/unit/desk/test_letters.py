"""Letters: what each stage says, what a site may put in its place, and that nothing of them is half-written."""

from __future__ import annotations

import re
from datetime import date

import pytest

from dlfd_fleet.desk import Stage, write_letter
from dlfd_fleet.exceptions import ConfigurationError, LedgerError
from dlfd_fleet.ledger import Action, Ground, RequestState, Site, extend, refuse, withdraw
from dlfd_fleet.ledger.requests import join_requests
from dlfd_fleet.ledger.states import GROUNDS
from dlfd_fleet.settings import DeskSettings
from tests.clinic import ask, forget, make_clinic, on_day

TODAY, RECEIVED = date(2026, 11, 28), date(2026, 11, 20)
SETTINGS = DeskSettings(sender="Clinic <North>\n1 Main Street", authority="Data Protection Authority")


@pytest.fixture
def site(tmp_path):
    with Site(make_clinic(tmp_path / "clinic", ("anna <b>", "bert"))) as opened, on_day(TODAY):
        yield opened


@pytest.fixture
def letter(site, tmp_path):
    """Write a letter, and return its text."""

    def write(request, settings=SETTINGS, **told):
        file = tmp_path / "letter.html"
        write_letter(site, site.ledger.get(request.id), file, settings, done_by="ode", **told)
        return file.read_text(encoding="utf-8")

    return write


def test_a_letter_says_how_far_the_request_is_and_the_history_says_that_it_was_printed(site, letter):
    request = ask(site, "anna <b>", received=RECEIVED, note="not for letters")
    said = letter(request)
    assert "20 November 2026" in said
    assert "18 December 2026" in said
    assert "Dear <bdi>anna &lt;b&gt;</bdi>" in said  # escaped
    assert "Clinic &lt;North&gt;\n1 Main Street" in said
    assert "Article 77" in said
    assert "not for letters" not in said
    extend(site, request.id, months=1, reason="many <requests>", noticed=TODAY)
    said = letter(request)
    assert all(words in said for words in ("many &lt;requests&gt;", "18 January 2027", "Article 12(3)"))
    assert "We have received your request" in letter(request, stage=Stage.RECEIVED)
    printed = [event for event in site.ledger.history(request.id) if event.action is Action.LETTER]
    assert [(event.reason, event.done_by, event.state) for event in printed] == [
        (f"letter '{stage}'", "ode", RequestState.ACCEPTED) for stage in ("received", "extended", "received")
    ]
    site.ledger.verify()


@pytest.mark.parametrize("ground", list(Ground))
def test_a_refusal_says_why_and_where_to_complain(site, letter, ground):
    request = ask(site, "bert")
    refuse(site, request.id, ground, reason="the reason")
    said = letter(request)
    assert "the reason" in said
    assert GROUNDS[ground] in said
    assert all(words in said for words in ("Article 77", "Article 79", "go to court", "Data Protection Authority"))


def test_after_the_purge_a_letter_has_no_name_unless_it_is_given_and_that_is_not_kept(site, letter):
    done = forget(site, ask(site, "bert"))
    said = letter(done)
    assert "Dear Sir or Madam" in said
    assert "bert" not in said
    assert "cannot prove" in said
    assert "are being given the new one" in said
    site.ledger.move(done.id, RequestState.COMPLETE, "no devices")
    said = letter(done, name="Bert <i>")
    assert "Dear <bdi>Bert &lt;i&gt;</bdi>" in said
    assert "no device that we know of" in said
    site.ledger.close()
    assert b"Bert <i>" not in (site.folder / "ledger.db").read_bytes()


def test_a_letter_loads_nothing_from_elsewhere_and_runs_nothing(site, letter):
    request = ask(site, "bert")
    said = letter(request)
    refuse(site, request.id, Ground.ARCHIVING, reason="an archive")
    for page in (said, letter(request), letter(forget(site, ask(site, "anna <b>")))):
        assert not re.search(r"<script|<link|<img|src=|href=|https?:|@import|url\(", page)
        assert page.startswith("<!doctype html>")


@pytest.mark.parametrize("stage", [Stage.EXTENDED, Stage.REFUSED, Stage.FORGOTTEN])
def test_a_letter_of_what_has_not_happened_is_refused(site, letter, stage, tmp_path):
    with pytest.raises(LedgerError, match=f"is ACCEPTED and was not {stage}; there is no such letter"):
        letter(ask(site, "bert"), stage=stage)
    assert not (tmp_path / "letter.html").exists()


def test_a_letter_confirms_a_withdrawal_with_its_reason_if_there_is_one(site, letter):
    for reason in ("", "it was <somebody> else"):
        request = ask(site, "bert", received=RECEIVED)
        withdraw(site, request.id, reason=reason)
        said = letter(request)
        assert "On 28 November 2026 you took it back" in said
        assert ("The reason that we noted is" in said) == bool(reason)
        assert "We have received your request" in letter(request, stage=Stage.RECEIVED)
    assert "it was &lt;somebody&gt; else" in said
    again = ask(site, "bert")
    with pytest.raises(LedgerError, match="is ACCEPTED and was not withdrawn"):
        letter(again, stage=Stage.WITHDRAWN)
    forget(site, again)
    with pytest.raises(LedgerError, match="The reason in this letter was deleted with the name"):
        letter(request)


def test_who_is_unknown_is_told_so_and_where_to_complain_and_of_no_deletion(site, letter):
    request = ask(site, "<Zoe>", received=RECEIVED, no_data=True)
    said = letter(request)
    assert "Dear <bdi>&lt;Zoe&gt;</bdi>" in said
    assert "found no image of you" in said
    assert "20 November 2026" in said
    assert all(words in said for words in ("Article 77", "Article 79", "Data Protection Authority"))
    assert site.ledger.history(request.id)[-1].reason == "letter 'no-data'"
    with pytest.raises(LedgerError, match="was answered when it came; its letter is 'no-data'"):
        letter(request, stage=Stage.RECEIVED)
    with pytest.raises(LedgerError, match="is ACCEPTED and was not no-data"):
        letter(ask(site, "bert"), stage=Stage.NO_DATA)


def test_there_is_no_letter_with_a_reason_that_was_purged(site, letter):
    request = ask(site, "bert")
    extend(site, request.id, months=1, reason="many requests", noticed=TODAY)
    forget(site, request)
    with pytest.raises(LedgerError, match="The reason in this letter was deleted with the name"):
        letter(request, stage=Stage.EXTENDED)


def test_the_site_where_a_person_asked_writes_and_no_other(tmp_path):
    with Site(make_clinic(tmp_path / "b", secret=bytes(range(32)))) as site:
        asked = {site.fleet_pseudonym("anna", "job-1"): ask(site, "bert").deadline}
        (joined,) = join_requests(site, "job-1", asked)
        with pytest.raises(LedgerError, match="that site writes to the person"):
            write_letter(site, joined, tmp_path / "letter.html", SETTINGS)


def test_a_site_puts_its_own_templates_in_the_place_of_ours(site, letter, tmp_path):
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "received.html").write_text(
        "{% extends 'letter.html' %}{% block letter %}Bonjour {{ due | day }}{% endblock %}"
    )
    settings = DeskSettings(letters=folder)
    request = ask(site, "bert", received=RECEIVED)
    said = letter(request, settings)
    assert "Bonjour 18 December 2026" in said
    assert "Dear <bdi>bert</bdi>" in said  # the rest is ours
    assert "<address>clinic</address>" in said
    (folder / "letter.html").write_text("<p>{{ name }}: {% block letter %}{% endblock %}</p>")
    assert letter(request, settings, name="<Bert>") == "<p>&lt;Bert&gt;: Bonjour 18 December 2026</p>"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% if %}", r"received\.html, line 1 cannot be read: Expected an expression"),
        ("one\n{{ nobody }}", r"received\.html, line 2, cannot be used: 'nobody' is undefined"),
        ("{{ 1 / 0 }}", r"received\.html, line 1, cannot be used: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", r"received\.html.* cannot be used"),
        ("{% include 'more.html' %}", r"cannot be used: .*more\.html"),
        (b"\xff\xfe", r"received\.html cannot be used: UnicodeDecodeError"),
    ],
)
def test_a_bad_template_is_one_sentence_and_nothing_is_written(site, letter, tmp_path, template, sentence):
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "received.html").write_bytes(template if isinstance(template, bytes) else template.encode())
    request = ask(site, "bert")
    with pytest.raises(ConfigurationError, match=sentence):
        letter(request, DeskSettings(letters=folder))
    assert not (tmp_path / "letter.html").exists()
    assert len(site.ledger.history(request.id)) == 1


def test_a_letter_that_cannot_be_written_is_not_noted(site, tmp_path):
    request = ask(site, "bert")
    (tmp_path / "folder").mkdir()
    for file, sentence in (
        (tmp_path / "folder", "is a folder; name a file"),
        (tmp_path / "no" / "a.html", "Cannot write"),
    ):
        with pytest.raises(LedgerError, match=sentence):
            write_letter(site, request, file, SETTINGS)
    with pytest.raises(ConfigurationError, match="There is no folder"):
        write_letter(site, request, tmp_path / "a.html", DeskSettings(letters=tmp_path / "none"))
    assert len(site.ledger.history(request.id)) == 1
    assert not list(tmp_path.glob("*.html"))
