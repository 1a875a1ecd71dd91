"""``dlfd-fleet certificate``: signed statements of what an erasure did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlfd_fleet.cli.options import console

if TYPE_CHECKING:
    from dlfd_fleet.report import Statement

app = typer.Typer(no_args_is_help=True, help="Signed certificates of erasures: read and verify them, offline.")

File = Annotated[Path, typer.Argument(help="certificate.json of a job.")]


@app.command("show", epilog="Example: dlfd-fleet certificate show certificate.json")
def show(file: File) -> None:
    """Print what a certificate says, without checking who signed it."""
    from dlfd_fleet.report import read

    _print(read(file))
    console.print("Not verified: anybody may have written this. `dlfd-fleet certificate verify` checks it.")


@app.command(
    "verify",
    epilog="Example: dlfd-fleet certificate verify certificate.json --key certificate.pub.pem --model model.onnx",
)
def verify(
    file: File,
    key: Annotated[Path, typer.Option(help="Public key (PEM) of the coordinator that you trust.")],
    model: Annotated[list[Path] | None, typer.Option(help="A model file that it is about; may be repeated.")] = None,
    report: Annotated[Path | None, typer.Option(help="The report.json that it was made from.")] = None,
) -> None:
    """Check a certificate, and say what it proves; exit code 2 if it does not hold."""
    from dlfd_fleet.report import certified, load_public_key
    from dlfd_fleet.report import verify as check

    statement, found = check(file, load_public_key(key), model or [], report)
    _print(statement)
    console.print("Verified.", style="bold")
    for path, name in zip(model or [], found, strict=True):
        console.print(f"{path} is its {name}, byte for byte.", soft_wrap=True, highlight=False)
    if report is not None:
        console.print(f"{report} is the report that it was made from.", soft_wrap=True, highlight=False)
    for sentence in certified(statement):
        console.print(sentence, soft_wrap=True, highlight=False)


def _print(statement: Statement) -> None:
    from rich.table import Table

    from dlfd_fleet.audit import margin_in_words

    claims = statement.predicate
    for line in (*claims.in_short, *claims.aimed_at, *filter(None, [claims.procedure])):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    margin = margin_in_words(claims.verdict.margin, claims.verdict.evidence)
    facts = {
        "job": claims.job,
        "issued": f"{claims.issued_at:%Y-%m-%d %H:%M:%S} UTC",
        "model": f"{claims.model}, epoch {claims.epoch}",
        "unlearned from": claims.parent_sha256 or "-",
        "verdict": f"{claims.verdict.outcome} (margin {margin}, power {claims.verdict.power:.2f})",
        "counts": ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in claims.counts.items()),
        "software": ", ".join(f"{name} {number}" for name, number in claims.software.items()),
        "settings": claims.settings_sha256,
        "report": claims.report_sha256,
    }
    facts |= {f"file {subject.name}": subject.digest.sha256 for subject in statement.subject}
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)
    requests = Table("request", "asked", "deadline", "served")
    for request in claims.requests:
        dates = [f"{day:%Y-%m-%d}" for day in (request.asked_at, request.deadline)]
        requests.add_row(request.request, *dates, "yes" if request.served else "no")
    console.print(requests)
    scores = Table("model", "MIA AUC [95%]", "test accuracy [95%]", "forget accuracy [95%]")
    for name, values in claims.scores.items():
        scores.add_row(name, *(_bounded(values, score) for score in ("mia_auc", "test_accuracy", "forget_accuracy")))
    console.print(scores)


def _bounded(values: dict[str, float], name: str) -> str:
    from dlfd_fleet.audit import Estimate
    from dlfd_fleet.report.page import score_text

    if name not in values:
        return "-"
    low, high = (values[f"{name}_{bound}"] for bound in ("low", "high"))
    return score_text(Estimate(value=values[name], low=low, high=high, standard_error=0.0))
