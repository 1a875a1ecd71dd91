"""``dlfd-fleet registry``: the versions of the model in MLflow."""

from __future__ import annotations

from typing import Annotated

import typer

from dlfd_fleet.cli.options import By, Config, Overrides, console, decided_by, load

app = typer.Typer(no_args_is_help=True, help="List, promote, revoke and import registered versions.")

Version = Annotated[str, typer.Argument(help="Number of the version.")]


@app.command("list", epilog="Example: dlfd-fleet registry list --history")
def list_versions(
    history: Annotated[
        bool, typer.Option("--history", help="Show all promotions instead: when, by whom, why.")
    ] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """List the registered versions, those that were purged too, and which may run."""
    from dlfd_fleet.federation.release.promotion import promotion_table, registry_table

    settings = load(config, overrides).settings
    console.print(promotion_table(settings) if history else registry_table(settings))


@app.command("import", epilog="Example: dlfd-fleet registry import my-model")
def import_model(
    source: Annotated[
        str, typer.Argument(help="Folder of model.safetensors and card.json, or models:/NAME/VERSION of MLflow.")
    ],
    by: By = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Make a model that exists already the champion of epoch 0: jobs train on from it, and erase from it."""
    from dlfd_fleet.federation.jobs.import_model import import_model as imported
    from dlfd_fleet.progress import ConsoleProgress

    record = imported(load(config, overrides).settings, source, ConsoleProgress(console), decided_by(by))
    console.print(
        f"{source} is the champion, epoch 0, as an fp32 file (job {record.job}).", soft_wrap=True, highlight=False
    )


@app.command("promote", epilog="Example: dlfd-fleet registry promote 4 --reason 'read by the privacy officer'")
def promote(
    version: Version,
    reason: Annotated[str, typer.Option(help="Why; it is kept in the history.")],
    by: By = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Make a version the champion; not one that remembers forgotten people, is revoked, or failed its audit."""
    from dlfd_fleet.federation.release import promotion

    promoted = promotion.promote(load(config, overrides).settings, version, decided_by(by), reason)
    console.print(
        f"Version {version} of job {promoted.job}, epoch {promoted.epoch}, is the champion.",
        soft_wrap=True,
        highlight=False,
    )


@app.command("revoke", epilog="Example: dlfd-fleet registry revoke 3 --reason 'trained on the wrong images' --purge")
def revoke(
    version: Version,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the version.")],
    purge: Annotated[
        bool | None, typer.Option("--purge/--keep-files", help="Delete its files; default: release.purge_revoked.")
    ] = None,
    by: By = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Revoke a version: it never runs again. Its files are deleted, and the store is searched for them."""
    from dlfd_fleet.federation.release import promotion

    settings = load(config, overrides).settings
    also_purge = settings.release.purge_revoked if purge is None else purge
    purged = promotion.revoke(settings, version, reason, also_purge=also_purge, who=decided_by(by))
    console.print(f"Version {version} is revoked.", highlight=False)
    if purged is not None:
        console.print(
            f"Its {len(purged.digests)} files of weights are deleted; none of their digests is among the "
            f"{purged.searched} files of the artifact store.",
            soft_wrap=True,
            highlight=False,
        )
