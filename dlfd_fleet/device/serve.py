"""Serve predictions over HTTP (Open Inference Protocol) on uvicorn, with limits.

uvicorn and h11 add 1 MB to an installation of about 200 MB. A web framework would add 2 MB more and is not needed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote, urlsplit

from dlfd_fleet.device.answering import WAIT_SECONDS, Answering, Loaded, NoAnswerError
from dlfd_fleet.device.connections import Limits, Server, listening, most_connections, raise_file_limit
from dlfd_fleet.device.inference_protocol import (
    EXTENSIONS,
    LARGEST_REQUEST,
    MODEL_NAME,
    InvalidRequestError,
    largest_request,
    model_metadata,
    read_request,
    write_response,
)
from dlfd_fleet.exceptions import DeviceError

logger = logging.getLogger(__name__)
LIMITS = Limits(connections=128)
MOST_REQUESTS = 32
"""Most inference requests at once."""
_AT_WORK = 2
"""How many of them are read and answered at once; the others wait."""
_MOST_BYTES = 4 * LARGEST_REQUEST
"""Most bytes of all bodies together."""
_Answer = tuple[bytes, int | None]
"""A body, and how much of it is JSON; None for all of it."""
_JSON_LENGTH = "Inference-Header-Content-Length"
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@contextmanager
def serving(answering: Answering, host: str, port: int, limits: Limits = LIMITS) -> Iterator[str]:
    """Answer requests in threads of their own; yield the address.

    Raises
    ------
    DeviceError
        If the address cannot be listened on.
    """
    files = raise_file_limit()
    limits = Limits(**vars(limits) | {"connections": most_connections(limits.connections, files)})
    with listening(host, port) as listener, ThreadPoolExecutor(_AT_WORK, "answers") as workers:
        server = Server(_Service(answering, workers), limits, lifespan="off")
        thread = threading.Thread(target=server.run, args=([listener],), name="device-http", daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        shown = f"[{host}]" if ":" in host else host
        try:
            yield f"http://{shown}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class _RequestError(DeviceError):
    """A request that is refused; unless its body has been read, the connection ends with it."""

    def __init__(self, status: HTTPStatus, text: str, *, ends: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.ends = ends


class _ClientGoneError(Exception):
    """Nobody waits for this answer any more."""


class _Service:
    """The ASGI application."""

    def __init__(self, answering: Answering, workers: ThreadPoolExecutor) -> None:
        self._answering = answering
        self._workers = workers
        self._requests = 0
        self._bytes = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Answer one request; whatever happens, with JSON."""
        ends = False
        try:
            status, answer = HTTPStatus.OK, await self._answer(scope, receive)
        except _ClientGoneError:
            return
        except _RequestError as error:
            status, answer, ends = error.status, _error(error), error.ends
        except InvalidRequestError as error:
            status, answer = HTTPStatus.BAD_REQUEST, _error(error)
        except NoAnswerError as error:
            status, answer = HTTPStatus.SERVICE_UNAVAILABLE, _error(error)
        except Exception:
            logger.exception("A request could not be answered because of a bug")
            status, answer = HTTPStatus.INTERNAL_SERVER_ERROR, _error("This device could not answer: see its log.")
        body, json_length = answer
        headers = {
            "Content-Type": "application/json" if json_length is None else "application/octet-stream",
            "Content-Length": str(len(body)),
        }
        headers |= {} if json_length is None else {_JSON_LENGTH: str(json_length)}
        headers |= {"Connection": "close"} if ends else {}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": int(status), "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: MutableMapping[str, Any], receive: _Receive) -> _Answer:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = _path(scope["raw_path"].decode("latin-1"))
        if scope["method"] == "GET":
            return self._get(path)
        if scope["method"] != "POST":
            raise _RequestError(HTTPStatus.NOT_IMPLEMENTED, "Only GET and POST are allowed.", ends=True)
        return await self._post(path, headers, receive)

    def _get(self, path: str) -> _Answer:
        if path == "/v2":
            return _json({"name": "dlfd-fleet", "version": version("dlfd-fleet"), "extensions": EXTENSIONS})
        if path == "/v2/health/live":
            return _json({"live": True})
        if path == "/v2/health/ready":
            self._answering.loaded()
            return _json({"ready": True})
        action, loaded = self._model(path, wait=0.0)
        if action == "/ready":
            return _json({"name": MODEL_NAME, "ready": True})
        if action:
            raise _RequestError(HTTPStatus.METHOD_NOT_ALLOWED, f"{path:.200} is for POST.")
        return _json(model_metadata(loaded))

    async def _post(self, path: str, headers: dict[str, str], receive: _Receive) -> _Answer:
        if headers.get("content-encoding", "identity") != "identity":
            raise _RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body must not be compressed.", ends=True)
        length = _number(headers, "Content-Length")
        if length is None:
            raise _RequestError(HTTPStatus.LENGTH_REQUIRED, "Send the length of the body in Content-Length.", ends=True)
        json_length = _number(headers, _JSON_LENGTH)
        if self._requests >= MOST_REQUESTS:
            raise _RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "This device is busy: try again.", ends=True)
        body = bytearray()
        try:
            await self._read_body(body, length, receive)
            self._requests += 1
            try:
                work = asyncio.get_running_loop().run_in_executor(
                    self._workers, self._infer, path, bytes(body), json_length, time.monotonic()
                )
                return await work
            finally:
                self._requests -= 1
        finally:
            self._bytes -= len(body)

    async def _read_body(self, body: bytearray, length: int, receive: _Receive) -> None:
        most = self._largest()
        if length > most:
            raise _RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The body has more than the {most} bytes that are taken.",
                ends=True,
            )
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise _ClientGoneError
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if self._bytes + len(chunk) > _MOST_BYTES:
                raise _RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "This device is busy: try again.", ends=True)
            self._bytes += len(chunk)
            body += chunk

    def _largest(self) -> int:
        try:
            return largest_request(self._answering.loaded().model.input)
        except NoAnswerError:
            return LARGEST_REQUEST

    def _infer(self, path: str, body: bytes, json_length: int | None, arrived: float) -> _Answer:
        action, loaded = self._model(path, max(0.0, arrived + WAIT_SECONDS - time.monotonic()))
        if action != "/infer":
            raise _RequestError(HTTPStatus.METHOD_NOT_ALLOWED, f"{path:.200} is for GET.")
        request = read_request(body, json_length, loaded.model)
        return write_response(request, loaded, loaded.model.predict(request.images))

    def _model(self, path: str, wait: float) -> tuple[str, Loaded]:
        found = _MODEL.fullmatch(path)
        if not found or unquote(found[1]) != MODEL_NAME:
            raise _RequestError(
                HTTPStatus.NOT_FOUND, f"There is no {path:.200} here; the model is /v2/models/{MODEL_NAME}."
            )
        loaded = self._answering.loaded(wait)
        if found[2] and unquote(found[2]) != loaded.release.version:
            raise _RequestError(
                HTTPStatus.NOT_FOUND, f"The version here is {loaded.release.version}, not {unquote(found[2]):.200}."
            )
        return found[3] or "", loaded


def _path(target: str) -> str:
    """Return the path of a request's target, which may be a whole address."""
    if target.startswith("/"):
        return target.rstrip("/")
    try:
        return urlsplit(target).path.rstrip("/")
    except ValueError as error:
        raise _RequestError(HTTPStatus.BAD_REQUEST, "The address of the request is not valid.", ends=True) from error


def _number(headers: dict[str, str], header: str) -> int | None:
    text = headers.get(header.lower())
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,20}", text):
        raise _RequestError(HTTPStatus.BAD_REQUEST, f"{header} must be a number of bytes.", ends=True)
    return int(text)


def _json(document: dict[str, Any]) -> _Answer:
    return json.dumps(document).encode(), None


def _error(error: object) -> _Answer:
    return _json({"error": str(error)})
