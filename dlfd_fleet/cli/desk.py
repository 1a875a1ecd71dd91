"""``dlfd-fleet desk``: the pages of a site's requests, or of a fleet's jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlfd_fleet.cli.options import By, Config, Overrides, console, decided_by, load


def desk(
    site: Annotated[Path, typer.Option("--site", help="The site's folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's needs a login.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8400,
    tls_certificate: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    by: By = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Serve the desk as web pages until stopped: the requests of a site, with names."""
    from dlfd_fleet.desk.access import rules_of
    from dlfd_fleet.desk.serving import guarded, serve
    from dlfd_fleet.desk.site_desk import SiteDesk

    settings = load(config, overrides).settings
    rules = rules_of(settings.desk, host, decided_by(by), over_tls=tls_certificate is not None)
    one = SiteDesk(site, settings)
    name = f"[{host}]" if ":" in host else host
    console.print(
        f"The desk is at http{'s' if tls_certificate else ''}://{name}:{port}", soft_wrap=True, highlight=False
    )
    serve(guarded(one.application(), rules, one.pages, port), host, port, tls_certificate, tls_key)
