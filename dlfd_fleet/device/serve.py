"""HTTP for programs on the device: the Open Inference Protocol with the standard library's server.

It listens on the device itself by default, for a handful of clients; a framework would be larger than all the rest of a
device's installation but ONNX Runtime, and does nothing here that the standard library does not.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from socket import socket
from typing import Any
from urllib.parse import unquote, urlsplit

from dlfd_fleet.device.answering import WAIT_SECONDS, Answering, Loaded, NoAnswerError
from dlfd_fleet.device.inference_protocol import (
    EXTENSIONS,
    MODEL_NAME,
    InvalidRequestError,
    model_metadata,
    read_request,
    write_response,
)
from dlfd_fleet.exceptions import DeviceError

LARGEST_REQUEST = 16 * 2**20
MOST_CONNECTIONS = 32
IDLE_SECONDS = 60.0
WAIT_FOR_CONNECTION = 5.0
_Answer = tuple[bytes, int | None]
"""A body, and how much of it is JSON; None for all of it."""
_JSON_LENGTH = "Inference-Header-Content-Length"
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")


@contextmanager
def serving(answering: Answering, host: str, port: int) -> Iterator[str]:
    """Answer requests in threads of their own; yield the address.

    Raises
    ------
    DeviceError
        If the address cannot be listened on.
    """
    try:
        server = _Server((host, port), answering)
    except OSError as error:
        raise DeviceError(f"Cannot listen on {host}:{port}: {error.strerror}.") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _RequestError(DeviceError):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], answering: Answering) -> None:
        self.answering = answering
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """Begin a connection; where there are as many as may be, when another has ended."""
        if self._free.acquire(timeout=WAIT_FOR_CONNECTION):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away; anything else is a defect of ours."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "dlfd-fleet"
    sys_version = ""
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for the head and the body of an answer
    server: _Server

    def do_GET(self) -> None:
        """Tell of the server, its health and its model."""
        self._respond(self._get)

    def do_POST(self) -> None:
        """Answer an inference request."""
        self._respond(self._infer)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say what is wrong as the protocol does, and end the connection: what follows may not be a request."""
        self.close_connection = True
        self._send(HTTPStatus(code), _json({"error": explain or message or HTTPStatus(code).phrase}))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: what people look at is nobody's business."""

    # ------------------------------------------------------------------ requests

    def _respond(self, answer: Callable[[], _Answer]) -> None:
        try:
            self._send(HTTPStatus.OK, answer())
        except _RequestError as error:
            self._send(error.status, _json({"error": str(error)}))
        except InvalidRequestError as error:
            self._send(HTTPStatus.BAD_REQUEST, _json({"error": str(error)}))
        except NoAnswerError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, _json({"error": str(error)}))

    def _get(self) -> _Answer:
        path = self._path()
        if path == "/v2":
            return _json({"name": "dlfd-fleet", "version": version("dlfd-fleet"), "extensions": EXTENSIONS})
        if path == "/v2/health/live":
            return _json({"live": True})
        if path == "/v2/health/ready":
            self.server.answering.loaded()
            return _json({"ready": True})
        action, loaded = self._model(path, wait=0.0)
        if action == "/ready":
            return _json({"name": MODEL_NAME, "ready": True})
        if action:
            raise _RequestError(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} is for POST.")
        return _json(model_metadata(loaded))

    def _infer(self) -> _Answer:
        body = self._body()
        path = self._path()
        action, loaded = self._model(path, WAIT_SECONDS)
        if action != "/infer":
            raise _RequestError(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} is for GET.")
        request = read_request(body, self._number(_JSON_LENGTH), loaded.model)
        return write_response(request, loaded, loaded.model.predict(request.images))

    def _model(self, path: str, wait: float) -> tuple[str, Loaded]:
        found = _MODEL.fullmatch(path)
        if not found or unquote(found[1]) != MODEL_NAME:
            raise _RequestError(HTTPStatus.NOT_FOUND, f"There is no {path} here; the model is /v2/models/{MODEL_NAME}.")
        loaded = self.server.answering.loaded(wait)
        if found[2] and unquote(found[2]) != loaded.release.version:
            raise _RequestError(
                HTTPStatus.NOT_FOUND, f"The version here is {loaded.release.version}, not {unquote(found[2])}."
            )
        return found[3] or "", loaded

    def _path(self) -> str:
        return urlsplit(self.path).path.rstrip("/")

    def _body(self) -> bytes:
        """Read the whole body; one that cannot be read ends the connection, for its bytes are no next request."""
        self.close_connection = True
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise _RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body must not be compressed.")
        length = self._number("Content-Length")
        if length is None:
            raise _RequestError(HTTPStatus.LENGTH_REQUIRED, "Say how long the body is: Content-Length.")
        if length > LARGEST_REQUEST:
            raise _RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The body has {length} bytes; at most {LARGEST_REQUEST} are taken.",
            )
        body = self.rfile.read(length)
        self.close_connection = self.headers.get("Connection", "").lower() == "close"
        return body

    def _number(self, header: str) -> int | None:
        text = self.headers.get(header)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit():
            raise _RequestError(HTTPStatus.BAD_REQUEST, f"{header} must be a number.")
        return int(text)

    def _send(self, status: HTTPStatus, answer: _Answer) -> None:
        body, json_length = answer
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if json_length is None else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        if json_length is not None:
            self.send_header(_JSON_LENGTH, str(json_length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _json(document: dict[str, Any]) -> _Answer:
    return json.dumps(document).encode(), None
