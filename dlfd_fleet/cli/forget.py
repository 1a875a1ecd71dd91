"""``dlfd-fleet forget``: the requests of one site."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlfd_fleet.cli.options import By, Config, Overrides, console, decided_by, load, say_archive

if TYPE_CHECKING:
    from datetime import date

    from dlfd_fleet.ledger import ForgetRequest

app = typer.Typer(no_args_is_help=True, help="Forget requests of one site.")

SiteFolder = Annotated[Path, typer.Option("--site", help="The site's folder.")]
Named = Annotated[
    str,
    typer.Argument(
        metavar="REQUEST|PERSON",
        help="Id of the request, 8 digits of it or more, the id that a job's report has for it, or the person's name.",
    ),
]


@app.command(
    "request",
    epilog="Example: dlfd-fleet forget request anna --site /srv/site --received 2026-11-20 --verified-by passport",
)
def request(
    person: Annotated[str, typer.Argument(help="Identity in the site's manifest.")],
    site: SiteFolder,
    received: Annotated[
        str | None, typer.Option(metavar="DAY", help="Day on which it came in: 2026-11-20; today by default.")
    ] = None,
    verified_by: Annotated[str, typer.Option(help="How the identity was verified; purged with the name.")] = "",
    note: Annotated[str, typer.Option(help="A note; purged with the name.")] = "",
    no_data: Annotated[
        bool, typer.Option("--no-data", help="Record that the site has no image of the person: received and answered.")
    ] = False,
    by: By = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Write a person's request to be forgotten into the site's ledger; any spelling of the name will do."""
    from dlfd_fleet.ledger import Site, request_forgetting
    from dlfd_fleet.ledger.site_uses import what_a_request_means

    days = load(config, overrides).settings.erasure.deadline_days
    with Site(site) as opened:
        accepted = request_forgetting(
            opened,
            person,
            deadline_days=days,
            received=None if received is None else _day(received, "--received"),
            verified_by=verified_by,
            note=note,
            done_by=decided_by(by),
            no_data=no_data,
        )
        meaning = () if no_data else what_a_request_means(opened, accepted)
    if no_data:
        console.print(
            f"Request {_short(accepted)} is recorded as received and answered: no data of this person is held. Tell "
            f"them: dlfd-fleet forget letter {_short(accepted)} --site {site} -o FILE",
            soft_wrap=True,
            highlight=False,
        )
        return
    console.print(f"Accepted as request {_short(accepted)}; to be done by {accepted.due}.")
    for sentence in meaning:
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)


@app.command("list", epilog="Example: dlfd-fleet forget list --site /srv/site --due-within 7d")
def list_requests(
    site: SiteFolder,
    state: Annotated[list[str] | None, typer.Option(help="In this state alone; may be repeated.")] = None,
    due_within: Annotated[
        str | None, typer.Option(metavar="DAYS", help="Open ones alone that are overdue, or due so soon: 7d.")
    ] = None,
    search: Annotated[str, typer.Option(help="With this text in the name, a note or the id.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the requests of a site: what is overdue or due soon comes first."""
    from datetime import UTC, datetime

    from dlfd_fleet.cli.request_tables import requests_table
    from dlfd_fleet.ledger import RequestState, Site
    from dlfd_fleet.ledger.status import find_requests, request_record

    states = [RequestState(_one_of(each.upper(), list(RequestState), "--state")) for each in state or ()]
    days, now = None if due_within is None else _days(due_within), datetime.now(UTC)
    with Site(site) as opened:
        found = find_requests(opened, now, states=states, due_within=days, search=search)
    if as_json:
        typer.echo(json.dumps([request_record(each, now) for each in found], indent=2))
    elif found:
        console.print(requests_table(found, now, console.width))
    else:
        console.print("There is no such request.")


@app.command("show", epilog="Example: dlfd-fleet forget show anna --site /srv/site")
def show(named: Named, site: SiteFolder) -> None:
    """Show a request, what keeps it open, and everything that happened to it."""
    from datetime import UTC, datetime

    from dlfd_fleet.cli.request_tables import history_table, request_facts
    from dlfd_fleet.ledger import Site
    from dlfd_fleet.ledger.status import what_keeps_open

    with Site(site) as opened:
        found = opened.find_request(named)
        events = opened.ledger.history(found.id)
        ids = {event.job: opened.job_request_id(found.id, event.job) for event in events if event.job}
        waits = what_keeps_open(opened, found)
    console.print(request_facts(found, events, waits, ids, datetime.now(UTC)))
    console.print()
    console.print(history_table(events))


@app.command(
    "extend",
    epilog="Example: dlfd-fleet forget extend anna --site /srv/site --months 1 --noticed 2026-12-01 --reason 'A move.'",
)
def extend(
    named: Named,
    site: SiteFolder,
    reason: Annotated[str, typer.Option(help="Why more time is needed, as the person was told it.")],
    noticed: Annotated[str, typer.Option(metavar="DAY", help="Day on which the person was told: 2026-12-01.")],
    until: Annotated[str | None, typer.Option(metavar="DAY", help="The new deadline: 2027-01-15.")] = None,
    months: Annotated[int | None, typer.Option(min=1, max=2, help="Or so many months after the deadline.")] = None,
    by: By = None,
) -> None:
    """Extend the deadline of an open request, by two months in all at most."""
    from dlfd_fleet.ledger import Site
    from dlfd_fleet.ledger import extend as extend_request

    with Site(site) as opened:
        found = extend_request(
            opened,
            opened.find_request(named).id,
            until=None if until is None else _day(until, "--until"),
            months=months,
            reason=reason,
            noticed=_day(noticed, "--noticed"),
            done_by=decided_by(by),
        )
    console.print(f"Request {_short(found)} is to be done by {found.due}.")


@app.command(
    "refuse",
    epilog="Example: dlfd-fleet forget refuse anna --site /srv/site --ground legal-claims --reason 'A court case.'",
)
def refuse(
    named: Named,
    site: SiteFolder,
    ground: Annotated[
        str,
        typer.Option(
            help="freedom-of-expression, legal-obligation, public-health, archiving, legal-claims, "
            "manifestly-unfounded, not-our-data or identity-not-verified."
        ),
    ],
    reason: Annotated[str, typer.Option(help="Why, as the person is told it.")],
    by: By = None,
) -> None:
    """Refuse a request, as long as no job works on it; the person is trained on as before, and may ask again."""
    from dlfd_fleet.ledger import Ground, Site
    from dlfd_fleet.ledger import refuse as refuse_request

    chosen = Ground(_one_of(ground, list(Ground), "--ground"))
    with Site(site) as opened:
        found = refuse_request(opened, opened.find_request(named).id, chosen, reason=reason, done_by=decided_by(by))
    console.print(
        f"Request {_short(found)} is refused; the person may be trained on again. Tell them, with the reason: "
        f"dlfd-fleet forget letter {_short(found)} --site {site} -o FILE",
        soft_wrap=True,
        highlight=False,
    )


@app.command("withdraw", epilog="Example: dlfd-fleet forget withdraw anna --site /srv/site")
def withdraw(
    named: Named,
    site: SiteFolder,
    reason: Annotated[str, typer.Option(help="Why, if the person said so; purged with the name.")] = "",
    by: By = None,
) -> None:
    """Take a request back, as long as no job works on it."""
    from dlfd_fleet.ledger import Site
    from dlfd_fleet.ledger import withdraw as withdraw_request

    with Site(site) as opened:
        found = withdraw_request(opened, opened.find_request(named).id, reason=reason, done_by=decided_by(by))
    console.print(
        f"Request {_short(found)} is withdrawn; the person may be trained on again. Other sites that an earlier job "
        "told of it take theirs back in the next one."
    )


@app.command("letter", epilog="Example: dlfd-fleet forget letter anna --site /srv/site -o letter.html")
def letter(
    named: Named,
    site: SiteFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to print.")],
    stage: Annotated[
        str | None,
        typer.Option(
            help="received, extended, refused, withdrawn, no-data or forgotten; by default what it has come to."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Whom the letter is to; by default the ledger's name, as long as it has one.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DAY", help="Before an extension is recorded: the new deadline it will have.")
    ] = None,
    months: Annotated[int | None, typer.Option(min=1, max=2, help="Or so many months after the deadline.")] = None,
    reason: Annotated[str | None, typer.Option(help="Of that extension: why more time is needed.")] = None,
    by: By = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Write a letter to the person, and note in the history that it was printed.

    With --months or --until, and --reason, it tells of an extension before that is recorded.
    """
    from dlfd_fleet.desk import Stage, write_letter
    from dlfd_fleet.ledger import Site, plan_extension

    settings = load(config, overrides).settings.desk
    chosen = None if stage is None else Stage(_one_of(stage, list(Stage), "--stage"))
    with Site(site) as opened:
        found = opened.find_request(named)
        planned = None
        if any(given is not None for given in (until, months, reason)):
            last = None if until is None else _day(until, "--until")
            planned = plan_extension(opened, found.id, until=last, months=months, reason=reason or "")
        written = write_letter(
            opened, found, output, settings, stage=chosen, name=name, planned=planned, done_by=decided_by(by)
        )
    console.print(f"The letter '{written}' of request {_short(found)} is in {output}.", soft_wrap=True, highlight=False)
    if planned is not None:
        console.print(
            f"It is a draft: nothing is recorded. Send it by {found.due}. Then record it: dlfd-fleet forget extend "
            f"{_short(found)} --site {site} --until {planned.due} --noticed DAY --reason …",
            soft_wrap=True,
            highlight=False,
        )


@app.command(
    "export",
    epilog="Example: dlfd-fleet forget export --site /srv/site --from 2026-01-01 --to 2026-12-31 -o 2026.zip",
)
def export(
    site: Annotated[Path | None, typer.Option("--site", help="The site's folder.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="First day: 2026-01-01.")] = None,
    last: Annotated[
        str | None,
        typer.Option("--to", metavar="DAY", help="Last day: 2026-12-31. If it is to come, the archive ends today."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="ZIP archive to write.")] = None,
    with_names: Annotated[
        bool, typer.Option("--with-names", help="Write names and texts, too, of people who are not purged yet.")
    ] = False,
    verify: Annotated[Path | None, typer.Option(help="Check an archive instead, offline.")] = None,
    key: Annotated[Path | None, typer.Option(help="Of --verify: public key (PEM) of the site that you trust.")] = None,
    by: By = None,
) -> None:
    """Write a site's records of a period as a signed archive, or verify one; exit code 2 if it does not hold."""
    from dlfd_fleet.exceptions import ConfigurationError

    if verify is not None:
        if key is None or site or first or last or output or with_names or by:
            raise ConfigurationError("To verify an archive, write --verify ARCHIVE --key PUBLIC.pem, and nothing else.")
        _verify_archive(verify, key)
        return
    if site is None or first is None or last is None or output is None or key is not None:
        raise ConfigurationError(
            "To export records, write --site FOLDER --from DAY --to DAY -o ARCHIVE; to check some, --verify ARCHIVE "
            "--key PUBLIC.pem."
        )
    from dlfd_fleet.desk import write_records
    from dlfd_fleet.desk.records import KEY_FILE
    from dlfd_fleet.ledger import Site
    from dlfd_fleet.report import public_key_file

    with Site(site) as opened:
        end = _day(last, "--to")
        records = write_records(
            opened, output, _day(first, "--from"), end, with_names=with_names, done_by=decided_by(by)
        )
    say_archive(output, records, end)
    if with_names:
        console.print(f"It holds names: delete {output} when they must be forgotten.", soft_wrap=True, highlight=False)
    public = public_key_file(site / KEY_FILE)
    console.print(
        f"To verify it: dlfd-fleet forget export --verify {output} --key {public}", soft_wrap=True, highlight=False
    )


@app.command("exports", epilog="Example: dlfd-fleet forget exports --site /srv/site")
def exports(site: SiteFolder) -> None:
    """List who exported records of the site: when, of which period, to where, and whether names were in it."""
    from dlfd_fleet.cli.request_tables import exports_table
    from dlfd_fleet.ledger import Site

    with Site(site) as opened:
        found = opened.ledger.exports()
    console.print(exports_table(found) if found else "Nobody has exported records yet.")


def _verify_archive(file: Path, key: Path) -> None:
    from dlfd_fleet.report import load_public_key
    from dlfd_fleet.report.archive import verify_archive

    claims = verify_archive(file, load_public_key(key)).predicate
    counts = ", ".join(f"{name} {number}" for name, number in claims.rows.items())
    console.print(
        f"Records of {claims.holder} from {claims.begin} to {claims.end}: {counts}.", soft_wrap=True, highlight=False
    )
    console.print("Verified: every file is as the holder of this key signed it.", soft_wrap=True, highlight=False)


def _short(request: ForgetRequest) -> str:
    from dlfd_fleet.ledger.site import SHORTEST_ID

    return request.id[:SHORTEST_ID]


def _day(text: str, option: str) -> date:
    from dlfd_fleet.ledger.dates import day_of

    return day_of(text, option)


def _days(text: str) -> int:
    from dlfd_fleet.exceptions import ConfigurationError

    number = text.removesuffix("d")
    if not (number.isascii() and number.isdigit() and len(number) <= 4):
        raise ConfigurationError(f"--due-within is '{text}'; write a number of days, such as 7d.")
    return int(number)


def _one_of(text: str, names: list[str], option: str) -> str:
    from dlfd_fleet.exceptions import ConfigurationError

    if text not in names:
        raise ConfigurationError(f"{option} is '{text}'; write one of {', '.join(names)}.")
    return text
