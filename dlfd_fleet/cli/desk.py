"""``dlfd-fleet desk``: the pages of a site's requests, or of a fleet's jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlfd_fleet.cli.job import Federation, FlowerApp, SuperLink
from dlfd_fleet.cli.options import By, Config, Overrides, console, decided_by, load

if TYPE_CHECKING:
    from dlfd_fleet.desk.coordinator_desk import CoordinatorDesk
    from dlfd_fleet.desk.site_desk import SiteDesk


def desk(
    site: Annotated[
        Path | None, typer.Option("--site", help="The site's folder; without it the desk is the coordinator's.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's needs a login.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8400,
    tls_certificate: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    logins: Annotated[
        bool, typer.Option("--logins", help="List who logged in with a token, and who failed to, instead of serving.")
    ] = False,
    by: By = None,
    app: FlowerApp = None,
    superlink: SuperLink = None,
    federation_config: Federation = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Serve a site's requests, or a fleet's jobs, as web pages."""
    from dlfd_fleet.desk.access import rules_of
    from dlfd_fleet.desk.login_record import LOGINS_FILE
    from dlfd_fleet.desk.serving import guarded, serve

    settings = load(config, overrides).settings
    logins_file = (settings.state_folder / "coordinator" if site is None else site) / LOGINS_FILE
    if logins:
        _list_logins(logins_file)
        return
    rules = rules_of(settings.desk, host, decided_by(by), over_tls=tls_certificate is not None, logins_file=logins_file)
    one: SiteDesk | CoordinatorDesk
    if site is not None:
        from dlfd_fleet.desk.site_desk import SiteDesk

        one = SiteDesk(site, settings)
    else:
        from dlfd_fleet.desk.coordinator_desk import CoordinatorDesk
        from dlfd_fleet.desk.starts import Starts, starting_options
        from dlfd_fleet.federation.records.store import require_folder

        require_folder(settings.state_folder)
        options, variables = starting_options(settings, config, app, superlink, federation_config)
        one = CoordinatorDesk(settings, Starts(settings.state_folder / "coordinator" / "starts", options, variables))
    name = f"[{host}]" if ":" in host else host

    def begun() -> None:
        place = f"http{'s' if tls_certificate else ''}://{name}:{port}"
        console.print(f"The desk is at {place}", soft_wrap=True, highlight=False)

    serve(guarded(one.application(), rules, one.pages, port), host, port, tls_certificate, tls_key, begun)


def _list_logins(file: Path) -> None:
    from dlfd_fleet.desk.login_record import LoginRecord
    from dlfd_fleet.plain_text import narrow_table

    found = LoginRecord(file).all()
    if not found:
        console.print(f"Nobody has logged in here yet: there is no login in {file}.", soft_wrap=True, highlight=False)
        return
    table = narrow_table("when", "who", "from", "what", folded={"who"})
    for each in found:
        when, what = f"{each.at.astimezone():%Y-%m-%d %H:%M}", "logged in" if each.succeeded else "wrong token"
        table.add_row(when, each.who or "nobody known", each.address, what)
    console.print(table)
