"""A desk on its address, until somebody stops the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette

from dlfd_fleet.desk.access import Access, Rules
from dlfd_fleet.desk.pages import Pages
from dlfd_fleet.device.connections import Limits, Server, check_tls, listening
from dlfd_fleet.exceptions import ConfigurationError, DeviceError

LIMITS = Limits(connections=128)


def guarded(application: Starlette, rules: Rules, pages: Pages, port: int) -> Access:
    """Return a desk that lets in whom the rules let in."""
    return Access(application, rules, pages, f"desk-{port}")  # cookies are of a host, whatever its port


def serve(
    desk: Access, host: str, port: int, certificate: Path | None, private_key: Path | None, begun: Callable[[], None]
) -> None:
    """Serve a desk until somebody stops the process; with a certificate, over TLS.

    Parameters
    ----------
    begun
        Called once the address is its own.

    Raises
    ------
    ConfigurationError
        If the address cannot be listened on.
    """
    check_tls(certificate, private_key)
    try:
        listener = listening(host, port)
    except DeviceError as error:
        raise ConfigurationError(str(error)) from error
    with listener:
        begun()
        # Whoever wants to name another address than their own would only have to send a header.
        options = {"ssl_certfile": certificate, "ssl_keyfile": private_key, "proxy_headers": False}
        Server(desk, LIMITS, **options).run([listener])
