"""Letters to people who asked: one HTML file that needs nothing else, for each stage of a request."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from dlfd_fleet.desk.letter_templates import TEMPLATES
from dlfd_fleet.exceptions import ConfigurationError, LedgerError
from dlfd_fleet.files import whole_file
from dlfd_fleet.ledger.dates import site_day
from dlfd_fleet.ledger.entries import PURGED_TEXT, Event, ForgetRequest
from dlfd_fleet.ledger.requests import Extension, has_joined
from dlfd_fleet.ledger.site import Site
from dlfd_fleet.ledger.states import FORGOTTEN, GROUNDS, Action, RequestState
from dlfd_fleet.report.words import day
from dlfd_fleet.settings import DeskSettings


class Stage(StrEnum):
    """What a letter says of a request."""

    RECEIVED = "received"
    EXTENDED = "extended"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    NO_DATA = "no-data"
    FORGOTTEN = "forgotten"


_ABOUT = {
    Stage.EXTENDED: Action.EXTENDED,
    Stage.REFUSED: Action.REFUSED,
    Stage.WITHDRAWN: Action.WITHDRAWN,
    Stage.NO_DATA: Action.NO_DATA,
    Stage.FORGOTTEN: Action.PURGED,
}
"""What must have happened to a request before a letter says so."""
_LAST = {
    RequestState.REFUSED: Stage.REFUSED,
    RequestState.WITHDRAWN: Stage.WITHDRAWN,
    RequestState.NO_DATA: Stage.NO_DATA,
    **dict.fromkeys(FORGOTTEN, Stage.FORGOTTEN),
}


def write_letter(
    site: Site,
    request: ForgetRequest,
    file: Path,
    settings: DeskSettings,
    *,
    stage: Stage | None = None,
    name: str | None = None,
    planned: Extension | None = None,
    done_by: str = "",
) -> Stage:
    """Write a letter to the person of a request, note it in the history, and return its stage.

    Parameters
    ----------
    stage
        What the letter says; what the request has come to when omitted.
    name
        Whom it is to; the ledger's name, as long as it has one, when omitted. It is not kept.
    planned
        An extension that is to be recorded once the person was told. The letter tells of it, and is not noted.

    Raises
    ------
    LedgerError
        If the request has not come to this stage, or was made at another site, or the file cannot be written; then
        nothing is noted.
    ConfigurationError
        If a template of the site's cannot be used.
    """
    if file.is_dir():
        raise LedgerError(f"{file} is a folder; name a file for the letter.")
    stage, page = _letter(site, request, settings, stage, name, planned)
    with whole_file(file, LedgerError) as new:
        new.write_text(page, encoding="utf-8")
        if planned is None:
            site.ledger.note_letter(request.id, stage.value, done_by)
    return stage


def print_letter(
    site: Site,
    request: ForgetRequest,
    settings: DeskSettings,
    *,
    stage: Stage | None = None,
    name: str | None = None,
    planned: Extension | None = None,
    done_by: str = "",
) -> str:
    """Return a letter as :func:`write_letter` writes it, and note it in the history unless it is of a plan."""
    stage, page = _letter(site, request, settings, stage, name, planned)
    if planned is None:
        site.ledger.note_letter(request.id, stage.value, done_by)
    return page


def stages_of(site: Site, request: ForgetRequest) -> list[Stage]:
    """Return what letters may say of a request; what it has come to comes last."""
    if has_joined(site, request):
        return []
    if request.state is RequestState.NO_DATA:  # the letter "received" promises that images will be deleted
        return [Stage.NO_DATA]
    done = {event.action for event in site.ledger.history(request.id)}
    return [stage for stage in Stage if stage not in _ABOUT or _ABOUT[stage] in done]


def _letter(
    site: Site,
    request: ForgetRequest,
    settings: DeskSettings,
    stage: Stage | None,
    name: str | None,
    planned: Extension | None,
) -> tuple[Stage, str]:
    if has_joined(site, request):
        raise LedgerError(f"Request {request.id} was made at another site, and that site writes to the person.")
    events = site.ledger.history(request.id)
    if planned is not None and stage not in (None, Stage.EXTENDED):
        raise LedgerError(f"--months, --until and --reason are of the letter 'extended' alone, not of '{stage}'.")
    stage = Stage.EXTENDED if planned is not None else stage or _stage_of(request, events)
    facts = _facts(site, request, events, stage, settings, planned) | {"name": name or request.identity}
    return stage, _page(stage, facts, settings)


def _stage_of(request: ForgetRequest, events: list[Event]) -> Stage:
    if request.state in _LAST:
        return _LAST[request.state]
    return Stage.EXTENDED if any(event.action is Action.EXTENDED for event in events) else Stage.RECEIVED


def _facts(
    site: Site,
    request: ForgetRequest,
    events: list[Event],
    stage: Stage,
    settings: DeskSettings,
    planned: Extension | None,
) -> dict[str, Any]:
    """Return what a template may say, all of it for every stage: what is not known is None."""
    last = {event.action: event for event in events}
    decided = last.get(_ABOUT[stage]) if stage in _ABOUT else None
    if planned is not None:
        decided = None  # an earlier extension
    elif stage in _ABOUT and decided is None:
        before = "; to tell the person before, add --months or --until, and --reason" if stage is Stage.EXTENDED else ""
        raise LedgerError(
            f"Request {request.id} is {request.state} and was not {stage}; there is no such letter of it{before}."
        )
    if stage is Stage.RECEIVED and request.state is RequestState.NO_DATA:
        raise LedgerError(f"Request {request.id} was answered when it came; its letter is '{Stage.NO_DATA}'.")
    if decided is not None and decided.remark == PURGED_TEXT:
        raise LedgerError(f"The reason in this letter was deleted with the name; {request.id} was forgotten since.")
    return {
        "today": site_day(datetime.now(UTC)),
        "sender": settings.sender or site.card.name,
        "authority": settings.authority,
        "reference": request.id,
        "received": request.received,
        "first_due": request.first_deadline.date(),
        "due": planned.due if planned else request.due,
        "reason": planned.reason if planned else decided.remark if decided else "",
        "ground": GROUNDS[decided.ground] if decided and decided.ground else "",
        "noticed": decided.noticed if decided else None,
        "withdrawn": _day_of(last.get(Action.WITHDRAWN)),
        "released": _day_of(last.get(Action.FORGOTTEN)),
        "purged": _day_of(last.get(Action.PURGED)),
        "complete": _day_of(last.get(Action.COMPLETE)),
    }


def _day_of(event: Event | None) -> date | None:
    return None if event is None else site_day(event.at)


def _page(stage: Stage, facts: Mapping[str, Any], settings: DeskSettings) -> str:
    from jinja2 import ChoiceLoader, DictLoader, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    folder = settings.letters
    if folder is not None and not folder.is_dir():
        raise ConfigurationError(f"There is no folder {folder}, where desk.letters says that letter templates are.")
    own = [] if folder is None else [FileSystemLoader(folder)]
    environment = ImmutableSandboxedEnvironment(
        loader=ChoiceLoader([*own, DictLoader(TEMPLATES)]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["day"] = day
    name = f"{stage}.html"
    try:
        return environment.get_template(name).render(facts)
    except TemplateSyntaxError as error:
        where = f"{error.filename or error.name or name}, line {error.lineno}"
        raise ConfigurationError(f"The letter template {where} cannot be read: {error.message}.") from error
    except TemplateError as error:
        raise ConfigurationError(f"The letter template {_place(error, name)} cannot be used: {error}.") from error
    # A template is a program of the site's: it can fail in any way, and it is the site's to put right.
    except Exception as error:
        raise ConfigurationError(
            f"The letter template {_place(error, name)} cannot be used: {type(error).__name__}: {error}."
        ) from error


def _place(error: BaseException, name: str) -> str:
    """Return the innermost line of a template that an error came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".html")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}," if frames else name
