"""``dlfd-fleet forget``: the requests of one site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dlfd_fleet.cli.options import Config, Overrides, console, load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from dlfd_fleet.ledger import ForgetRequest

app = typer.Typer(no_args_is_help=True, help="Forget requests of one site.")

SiteFolder = Annotated[Path, typer.Option("--site", help="The site's folder.")]


@app.command("request", epilog="Example: dlfd-fleet forget request anna --site /srv/site")
def request(
    person: Annotated[str, typer.Argument(help="Identity in the site's manifest.")],
    site: SiteFolder,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Write a person's request to be forgotten into the site's ledger; any spelling of the name will do."""
    from dlfd_fleet.ledger.site import Site, request_forgetting
    from dlfd_fleet.ledger.site_uses import what_a_request_means

    days = load(config, overrides).settings.erasure.deadline_days
    with Site(site) as opened:
        accepted = request_forgetting(opened, person, deadline_days=days)
        meaning = what_a_request_means(opened, accepted)
    console.print(f"Accepted as request {accepted.id}; to be done by {accepted.deadline:%Y-%m-%d}.")
    for sentence in meaning:
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)


@app.command("list", epilog="Example: dlfd-fleet forget list --site /srv/site")
def list_requests(site: SiteFolder) -> None:
    """List the requests of a site, with their deadlines."""
    from datetime import UTC, datetime

    from dlfd_fleet.ledger.site import Site

    with Site(site) as opened:
        requests = opened.ledger.requests()
    console.print(requests_table(requests, datetime.now(UTC)))


@app.command("show", epilog="Example: dlfd-fleet forget show REQUEST --site /srv/site")
def show(
    request: Annotated[str, typer.Argument(help="Id of the request, or the one that a job's report has for it.")],
    site: SiteFolder,
) -> None:
    """Show a request and everything that happened to it."""
    from datetime import UTC, datetime

    from dlfd_fleet.ledger.site import Site

    with Site(site) as opened:
        found = opened.find_request(request)
        events = opened.ledger.history(found.id)
        ids = {event.job: opened.job_request_id(found.id, event.job) for event in events if event.job}
    console.print(requests_table([found], datetime.now(UTC)))
    table = Table("at", "state", "reason", "job", "id in its report", "epoch")
    for event in events:
        epoch = "" if event.epoch is None else str(event.epoch)
        row = (f"{event.at:%Y-%m-%d %H:%M:%S}", event.state, event.reason, event.job or "")
        table.add_row(*row, ids.get(event.job or "", ""), epoch)
    console.print(table)


@app.command("withdraw", epilog="Example: dlfd-fleet forget withdraw REQUEST --site /srv/site")
def withdraw(request: Annotated[str, typer.Argument(help="Id of the request.")], site: SiteFolder) -> None:
    """Take a request back, as long as no job works on it."""
    from dlfd_fleet.ledger.site import Site, withdraw

    with Site(site) as opened:
        found = withdraw(opened, request)
    console.print(
        f"Request {found.id} is withdrawn; the person may be trained on again. Other sites that an earlier job told of "
        "it take theirs back in the next one."
    )


def requests_table(requests: Sequence[ForgetRequest], now: datetime) -> Table:
    """Return requests with their states and deadlines."""
    table = Table()
    for name in ("request", "person", "state", "asked", "deadline", "job"):
        table.add_column(name, overflow="fold")
    for request in requests:
        deadline = f"{request.deadline:%Y-%m-%d}" + (" OVERDUE" if request.overdue(now) else "")
        row = (request.id, request.identity or "(purged)", request.state, f"{request.requested_at:%Y-%m-%d}")
        table.add_row(*row, deadline, request.job or "")
    return table
