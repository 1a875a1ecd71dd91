"""The pages of a desk as Jinja makes them: whatever is shown is text, and shown as it is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import HTMLResponse

from dlfd_fleet.plain_text import visible
from dlfd_fleet.report.words import day


class Pages:
    """The pages of one desk.

    Parameters
    ----------
    title
        What the desk is of: a site's name, or the fleet.
    links
        Of the menu: paths and what they are called.
    """

    def __init__(self, title: str, links: Mapping[str, str]) -> None:
        # Names, notes and texts of sites may hold what a browser or a terminal obeys: nothing of it gets through.
        self._environment = Environment(
            loader=PackageLoader("dlfd_fleet.desk"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_shown,
        )
        self._environment.filters |= {"day": day, "moment": _moment, "typed": _typed}
        self._environment.globals |= {"title": title, "links": links}

    def show(self, request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page."""
        return HTMLResponse(self.text(request, template, **values), status)

    def text(self, request: Request, template: str, **values: Any) -> str:
        """Return a page, or a part of one, as text."""
        state: State = request.state
        known = {
            "path": request.url.path,
            "user": state.user,
            "csrf": state.csrf,
            "may_log_out": state.may_log_out,
            "values": {},
            "errors": {},
        }
        return self._environment.get_template(template).render(known | values)

    def say(self, request: Request, status: int, sentence: str) -> HTMLResponse:
        """Return a page that says in a sentence why something cannot be done."""
        return self.show(request, "sentence.html", status=status, sentence=sentence, status_code=status)


def _shown(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(visible(line) for line in value.split("\n"))
    return value


def _typed(text: object) -> Markup:
    """Return what somebody typed, for the field that they typed it into."""
    return escape(str(text))


def _moment(moment: datetime | date) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if isinstance(moment, datetime) else str(moment)
