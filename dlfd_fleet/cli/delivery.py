"""``dlfd-fleet delivery``: the signed repository that devices update from, and the devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlfd_fleet.cli.options import Config, Overrides, console, load

app = typer.Typer(no_args_is_help=True, help="Manage the signed repository and its devices.")

Keys = Annotated[list[Path] | None, typer.Option("--keys", help="Another folder of private keys; may be repeated.")]
NewKeys = Annotated[
    Path | None, typer.Option("--new-keys", help="Folder for new private keys; default: that of the delivery.")
]
Role = Annotated[str, typer.Argument(help="root, targets, snapshot, timestamp or rollout.")]


@app.command("init", epilog="Example: dlfd-fleet delivery init")
def init(new_keys: NewKeys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Make an empty repository and its keys."""
    from dlfd_fleet.delivery.contents import OFFLINE
    from dlfd_fleet.delivery.delivery import KEYS, opened
    from dlfd_fleet.delivery.repository import TRUSTED_ROOT

    with opened(load(config, overrides).settings, create=True) as delivery:
        folder = delivery.repository.folder
        delivery.repository.create(new_keys or folder / KEYS)
    _say(f"The repository is {folder / 'repository'}; each device gets a copy of {folder / TRUSTED_ROOT}.")
    _say(
        f"Private keys are in {new_keys or folder / KEYS}. Move those of {' and '.join(OFFLINE)} to media of their "
        "own: they are needed to publish and to change keys, and named then with --keys."
    )


def publish(
    version: Annotated[str, typer.Argument(help="A job's name, a version of the registry, or champion.")],
    rings: Annotated[
        bool, typer.Option("--rings", help="Offer it to no device before `rollout start`; otherwise to all at once.")
    ] = False,
    formats: Annotated[
        str | None, typer.Option(help="File formats, separated by commas; default: all that were released.")
    ] = None,
    keys: Keys = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Sign the files of a released model as what devices are to run."""
    from dlfd_fleet.delivery.delivery import opened
    from dlfd_fleet.delivery.publish import publish as sign
    from dlfd_fleet.federation.jobs import command
    from dlfd_fleet.federation.release.publication import as_formats, released_model

    settings = load(config, overrides).settings
    with command.opened(settings.state_folder) as store:
        model = released_model(store, settings, version, as_formats(formats))
    with opened(settings, keys or ()) as delivery:
        done = sign(delivery.repository, delivery.devices, model, rings=rings)
    for target in done.targets:
        _say(target)
    _say(
        f"Publication {done.sequence}: {model.version}, epoch {model.epoch}. "
        + ("No device gets it before `dlfd-fleet rollout start`." if rings else "Every device may take it.")
    )


@app.command("rotate", epilog="Example: dlfd-fleet delivery rotate targets")
def rotate(
    role: Role, keys: Keys = None, new_keys: NewKeys = None, config: Config = None, overrides: Overrides = None
) -> None:
    """Replace all keys of a role; needs the root's keys, for `rollout` the releases'."""
    from dlfd_fleet.delivery.contents import as_role
    from dlfd_fleet.delivery.delivery import KEYS, opened

    with opened(load(config, overrides).settings, keys or ()) as delivery:
        folder = new_keys or delivery.repository.folder / KEYS
        delivery.repository.rotate(as_role(role), folder)
    _say(f"New keys of '{role}' are in {folder}; destroy the old ones.")


@app.command("refresh", epilog="Example: dlfd-fleet delivery refresh")
def refresh(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Sign again what would expire, and abort a rollout under which devices fail; `serve` does it by itself."""
    from dlfd_fleet.delivery.delivery import opened

    with opened(load(config, overrides).settings, keys or ()) as delivery:
        for line in delivery.keep_up(only_due=False):
            _say(line)
        until = delivery.repository.read().timestamp.signed.expires
    _say(f"The repository is fresh until {until:%Y-%m-%d %H:%M} UTC.")


@app.command("status", epilog="Example: dlfd-fleet delivery status")
def status(keys: Keys = None, config: Config = None, overrides: Overrides = None) -> None:
    """Show what is signed, what devices run, and what keeps each erasure open."""
    from dlfd_fleet.delivery.delivery import opened
    from dlfd_fleet.delivery.status import delivery_status

    with opened(load(config, overrides).settings, keys or ()) as delivery:
        console.print(delivery_status(delivery), highlight=False)


@app.command("serve", epilog="Example: dlfd-fleet delivery serve --host 127.0.0.1 --port 8300")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8300,
    tls_certificate: Annotated[Path | None, typer.Option(exists=True, help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(exists=True, help="Its private key, PEM.")] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Serve the repository and take devices' reports, until stopped; keeps the repository fresh meanwhile."""
    from dlfd_fleet.delivery.delivery import opened
    from dlfd_fleet.delivery.server import serve as run
    from dlfd_fleet.device.connections import check_tls

    check_tls(tls_certificate, tls_key)
    with opened(load(config, overrides).settings) as delivery:
        delivery.repository.read()
        where = f"http{'s' if tls_certificate else ''}://{host}:{port}"

        def begun() -> None:
            _say(f"Serving {delivery.repository.served} at {where}")

        run(delivery, host, port, tls_certificate, tls_key, begun=begun)


@app.command("enroll", epilog="Example: dlfd-fleet delivery enroll camera/device.pub --name camera --canary")
def enroll(
    public_key: Annotated[Path, typer.Argument(help="The device's public key, PEM.")],
    name: Annotated[str, typer.Option(help="Name of the device.")],
    canary: Annotated[bool, typer.Option("--canary", help="The device takes new releases before others.")] = False,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Take a device into the fleet: its reports count, and it keeps erasures open until it has purged."""
    from dlfd_fleet.delivery.delivery import opened
    from dlfd_fleet.delivery.keys import read_public_key

    with opened(load(config, overrides).settings) as delivery:
        device = delivery.devices.enroll(read_public_key(public_key), name, delivery.clock(), canary=canary)
    _say(f"{name} is in the fleet, as {device}.")


@app.command("retire", epilog="Example: dlfd-fleet delivery retire camera --reason 'stolen on 3 May'")
def retire(
    device: Annotated[str, typer.Argument(help="Name or id of the device, or the beginning of its id.")],
    reason: Annotated[str, typer.Option(help="Why the device is retired; signed and kept.")],
    keys: Keys = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Take a device out of the fleet, lost or scrapped: it keeps no erasure open any more."""
    from dlfd_fleet.delivery.delivery import opened

    with opened(load(config, overrides).settings, keys or ()) as delivery:
        _say(f"{delivery.retire(device, reason).name} is retired: {reason}")


def _say(line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False)
