"""Serve the repository's files over HTTP, and receive device reports by POST.

The server need not be trusted: devices verify what they get, and reports are signed. Another static file server can
serve the repository, with this one for the reports.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dlfd_fleet.delivery.delivery import Delivery
from dlfd_fleet.device.connections import Limits, Server, listening, most_connections, raise_file_limit
from dlfd_fleet.device.contract import REPORTS_PATH
from dlfd_fleet.exceptions import DeliveryError, DeviceError, FleetError, ReportRefusedError, ReportRepeatedError

logger = logging.getLogger(__name__)
LARGEST_REPORT = 2**20
LIMITS = Limits(connections=8192, backlog=1024)
"""Limits of connections. The process must be allowed twice as many open files (``LimitNOFILE`` in deploy/systemd)."""
_SECONDS_BETWEEN_CHECKS = 5.0
_MOST_REPORTS = 1024
_NAME = re.compile(r"([0-9]{1,10}\.)?(root|targets|rollout|snapshot|timestamp)\.json")
_PART = "[A-Za-z0-9][A-Za-z0-9._-]{0,300}"
_TARGET = re.compile(f"({_PART}/){{0,8}}{_PART}")


def application(delivery: Delivery, seconds: float = _SECONDS_BETWEEN_CHECKS) -> Starlette:
    """Return the ASGI application of a delivery.

    Parameters
    ----------
    seconds
        Seconds between checks of expiring signatures and of the rollout's health.
    """
    metadata, targets = delivery.repository.served / "metadata", delivery.repository.served / "targets"
    # The database has one writer. Reports that wait for it here hold no thread, which files are served by.
    one_at_a_time = asyncio.Lock()
    under_way = 0

    async def send_metadata(request: Request) -> Response:
        # Read at once: the timestamp is replaced while it is served.
        name = request.path_params["name"]
        content = await run_in_threadpool(_read, metadata / name) if _NAME.fullmatch(name) else None
        if content is None:
            raise HTTPException(404)
        return Response(content, media_type="application/json", headers={"Cache-Control": "no-cache"})

    async def take_report(request: Request) -> Response:
        nonlocal under_way
        if under_way >= _MOST_REPORTS:
            return _refused("There are too many reports at once: send it again later.", 503)
        under_way += 1
        try:
            return await _take(request)
        finally:
            under_way -= 1

    async def _take(request: Request) -> Response:
        content = bytearray()
        try:
            async for chunk in request.stream():
                content += chunk
                if len(content) > LARGEST_REPORT:
                    return _refused(f"A report has at most {LARGEST_REPORT} bytes.", 413)
            async with one_at_a_time:
                await run_in_threadpool(delivery.receive, bytes(content))
        except ClientDisconnect:
            return Response(status_code=400)  # for nobody
        except ReportRepeatedError:
            pass  # its device sends it until it hears that it was taken; whoever else does has changed nothing
        except ReportRefusedError as error:
            return _refused(str(error), 400)
        except FleetError as error:
            logger.warning("%s", error)
            return _refused("The report cannot be stored now: send it again later.", 503)
        return Response(status_code=204)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        over = threading.Event()
        upkeep = threading.Thread(target=_keep_up, args=(delivery, seconds, over), name="delivery-upkeep", daemon=True)
        upkeep.start()
        try:
            yield
        finally:
            over.set()
            await run_in_threadpool(upkeep.join)

    routes = [
        Route("/metadata/{name}", send_metadata),
        Route(REPORTS_PATH, take_report, methods=["POST"]),
        Mount("/targets", _Targets(directory=targets, check_dir=False)),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def serve(
    delivery: Delivery,
    host: str,
    port: int,
    certificate: Path | None = None,
    private_key: Path | None = None,
    limits: Limits = LIMITS,
    begun: Callable[[], None] = lambda: None,
) -> None:
    """Serve a delivery until the process is stopped; over TLS with a certificate.

    Parameters
    ----------
    begun
        Called once the address is its own.

    Raises
    ------
    DeliveryError
        If the address cannot be listened on.
    """
    limits = Limits(**vars(limits) | {"connections": most_connections(limits.connections, raise_file_limit())})
    try:
        listener = listening(host, port)
    except DeviceError as error:
        raise DeliveryError(str(error)) from error
    with listener:
        begun()
        server(delivery, limits, ssl_certfile=certificate, ssl_keyfile=private_key).run([listener])


def server(delivery: Delivery, limits: Limits, seconds: float = _SECONDS_BETWEEN_CHECKS, **options: object) -> Server:
    """Return the server of a delivery; its ``run`` takes sockets to serve."""
    return Server(application(delivery, seconds), limits, **options)


class _Targets(StaticFiles):
    """Serves only files with names of targets."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Return a target's file."""
        try:
            return super().lookup_path(path) if _TARGET.fullmatch(path) else ("", None)
        except OSError:
            return "", None


def _refused(sentence: str, status: int) -> Response:
    # The rest of the body may be on its way: what follows on this connection is no request.
    return JSONResponse({"error": sentence}, status, None if status == 400 else {"Connection": "close"})


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _keep_up(delivery: Delivery, seconds: float, over: threading.Event) -> None:
    said: set[str] = set()
    while not over.is_set():
        try:
            lines = delivery.keep_up()
        except FleetError as error:
            lines = [str(error)]
        except Exception:  # a defect of ours, or a machine without memory: the next check may go well
            logger.exception("The upkeep of the repository failed because of a bug")
            lines = []
        for line in lines:
            if line not in said:
                logger.warning("%s", line)
        said = set(lines)
        over.wait(seconds)
