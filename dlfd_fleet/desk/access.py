"""What stands between a browser and a desk: who may ask, from where, and what a browser may do with the answer."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlfd_fleet.desk.login_record import LoginRecord
from dlfd_fleet.desk.logins import Logins
from dlfd_fleet.desk.pages import Pages
from dlfd_fleet.exceptions import ConfigurationError, FleetError
from dlfd_fleet.ledger.requests import LONGEST_NAME
from dlfd_fleet.settings import DeskSettings

LARGEST_FORM = 2**16
LOGIN, LOGOUT, LOGINS = "/login", "/logout", "/logins"
_MOST_LOGINS = 200
FILES = "/static/"
"""For everybody: the look of the pages."""
_READING = ("GET", "HEAD")
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
DOCUMENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""Of a whole document with a style of its own, such as a letter: nothing in it runs, whatever a template says."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Rules:
    """Who may ask a desk.

    Attributes
    ----------
    hosts
        Names in the Host header that it answers to; any other is a page of somebody else's that a browser was led from.
    user
        Who uses it where nobody logs in.
    logins
        Where people log in; None if they need not, or a proxy says who they are.
    proxy, user_header
        Address of that proxy, and the header in which it names the user.
    """

    hosts: frozenset[str]
    user: str
    logins: Logins | None = None
    proxy: str | None = None
    user_header: str = ""


def rules_of(settings: DeskSettings, host: str, user: str, *, over_tls: bool, logins_file: Path | None = None) -> Rules:
    """Return who may ask a desk that listens on an address.

    Parameters
    ----------
    logins_file
        Where logins with tokens are kept.

    Raises
    ------
    ConfigurationError
        If it would be open to everybody on a network, or could not tell who asks.
    """
    if settings.tokens is not None and settings.proxy is not None:
        raise ConfigurationError("desk.tokens and desk.proxy are two ways to know who asks; set one of them.")
    if not is_loopback(host) and settings.tokens is None and settings.proxy is None:
        raise ConfigurationError(
            f"At {host} everybody in the network would have this desk: set desk.tokens, a file of who may log in, or "
            "desk.proxy, the reverse proxy that says who asks; or listen on 127.0.0.1."
        )
    if not is_loopback(host) and settings.proxy is None and not over_tls:
        raise ConfigurationError(
            f"At {host} a token would cross the network in the clear: give --tls-certificate and --tls-key, or listen "
            "on 127.0.0.1 behind a reverse proxy with TLS."
        )
    everywhere = host in {"", "0.0.0.0", "::"}  # noqa: S104 - what somebody may ask for
    if everywhere and not settings.hosts:
        raise ConfigurationError(
            f"At {host} the desk has no name of its own: set desk.hosts to the names that browsers reach it by."
        )
    own = (
        set[str]() if everywhere else {host} | ({"localhost", "127.0.0.1", "::1"} if is_loopback(host) else set[str]())
    )
    record = LoginRecord(logins_file) if logins_file is not None and settings.tokens is not None else None
    return Rules(
        hosts=frozenset(name.casefold() for name in own | set(settings.hosts)),
        user=user,
        logins=None if settings.tokens is None else Logins(settings.tokens, record),
        proxy=settings.proxy,
        user_header=settings.user_header,
    )


def is_loopback(host: str) -> bool:
    """Tell whether an address is of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass
class Access:
    """The ASGI application around a desk's own: it lets in who may come in, and reads what they send.

    What it finds out is in the scope's ``state``: ``user``, ``csrf`` (what every form must hold) and ``form``.
    """

    application: ASGIApp
    rules: Rules
    pages: Pages
    cookie: str
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        try:
            answer = await self._refusal(request) or self._login_page(request) or self.application
        except FleetError as error:  # the file of tokens cannot be read any more, or that of logins not be written
            request.state.user = ""
            answer = self._say(request, 500, str(error))
        await answer(scope, receive, send_guarded)

    async def _refusal(self, request: Request) -> Response | None:
        """Let a request in, or return why not."""
        state = request.state
        state.user, state.csrf, state.form, state.may_log_out = "", self._csrf("nobody"), {}, False
        host = _host_name(request.headers)
        if host not in self.rules.hosts:
            return self._say(request, 400, "The desk does not answer under this name; set desk.hosts if it should.")
        if request.url.path.startswith(FILES):
            return None
        session = request.cookies.get(self.cookie, "")
        refusal = self._find_user(request, session)
        if refusal is not None:
            return refusal
        if request.method in _READING:
            return None
        if request.method != "POST":
            return self._say(request, 405, "The desk takes no such request.")
        return await self._read_form(request)

    def _find_user(self, request: Request, session: str) -> Response | None:
        state, rules = request.state, self.rules
        if rules.proxy is not None:
            state.user = _named(request, rules.user_header) if _is_from(request, rules.proxy) else ""
            if not state.user:
                return self._say(
                    request, 401, "The desk answers its reverse proxy alone, and that did not say who asks."
                )
            state.csrf = self._csrf(f"user {state.user}")
        elif rules.logins is not None:
            state.user = (rules.logins.who(session) if session else None) or ""
            if state.user:
                state.csrf, state.may_log_out = self._csrf(f"session {session}"), True
            elif request.url.path != LOGIN:
                if request.method in _READING:
                    return RedirectResponse(LOGIN, 303)
                return self._say(request, 401, "You are not logged in, or not any more: log in, and do it again.")
        else:
            state.user, state.csrf = rules.user, self._csrf("here")
        return None

    async def _read_form(self, request: Request) -> Response | None:
        """Read what a form sent, once it is one of ours."""
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return self._say(request, 403, "This form was sent by a page that is not the desk's.")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            return self._say(request, 415, "The desk takes forms, and this was none.")
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > LARGEST_FORM:
                return self._say(request, 413, f"A form has at most {LARGEST_FORM} bytes: shorten the texts.")
        try:
            pairs = parse_qsl(content.decode(), keep_blank_values=True, errors="strict", max_num_fields=100)
        except ValueError:
            return self._say(request, 400, "The form is no text in UTF-8.")
        form = {name: value.replace("\r\n", "\n") for name, value in pairs}
        if not hmac.compare_digest(form.pop("csrf", "").encode(), request.state.csrf.encode()):
            return self._say(
                request,
                403,
                "This form is not valid any more, because the desk was started again or you logged in anew: go back, "
                "load the page again, and send it again.",
            )
        request.state.form = form
        return None

    def _login_page(self, request: Request) -> Response | None:
        """Log somebody in or out, or show who did; None if that is not what is asked for."""
        if self.rules.logins is None or request.url.path not in {LOGIN, LOGOUT, LOGINS}:
            return None
        if request.url.path == LOGINS:
            return self._show_logins(request, self.rules.logins)
        if request.url.path == LOGIN:
            return self._log_in(request, self.rules.logins) if request.method == "POST" else self._ask_token(request)
        if request.method != "POST":
            return self._say(request, 405, "To log out, press the button.")
        self.rules.logins.log_out(request.cookies.get(self.cookie, ""))
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(self.cookie)
        return answer

    def _log_in(self, request: Request, logins: Logins) -> Response:
        address = request.client.host if request.client else ""
        if logins.must_wait(address):
            return self._ask_token(request, "Too many tokens were wrong: wait five minutes, and try again.", 429)
        made = logins.log_in(address, request.state.form.get("token", ""))
        if made is None:
            return self._ask_token(request, "Nobody has this token; see that it is whole.", 401)
        logins.log_out(request.cookies.get(self.cookie, ""))
        answer = RedirectResponse("/", 303)
        is_here = is_loopback(_host_name(request.headers))
        answer.set_cookie(self.cookie, made, httponly=True, samesite="strict", secure=not is_here)
        return answer

    def _show_logins(self, request: Request, logins: Logins) -> Response:
        if request.method not in _READING:
            return self._say(request, 405, "This page takes no such request.")
        found = logins.record.all()[:_MOST_LOGINS] if logins.record is not None else []
        return self.pages.show(request, "logins.html", logins=found)

    def _ask_token(self, request: Request, wrong: str = "", status: Literal[200, 401, 429] = 200) -> Response:
        errors = {"token": wrong} if wrong else {}
        return self.pages.show(request, "login.html", status=status, errors=errors, values={})

    def _say(self, request: Request, status: int, sentence: str) -> Response:
        return self.pages.say(request, status, sentence)

    def _csrf(self, of: str) -> str:
        return hmac.digest(self._secret, of.encode(), "sha256").hex()


def _host_name(headers: Headers) -> str:
    """Return the name in a Host header, without the port and the brackets of an IPv6 address."""
    given = headers.getlist("host")
    text = given[0].casefold() if len(given) == 1 else ""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.rpartition(":")[2].isdigit() and ":" in text else text


def _named(request: Request, header: str) -> str:
    """Return the user whom a header names, once; empty if it names none."""
    given = request.headers.getlist(header)
    try:
        name = given[0].encode("latin-1").decode().strip() if len(given) == 1 else ""
    except ValueError:
        return ""
    return name if name.isprintable() and len(name) <= LONGEST_NAME else ""


def _is_from(request: Request, address: str) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host) == ipaddress.ip_address(address)
    except ValueError:
        return False
