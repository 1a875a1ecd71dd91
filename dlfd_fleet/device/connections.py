"""HTTP connections with deadlines and limits, on uvicorn, for the device's and the delivery's servers.

A connection waits for its client (for a request, the rest of one, or until an answer is read) or works on an answer.
Waiting has a deadline. If there are too many connections, the one that has waited longest is closed. So whole requests
are served, however many clients send only half of one.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dlfd_fleet.exceptions import DeviceError

logger = logging.getLogger(__name__)
_SHARE_OF_FILES = 2
_LARGEST_HEAD = 2**15
_GRACE_SECONDS = 5
_AT_A_STROKE = 16
_HANDSHAKE_SECONDS = 10


@dataclass(frozen=True)
class Limits:
    """Limits for clients of a server.

    Attributes
    ----------
    connections
        Most connections at once. With one more, the one that has waited longest is closed.
    head_seconds
        Longest time from the start of a connection or request to the end of its headers.
    body_seconds
        Longest time from the headers to the end of the body.
    idle_seconds
        Longest time between two requests.
    stalled_seconds
        Longest time until a client reads more of an answer.
    backlog
        Most connections that are not accepted yet.
    """

    connections: int
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    idle_seconds: int = 60
    stalled_seconds: float = 30.0
    backlog: int = 128


class Connection(H11Protocol):
    """One connection under :class:`Limits`; a refusal is one sentence in JSON.

    Attributes
    ----------
    waits_since
        Loop time since when it waits for its client; None while it works on an answer.
    """

    def __init__(self, *arguments: Any, limits: Limits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._waits_for = ""
        self.waits_since: float | None = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; if there are too many, let the one that has waited longest make room."""
        super().connection_made(transport)
        # The head and the body of an answer are two packets: the second must not wait for the first to be acknowledged.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait("head", self._limits.head_seconds)
        others = [each for each in self.connections if isinstance(each, Connection) and each is not self]
        if len(others) >= self._limits.connections:
            waiting = [each for each in others if each.waits_since is not None]
            if waiting:
                longest = min(waiting, key=lambda each: each.waits_since or 0.0)
                longest.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "There are too many connections: try again.")

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Go on with what has arrived, and see what is waited for now."""
        super().handle_events()
        if self.transport.is_closing():
            self._wait("reading", self._limits.stalled_seconds)
        elif self.conn.their_state is h11.IDLE:
            has_begun = bool(self.conn.trailing_data[0])
            if has_begun or self.timeout_keep_alive_task is None:
                self._wait("head", self._limits.head_seconds)
            else:
                self._stop_waiting()
                self.waits_since = self.loop.time()
        elif self.conn.their_state is h11.SEND_BODY:
            self._wait("body", self._limits.body_seconds)
        elif not self.flow.write_paused:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one, which nobody needs any more."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait("reading", self._limits.stalled_seconds)
        elif self.waits_since is None:
            self.waits_since = self.loop.time()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that asks nothing more."""
        super().timeout_keep_alive_handler()
        self._wait("reading", self._limits.stalled_seconds)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._wait("reading", self._limits.stalled_seconds)

    def resume_writing(self) -> None:
        """Go on: the client has read something."""
        super().resume_writing()
        if self._waits_for == "reading":
            self._stop_waiting()

    def shutdown(self) -> None:
        """End with the server; an answer that is worked on is given first."""
        if self.waits_since is not None:
            self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, "The server stops.")
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self.refuse(HTTPStatus.BAD_REQUEST, f"This is no request: {msg}")

    def refuse(self, status: HTTPStatus, sentence: str) -> None:
        """Send the reason, unless an answer has started, and close the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps({"error": sentence}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        answer = (h11.Response(status_code=status, headers=list(headers.items())), h11.Data(body), h11.EndOfMessage())
        try:
            content = b"".join(self.conn.send(event) or b"" for event in answer)
        except h11.LocalProtocolError:  # in the middle of an answer, or between two requests
            self.transport.abort()
        else:
            self.transport.write(content)
            self.transport.close()
        self._wait("reading", self._limits.stalled_seconds)

    def _wait(self, what: str, seconds: float) -> None:
        """Wait for the client at most this long, whatever arrives meanwhile."""
        if self._waits_for == what and self._timer is not None:
            return
        self._stop_waiting()
        self._waits_for, self.waits_since = what, self.loop.time()
        sentence = f"The {what} of the request did not arrive within {seconds:g} seconds."
        if what == "reading":
            self._timer = self.loop.call_later(seconds, self.transport.abort)
        else:
            self._timer = self.loop.call_later(seconds, self.refuse, HTTPStatus.REQUEST_TIMEOUT, sentence)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._waits_for, self.waits_since = None, "", None


class _Handshake(SSLProtocol):
    """TLS of one connection. Where too many handshakes are unfinished, the oldest of them makes room."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: Connection,
        context: ssl.SSLContext,
        unfinished: dict[_Handshake, None],
        most: int,
    ) -> None:
        waiter = cast(
            "asyncio.Future[Any]", None
        )  # nobody waits for it; asyncio's own type does not say that it may be
        super().__init__(loop, connection, context, waiter, server_side=True, ssl_handshake_timeout=_HANDSHAKE_SECONDS)
        self._connection, self._unfinished, self._most = connection, unfinished, most
        self._below: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._below = cast("asyncio.Transport", transport)
        if len(self._unfinished) >= self._most:
            self._end_one()
        self._unfinished[self] = None
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End, finished or not."""
        self._unfinished.pop(self, None)
        super().connection_lost(exc)

    def _end_one(self) -> None:
        for each in [each for each in self._unfinished if each.is_over]:
            del self._unfinished[each]
        oldest = next(iter(self._unfinished), None)
        if oldest is not None and oldest._below is not None and len(self._unfinished) >= self._most:
            del self._unfinished[oldest]
            oldest._below.abort()

    @property
    def is_over(self) -> bool:
        """Whether the handshake has ended, and the connection is one of HTTP."""
        return self._connection.transport is not None


class Server(uvicorn.Server):
    """A uvicorn server of one application under limits, on sockets that listen already.

    Parameters
    ----------
    application
        ASGI.
    options
        Of :class:`uvicorn.Config`.
    """

    def __init__(self, application: Callable[..., Any], limits: Limits, **options: Any) -> None:
        self._limits = limits
        self._connection = partial(Connection, limits=limits)
        super().__init__(
            uvicorn.Config(
                application,
                http=cast("type[asyncio.Protocol]", self._connection),
                ws="none",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_keep_alive=limits.idle_seconds,
                timeout_graceful_shutdown=_GRACE_SECONDS,
                h11_max_incomplete_event_size=_LARGEST_HEAD,
                backlog=limits.backlog,
                **options,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, as uvicorn does; and limit unfinished TLS handshakes, which uvicorn has no option for."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            self.should_exit = True
            return
        plain = partial(
            self._connection, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        loop, context = asyncio.get_running_loop(), self.config.ssl
        handshakes: dict[_Handshake, None] = {}
        most = max(1, self._limits.connections // 2)

        def new() -> asyncio.Protocol:
            return plain() if context is None else _Handshake(loop, plain(), context, handshakes, most)  # type: ignore[return-value]

        loop.set_exception_handler(_say)
        self.servers = []
        for each in sockets or []:
            # To asyncio the backlog is how many connections it accepts at a stroke: so many files must be free.
            server = await loop.create_server(new, sock=each, backlog=_AT_A_STROKE)
            each.listen(self.config.backlog)
            self.servers.append(server)
        self.started = True


def _say(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log in one line, without asyncio's traceback, that no more files may be opened; log the rest as usual."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        logger.warning("No more files may be opened (%s): new connections wait.", error.strerror)
    else:
        loop.default_exception_handler(context)


def check_tls(certificate: Path | None, private_key: Path | None) -> None:
    """Refuse a certificate and a key that TLS cannot be served with; neither of them is no TLS.

    Raises
    ------
    DeviceError
        If one is missing, cannot be read, or the key is not the certificate's.
    """
    if certificate is None and private_key is None:
        return
    if certificate is None or private_key is None:
        raise DeviceError("TLS needs a certificate and its key: give both --tls-certificate and --tls-key.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key)
    except OSError as error:  # an SSLError is one, too
        raise DeviceError(
            f"TLS cannot be served with {certificate} and {private_key} ({error}): give a certificate chain and the "
            "private key of its first certificate, both in PEM."
        ) from error


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises
    ------
    DeviceError
        If the address cannot be listened on.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise DeviceError(f"Cannot listen on {host}:{port}: {error.strerror}.") from error
    except OSError as error:
        raise DeviceError(f"Cannot listen on {host}:{port}: {os.strerror(error.errno or errno.EIO)}.") from error
    except UnicodeError as error:
        raise DeviceError(f"Cannot listen on {host}:{port}: this is not a host name.") from error


def raise_file_limit() -> int:
    """Raise this process's limit of open files to its maximum, and return it."""
    if os.name == "nt":
        return 512  # of Windows' C library
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):  # a sandbox forbids it, or a system has a limit beside this one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 2**20


def most_connections(wanted: int, files: int) -> int:
    """Return how many connections there may be: half of the files, for the others are the server's own."""
    return max(1, min(wanted, files // _SHARE_OF_FILES))
