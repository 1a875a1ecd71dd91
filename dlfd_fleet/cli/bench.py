"""The benchmarks."""

from __future__ import annotations

from typing import Annotated

import typer

from dlfd_fleet.cli.options import Config, Overrides, console, load

app = typer.Typer(no_args_is_help=True, help="Compare DLFD with its peers, whole fleets, device files; measure load.")

Methods = Annotated[str, typer.Option(help="'all', or names separated by commas.")]
Seeds = Annotated[int, typer.Option(min=1, help="Number of splits and trainings to average over.")]
Budget = Annotated[str, typer.Option(help="Start nothing new after this time: 90s, 30m, 2h.")]
Data = Annotated[str | None, typer.Option(help="A data source ('orl') or a manifest; default: that of the settings.")]


@app.command(epilog="Example: dlfd-fleet bench methods --methods dlfd,msg --seeds 2 --budget 20m")
def methods(
    data: Data = None,
    methods: Methods = "all",
    seeds: Seeds = 5,
    budget: Budget = "30m",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare DLFD with every peer and with retraining; run it again to go on where the budget ended."""
    from dlfd_fleet.bench.methods.command import methods_command

    methods_command(load(config, overrides, _source(data)).settings, methods, seeds, budget, console)


@app.command(epilog="Example: dlfd-fleet bench margins --models 20 --budget 1h")
def margins(
    data: Data = None,
    methods: Methods = "dlfd,dlfd+references",
    models: Annotated[int, typer.Option(help="Number of models of each kind.")] = 20,
    seeds: Seeds = 1,
    budget: Budget = "30m",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare what many models say with what as many retrained ones say, image by image: KLoM and U-LiRA."""
    from dlfd_fleet.bench.margins.command import margins_command

    margins_command(load(config, overrides, _source(data)).settings, methods, models, seeds, budget, console)


@app.command(epilog="Example: dlfd-fleet bench fleets --seeds 3 --budget 1h")
def fleets(
    data: Data = None,
    methods: Methods = "all",
    seeds: Seeds = 5,
    budget: Budget = "30m",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Compare whole fleets, on virtual nodes; run it again to go on where the budget ended."""
    from dlfd_fleet.bench.fleets.command import fleets_command

    fleets_command(load(config, overrides, _source(data)).settings, seeds, budget, console, methods)


@app.command(epilog="Example: dlfd-fleet bench devices")
def devices(data: Data = None, config: Config = None, overrides: Overrides = None) -> None:
    """Run one model in torch and in each format (export.formats, or all): latency, size, memory, accuracy, leak."""
    from dlfd_fleet.bench.devices.command import devices_command

    devices_command(load(config, overrides, _source(data)).settings, console)


@app.command(epilog="Example: dlfd-fleet bench sites 10,100,1000")
def sites(
    counts: Annotated[str, typer.Argument(help="Numbers of sites: 10,100,1000.")],
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Measure time and memory of the coordinator by its number of sites."""
    from dlfd_fleet.bench.load.sites import sites_command

    sites_command(load(config, overrides, {}).settings, counts, console)


@app.command(epilog="Example: dlfd-fleet bench memory 10000,100000")
def memory(
    counts: Annotated[str, typer.Argument(help="Numbers of images at the site: 10000,100000.")] = "100000",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Measure the highest memory of a site over its first epoch, by its number of images."""
    from dlfd_fleet.bench.load.memory import memory_command

    memory_command(load(config, overrides, {}).settings, counts, console)


@app.command(epilog="Example: dlfd-fleet bench life --erasures 100 --budget 2h")
def life(
    erasures: Annotated[int, typer.Option(min=1, help="How many erasures the fleet lives through.")] = 100,
    budget: Budget = "30m",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Let one fleet of 8 sites live through many erasures; run it again to go on where the budget ended."""
    from dlfd_fleet.bench.life.command import life_command

    life_command(load(config, overrides, {}).settings, erasures, budget, console)


@app.command(epilog="Example: dlfd-fleet bench polling 1000")
def polling(
    devices: Annotated[int, typer.Argument(min=1, help="Number of devices that poll.")],
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Measure the repository under the polls of so many devices."""
    from dlfd_fleet.bench.load.polling import polling_command

    polling_command(devices, load(config, overrides, {}).settings.state_folder / "bench-delivery", console)


def _source(data: str | None) -> dict[str, object]:
    if data is None:
        return {}
    from dlfd_fleet.data.sources import named

    return dict(named(data))
