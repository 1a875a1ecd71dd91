"""A site's desk in a real browser: every flow by keyboard alone, on a phone and on a desk, by day and by night."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime, timedelta

import pytest

from dlfd_fleet.desk.access import rules_of
from dlfd_fleet.desk.login_record import LOGINS_FILE
from dlfd_fleet.desk.serving import guarded
from dlfd_fleet.desk.site_desk import SiteDesk
from dlfd_fleet.ledger import Action, RequestState, Site
from dlfd_fleet.settings import Settings
from tests.clinic import ask, forget, give_to_job, make_clinic, on_day
from tests.desk_browser import Keyboard, chromium, faults, faults_in_any_look, keyboard_at, served

TODAY = datetime.now(UTC).astimezone().date()
HOSTILE = "Zoë <script>document.title='gone'</script>"
PEOPLE = ("Anna Berg", "Bert", "Cleo", "Dora", "Emil", HOSTILE)


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A site where one request is overdue, one is with a job, one waits for devices and one has a hostile name."""
    made = make_clinic(tmp_path_factory.mktemp("desk") / "clinic", PEOPLE)
    with Site(made) as site:
        with on_day(TODAY - timedelta(40)):
            ask(site, "Cleo", note="<b>by phone</b>", done_by="ode")
        with on_day(TODAY - timedelta(22)):
            give_to_job(site, ask(site, "Dora", done_by="ode"))
        forget(site, ask(site, "Emil", done_by="ode"))
        ask(site, HOSTILE, note="<img src=x onerror=alert(1)>", done_by="<i>ode</i>")
    return made


@pytest.fixture(scope="module")
def url(folder):
    desk, settings = SiteDesk(folder, Settings(state_folder=folder.parent / "state")), Settings()
    rules = rules_of(settings.desk, "127.0.0.1", "M. Ode", over_tls=False)
    with served(lambda port: guarded(desk.application(), rules, desk.pages, port)) as address:
        yield address


@pytest.fixture
def keyboard(browser, url):
    phone = {"width": 390, "height": 844}
    with keyboard_at(browser, url, viewport=phone, accept_downloads=True, locale="en-US") as opened:
        yield opened


def test_every_page_can_be_read_by_everybody(browser, url, folder):
    with Site(folder) as site:
        waiting, with_job = (site.find_request(name).id for name in ("Cleo", "Dora"))
        hostile = site.find_request(HOSTILE).id
    page = browser.new_page()
    actions = [f"/requests/{waiting}/{name}" for name in ("extend", "refuse", "withdraw", "letter")]
    for path in (
        *("/", "/take-in", "/records", "/nowhere"),
        *(f"/requests/{one}" for one in (waiting, with_job, hostile)),
        *actions,
    ):
        page.goto(url + path)
        assert faults_in_any_look(page) == [], path
        assert "gone" not in page.title()
        assert page.get_by_role("main").count() == 1
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_request_is_taken_in_extended_and_withdrawn_by_keyboard_alone(keyboard, folder, width):
    page = keyboard.page
    page.set_viewport_size({"width": width, "height": 844})
    keyboard.press("Take a request in", "link")
    keyboard.write("Person", "Ana Berg")
    keyboard.write_day("Received on", TODAY - timedelta(3))
    keyboard.write("How the identity was verified", "passport")
    keyboard.press("Take in")
    assert faults(page) == []
    assert page.title().startswith("Error:")
    wrong = page.get_by_role("textbox", name="Person")
    assert wrong.evaluate("one => one === document.activeElement")  # the focus is where something is to be done
    assert (
        "did you mean 'Anna Berg'?"
        in page.locator(f"#{wrong.get_attribute('aria-describedby').split()[-1]}").inner_text()
    )
    assert wrong.input_value() == "Ana Berg"  # what was typed stays
    assert page.get_by_label("How the identity was verified").input_value() == "passport"
    page.keyboard.press("Control+a")
    page.keyboard.type("ANNA berg")
    keyboard.press("Take in")
    assert "Noted: asked" in page.get_by_role("status").inner_text()
    assert "Anna" not in page.url
    keyboard.press("Extend", "link")
    keyboard.write("Reason", "Many requests came at once.")
    draft = keyboard.press_for_window("Open the letter")
    assert "We need more time" in draft.inner_text("body")
    draft.close()
    keyboard.write_day("The person was told on", TODAY + timedelta(2))
    keyboard.press("Extend")
    assert "is in the future; tell the person first" in page.locator("#noticed-error").inner_text()
    assert page.get_by_label("Reason").input_value() == "Many requests came at once."
    page.keyboard.type(f"{TODAY:%m%d%Y}")
    keyboard.press("Extend")
    assert "Noted: extended" in page.get_by_role("status").inner_text()
    keyboard.press("Withdraw", "link")
    keyboard.write("Reason", "It was somebody else.")
    keyboard.press("Withdraw")
    assert "Noted: withdrawn" in page.get_by_role("status").inner_text()
    with Site(folder) as site:
        events = site.ledger.history(site.find_request("Anna Berg").id)
    assert [(event.action, event.done_by) for event in events] == [
        (action, "M. Ode") for action in (Action.ASKED, Action.EXTENDED, Action.WITHDRAWN)
    ]
    assert events[1].noticed == TODAY
    assert events[2].remark == "It was somebody else."


def test_who_is_unknown_is_answered_by_keyboard_alone(keyboard, folder):
    page = keyboard.page
    keyboard.press("Take a request in", "link")
    keyboard.write("Person", "Zoe Nobody")
    keyboard.write("How the identity was verified", "passport")
    keyboard.press("Take in")
    assert "There is no person 'Zoe Nobody'" in page.locator("#identity-error").inner_text()
    assert faults_in_any_look(page) == []
    keyboard.tick("No data of this person is held here")
    keyboard.press("Take in")
    assert "Noted: no data held" in page.get_by_role("status").inner_text()
    assert faults_in_any_look(page) == []
    keyboard.press("write the letter", "link")
    assert "found no image of you" in keyboard.press_for_window("Open the letter").inner_text("body")
    with Site(folder) as site:
        assert site.find_request("zoe nobody").state is RequestState.NO_DATA


def test_a_request_is_found_refused_and_answered_by_a_letter(keyboard, folder):
    page = keyboard.page
    with Site(folder) as site:
        request = ask(site, "Bert")
    page.reload()
    keyboard.write("Find a person", "bErT")
    keyboard.press("Find")
    assert "bert" not in page.url.casefold()
    assert faults(page) == []
    keyboard.press(request.id[:8], "link")
    keyboard.press("Refuse", "link")
    keyboard.press("Refuse")
    assert "No ground is chosen" in page.locator("#ground-error").inner_text()
    page.keyboard.press("Space")  # the focus is on the first ground
    keyboard.write("Reason", "It is in a book.")
    keyboard.press("Refuse")
    assert "Noted: refused" in page.get_by_role("status").inner_text()
    keyboard.press("write the letter", "link")
    letter = keyboard.press_for_window("Open the letter")
    assert "Dear Bert," in letter.inner_text("body")
    assert "It is in a book." in letter.inner_text("body")
    with Site(folder) as site:
        assert site.ledger.get(request.id).state is RequestState.REFUSED
        assert site.ledger.history(request.id)[-1].action is Action.LETTER


def test_an_archive_of_a_period_is_taken_away(keyboard, tmp_path):
    keyboard.press("Records", "link")
    keyboard.write_day("First day", TODAY - timedelta(60))
    keyboard.write_day("Last day", TODAY)
    for names in (False, True):
        keyboard.press_for_file("Make the archive").save_as(tmp_path / "records.zip")
        with zipfile.ZipFile(tmp_path / "records.zip") as archive:
            assert (b"Cleo" in archive.read("requests.csv")) == names
            assert "manifest.json" in archive.namelist()
        if not names:
            keyboard.tick("With names and texts")
    keyboard.press("Records", "link")
    assert keyboard.page.get_by_role("row", name="M. Ode").count() == 2
    assert faults_in_any_look(keyboard.page) == []


def test_the_first_tab_skips_to_the_content(keyboard):
    page = keyboard.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_somebody_logs_in_and_out(browser, folder, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("M. Ode a-token-that-nobody-guesses\n")
    tokens.chmod(0o600)
    settings = Settings(desk={"tokens": tokens})
    desk = SiteDesk(folder, settings)
    rules = rules_of(settings.desk, "127.0.0.1", "", over_tls=False, logins_file=tmp_path / LOGINS_FILE)
    with served(lambda port: guarded(desk.application(), rules, desk.pages, port)) as address:
        context = browser.new_context()
        page = context.new_page()
        keyboard = Keyboard(page)
        page.goto(f"{address}/take-in")
        assert faults_in_any_look(page) == []
        keyboard.write("Your token", "a guess")
        keyboard.press("Log in")
        assert "Nobody has this token" in page.locator("#token-error").inner_text()
        page.keyboard.type("a-token-that-nobody-guesses")
        keyboard.press("Log in")
        assert "You are M. Ode" in page.inner_text("header")
        keyboard.press("Logins", "link")
        assert [row.inner_text().split()[2:] for row in page.get_by_role("row").all()[1:]] == [
            ["M.", "Ode", "127.0.0.1", "logged", "in"],
            ["nobody", "known", "127.0.0.1", "wrong", "token"],
        ]
        assert faults_in_any_look(page) == []
        keyboard.press("Log out")
        page.goto(address)
        assert page.url == f"{address}/login"
        context.close()
