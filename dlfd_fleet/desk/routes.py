"""What the routes of both desks share: refusals as pages, files for everybody, and archives to take away."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from dlfd_fleet.desk.access import FILES
from dlfd_fleet.desk.pages import Pages
from dlfd_fleet.exceptions import FleetError, file_refusal

_STATIC = Path(__file__).with_name("static")
_OPTION_IS_EMPTY, _OPTION_IS = re.compile(r"^--[a-z-]+ is ''(?=[,;])"), re.compile(r"^--[a-z-]+ is")
_WORDS = {404: "There is no such page.", 405: "This page takes no such request."}


def application(pages: Pages, routes: Sequence[BaseRoute]) -> Starlette:
    """Return the ASGI application of a desk's routes; what they refuse is a page with one sentence."""

    def say(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            known = error.detail if error.status_code == 404 and error.detail != "Not Found" else ""
            sentence = known or _WORDS.get(error.status_code, error.detail)
            return pages.say(request, error.status_code, sentence)
        return pages.say(request, 422 if isinstance(error, FleetError) else 500, file_refusal(error) or str(error))

    def say_of_file(request: Request, error: Exception) -> Response:
        sentence = file_refusal(error)
        if sentence is None:
            raise error
        return pages.say(request, 500, sentence)

    handlers = {HTTPException: say, FleetError: say, OSError: say_of_file}
    files = Mount(FILES.rstrip("/"), StaticFiles(directory=_STATIC))
    return Starlette(routes=[*routes, files], exception_handlers=handlers)


def refused(error: FleetError) -> tuple[int, dict[str, str]]:
    """Return the status of a page that refuses a form, and the sentence under the field that is wrong.

    There a sentence need not name the option of the command line that the field is.
    """
    sentence = _OPTION_IS_EMPTY.sub("This is empty", str(error))
    return 422, {error.field or "form": _OPTION_IS.sub("This is", sentence)}


def archive_answer(file: Path, name: str) -> Response:
    """Return a ZIP file to take away."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(file.read_bytes(), media_type="application/zip", headers=headers)
