"""The server of a fleet without a web server of its own: the repository's files, and a place to POST reports to.

Nothing here is trusted: devices verify what they get, and reports are signed. Another static file server may serve the
repository instead, with this one for the reports.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dlfd_fleet.delivery.delivery import Delivery
from dlfd_fleet.device.contract import REPORTS_PATH
from dlfd_fleet.exceptions import DeliveryError, FleetError, ReportRefusedError, ReportRepeatedError

logger = logging.getLogger(__name__)
LARGEST_REPORT = 2**20
_SECONDS_BETWEEN_LOOKS = 5.0
_BACKLOG = 4096


def application(delivery: Delivery, seconds: float = _SECONDS_BETWEEN_LOOKS) -> Starlette:
    """Return the ASGI application of a delivery.

    Parameters
    ----------
    seconds
        Between two looks at what would expire, and at how devices fare with a rollout.
    """
    metadata, targets = delivery.repository.served / "metadata", delivery.repository.served / "targets"
    # The database has one writer. Reports that wait for it here hold no thread, which files are served by.
    one_at_a_time = asyncio.Lock()

    async def send_metadata(request: Request) -> Response:
        # Read at once: the timestamp is replaced while it is served.
        content = await run_in_threadpool(_read, metadata / request.path_params["name"])
        if content is None:
            raise HTTPException(404)
        return Response(content, media_type="application/json", headers={"Cache-Control": "no-cache"})

    async def take_report(request: Request) -> Response:
        content = b""
        async for chunk in request.stream():
            content += chunk
            if len(content) > LARGEST_REPORT:
                return JSONResponse({"error": f"A report has at most {LARGEST_REPORT} bytes."}, 413)
        try:
            async with one_at_a_time:
                await run_in_threadpool(delivery.receive, content)
        except ReportRepeatedError:
            pass  # its device sends it until it hears that it was taken; whoever else does has changed nothing
        except ReportRefusedError as error:
            return JSONResponse({"error": str(error)}, 400)
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
        Mount("/targets", StaticFiles(directory=targets, check_dir=False)),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def check_tls(certificate: Path | None, private_key: Path | None) -> None:
    """Refuse a certificate and a key that TLS cannot be served with; neither of them is no TLS.

    Raises
    ------
    DeliveryError
        If one is missing, cannot be read, or the key is not the certificate's.
    """
    if certificate is None and private_key is None:
        return
    if certificate is None or private_key is None:
        raise DeliveryError("TLS needs a certificate and its key: give both --tls-certificate and --tls-key.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key)
    except OSError as error:  # an SSLError is one, too
        raise DeliveryError(
            f"TLS cannot be served with {certificate} and {private_key} ({error}): give a certificate chain and the "
            "private key of its first certificate, both in PEM."
        ) from error


def serve(
    delivery: Delivery, host: str, port: int, certificate: Path | None = None, private_key: Path | None = None
) -> None:
    """Serve a delivery until somebody stops the process; with a certificate, over TLS."""
    uvicorn.run(
        application(delivery),
        host=host,
        port=port,
        backlog=_BACKLOG,
        log_level="warning",
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
    )


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes() if file.suffix == ".json" else None
    except OSError:
        return None


def _keep_up(delivery: Delivery, seconds: float, over: threading.Event) -> None:
    said: set[str] = set()
    while not over.is_set():
        try:
            lines = delivery.keep_up()
        except FleetError as error:
            lines = [str(error)]
        for line in lines:
            if line not in said:
                logger.warning(line)
        said = set(lines)
        over.wait(seconds)
