"""A desk on a port of this machine, and a browser that is used by keyboard alone."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dlfd_fleet.desk.access import Access
from dlfd_fleet.desk.serving import LIMITS
from dlfd_fleet.device.connections import Server, listening

CHROMIUM = shutil.which("chromium")
LOOKS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
SERIOUS = ("serious", "critical")
_MOST_TABS = 80


@contextmanager
def served(desk_on) -> Iterator[str]:
    """Serve what a function returns for a port, and give its URL."""
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        desk: Access = desk_on(port)
        server = Server(desk, LIMITS)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def keyboard_at(browser, url, **context) -> Iterator[Keyboard]:
    """Open a desk in a context of its own; in the end its pages must have reported no error but refused forms."""
    opened = browser.new_context(**context)
    page, said = opened.new_page(), []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    yield Keyboard(page)
    opened.close()
    assert not [text for text in said if "422" not in text]  # the browser names every status above 399


@contextmanager
def chromium() -> Iterator:
    """Start Debian's Chromium; without it the test is skipped."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Keyboard:
    """One page, used as somebody uses it who has no mouse."""

    def __init__(self, page) -> None:
        self.page = page

    def reach(self, name: str, role: str = "") -> None:
        """Press Tab until what has the focus is called so."""
        wanted = (self.page.get_by_role(role, name=name) if role else self.page.get_by_label(name)).first
        for _ in range(_MOST_TABS):
            self.page.keyboard.press("Tab")
            if wanted.evaluate("one => one === document.activeElement"):
                assert self.page.evaluate(_FOCUS_IS_SEEN), f"nobody sees that {name} has the focus"
                return
        raise AssertionError(f"no way by Tab to {name}")

    def press(self, name: str, role: str = "button") -> None:
        """Reach a button or a link, and press it."""
        self.reach(name, role)
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")

    def press_for_window(self, name: str):
        """Reach a button that opens a window, press it, and return that window's page."""
        self.reach(name, "button")
        with self.page.context.expect_page() as opened:
            self.page.keyboard.press("Enter")
        opened.value.wait_for_load_state()
        return opened.value

    def press_for_file(self, name: str, role: str = "button"):
        """Reach a button or a link that gives a file, press it, and return what is downloaded."""
        self.reach(name, role)
        with self.page.expect_download() as download:
            self.page.keyboard.press("Enter")
        return download.value

    def tick(self, name: str) -> None:
        """Reach a box, and tick it."""
        self.reach(name)
        self.page.keyboard.press("Space")
        assert self.page.get_by_label(name).is_checked()

    def write(self, name: str, text: str) -> None:
        """Reach a field and write into it, in place of what is there."""
        self.reach(name)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)

    def write_day(self, name: str, day) -> None:
        """Reach a field of a day, and type it in the order of this browser's language."""
        self.reach(name)
        self.page.keyboard.type(f"{day:%m%d%Y}")


_FOCUS_IS_SEEN = """() => {
  const look = getComputedStyle(document.activeElement);
  return look.outlineStyle !== "none" && parseFloat(look.outlineWidth) >= 2;
}"""


def faults(page) -> list[str]:
    """Return what is wrong with a page for somebody who cannot see it well, or has a small screen."""
    from axe_playwright_python.base import AXE_SCRIPT

    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found = [
        f"{one['id']}: {node['html']}"
        for one in page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return found + ([f"it is {wide} pixels too wide"] if wide > 0 else [])


def faults_in_any_look(page) -> list[str]:
    """Return what is wrong with a page on a phone and on a desk, by day and by night."""
    found = list[str]()
    for width, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=scheme)
        found += [f"{width}, {scheme}: {fault}" for fault in faults(page)]
    return found
