"""A coordinator's desk in a real browser: every flow by keyboard alone, and a page that changes with its job."""

from __future__ import annotations

import os
import zipfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.settings import Settings
from tests.desk_browser import chromium, faults_in_any_look, keyboard_at, served
from tests.desk_fleet import add_devices, desk_of, fleet_settings, make_fleet
from tests.integration.registered_fleet import registered_fleet


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    made = fleet_settings(tmp_path_factory.mktemp("desk") / "state")
    make_fleet(made).close()
    add_devices(made)
    os.mkfifo(made.state_folder / "waits")
    return made


@pytest.fixture(scope="module")
def url(settings):
    with served(lambda port: desk_of(settings, port, str(settings.state_folder / "waits"))) as address:
        yield address


@pytest.fixture
def store(settings):
    opened = Store(settings.state_folder)
    yield opened
    opened.close()


@pytest.fixture(params=[390, 1280])
def keyboard(browser, url, request):
    viewport = {"width": request.param, "height": 844}
    with keyboard_at(browser, url, viewport=viewport, accept_downloads=True, locale="en-US") as opened:
        yield opened


def test_every_page_can_be_read_by_everybody(browser, url, store):
    page = browser.new_page()
    with store.lock():
        for path in (
            *("/", "/jobs", "/jobs/erase-2", "/jobs/erase-3", "/lineage", "/devices", "/records"),
            *("/do/start/erase", "/do/cancel/erase-3", "/do/promote/1", "/nowhere"),
        ):
            page.goto(url + path)
            assert faults_in_any_look(page) == [], path
            assert "gone" not in page.title()
    page.close()


def test_a_job_is_started_with_a_reason_and_its_page_follows_it(keyboard, settings, store):
    page = keyboard.page
    keyboard.press("Start an erasure", "link")
    keyboard.press("Go on")
    assert "The reason is empty" in page.locator("#reason-error").inner_text()
    page.keyboard.type("It is time.")  # the focus is there
    keyboard.press("Go on")
    assert "this will happen" in page.get_by_role("heading", level=1).inner_text()
    assert faults_in_any_look(page) == []
    keyboard.press("Start an erasure")
    assert page.get_by_text("running", exact=True).is_visible()
    page.get_by_text("asked for job start erase").wait_for()
    with Path(settings.state_folder / "waits").open("w") as waits:  # the job ends when it has read this
        waits.write("go on")
    page.get_by_text("Error: there is no site.").wait_for()
    assert page.get_by_text("ended", exact=True).is_visible()
    assert store.decisions.all()[-1].why == "It is time."


@pytest.mark.parametrize("button", ["Start a training", "Make reference models"])
def test_other_jobs_are_started_by_keyboard_alone(keyboard, settings, store, button):
    page = keyboard.page
    keyboard.press(button, "link")
    keyboard.write("Reason", "It is time.")
    keyboard.press("Go on")
    keyboard.press(button)
    page.get_by_text("asked for job start").wait_for()
    with Path(settings.state_folder / "waits").open("w") as waits:
        waits.write("go on")
    page.get_by_text("ended", exact=True).wait_for()
    assert store.decisions.all()[-1].act == "start"


def test_a_plan_is_started_by_keyboard_alone_once_no_job_waits(browser, tmp_path):
    own = fleet_settings(tmp_path / "state")
    with closing(make_fleet(own)) as store:
        store.save(store.load("erase-3").changed(note="over").at("failed"))
        with served(lambda port: desk_of(own, port)) as address, keyboard_at(browser, address) as keyboard:
            keyboard.press("Plan an erasure", "link")
            keyboard.write("Reason", "To know.")
            keyboard.press("Go on")
            keyboard.press("Plan an erasure")
            keyboard.page.get_by_text("asked for job plan --by=M. Ode").wait_for()
        assert [(each.act, each.why) for each in store.decisions.all()] == [("plan", "To know.")]


def test_records_a_report_and_a_certificate_are_taken_by_keyboard_alone(keyboard, store, tmp_path):
    folder = store.folders.made("erase-2")
    (folder / "report.html").write_text("<!doctype html><title>Report</title><p>what was done</p>")
    (folder / "certificate.json").write_text("{}")
    today = datetime.now(UTC).date()
    keyboard.press("Records", "link")
    keyboard.write_day("First day", today - timedelta(1))
    keyboard.write_day("Last day", today)
    keyboard.press_for_file("Make the archive").save_as(tmp_path / "records.zip")
    with zipfile.ZipFile(tmp_path / "records.zip") as archive:
        assert "decisions.csv" in archive.namelist()
    assert store.decisions.all()[-1].act == "export"
    keyboard.press("Jobs", "link")
    keyboard.press("erase-2", "link")
    assert keyboard.press_for_file("Certificate", "link").suggested_filename == "certificate.json"
    keyboard.press("Report", "link")
    assert "what was done" in keyboard.page.inner_text("body")


def test_a_version_is_promoted_and_another_one_revoked_by_keyboard_alone(browser, tmp_path):
    own, store = registered_fleet(Settings(state_folder=tmp_path / "state"))
    with (
        closing(store),
        served(lambda port: desk_of(own, port)) as address,
        keyboard_at(browser, address) as keyboard,
    ):
        keyboard.press("Lineage", "link")
        assert faults_in_any_look(keyboard.page) == []
        for button in ("Revoke version 3", "Promote version 2"):
            keyboard.press(button, "link")
            keyboard.write("Reason", "It was read.")
            keyboard.press("Go on")
            keyboard.press(button)
        assert store.champions.current().job == "erase-held"
        assert [(each.act, each.who) for each in store.decisions.all()] == [("revoke", "M. Ode")]


def test_a_running_job_is_followed_on_its_page(keyboard, store):
    page = keyboard.page
    with store.lock():
        keyboard.press("Jobs", "link")
        keyboard.press("erase-3", "link")
        page.get_by_text("unlearning").wait_for()
        store.activities.note("erase-3", {"site-1": "evaluate.audit"})
        page.get_by_text("auditing the model").wait_for()
        store.activities.note("erase-3", {"site-1": "train.unlearn"})
    page.get_by_text("started, interrupted").wait_for()


def test_a_release_is_held_and_goes_on(keyboard, store):
    keyboard.press("Devices", "link")
    for button, shown in (("Hold the release", "paused"), ("Go on with the release", "running")):
        keyboard.press(button, "link")
        keyboard.write("Reason", "A fault of the camera.")
        keyboard.press("Go on")
        keyboard.press(button)
        assert f": {shown}" in keyboard.page.inner_text("main")
    assert [each.act for each in store.decisions.all()[-2:]] == ["hold", "go on"]


def test_a_job_is_cancelled_after_a_second_look(keyboard, store):
    keyboard.page.goto(f"{keyboard.page.url}jobs/erase-3")
    keyboard.press("Cancel", "link")
    keyboard.write("Reason", "The wrong people.")
    keyboard.press("Go on")
    keyboard.press("Cancel erase-3")
    assert store.is_cancelled("erase-3")
    assert store.decisions.all()[-1].why == "The wrong people."
