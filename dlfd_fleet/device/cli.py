"""The ``dlfd-fleet-device`` command: the agent, and an exported model by itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from dlfd_fleet.answers import NO_LABEL, decided
from dlfd_fleet.device import agent_commands
from dlfd_fleet.device.inference import DeviceModel, read_image
from dlfd_fleet.exceptions import DeviceError, file_refusal
from dlfd_fleet.plain_text import PlainConsole, visible

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run the fleet's model on this device, and keep it up to date.",
)
for _command, _example in (
    (agent_commands.init, "init agent --url https://fleet.example --root root.json"),
    (agent_commands.run, "run agent"),
    (agent_commands.once, "once agent"),
    (agent_commands.status, "status agent"),
    (agent_commands.serve, "serve agent --port 8080"),
):
    app.command(epilog=f"Example: dlfd-fleet-device {_example}")(_command)

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file that dlfd-fleet exported.")]


@dataclass(frozen=True)
class _Prediction:
    file: str
    row: int | None
    """Of a file of rows; None of an image."""
    probabilities: NDArray[np.float32]


@app.command(epilog="Example: dlfd-fleet-device predict --folder agent face.png")
def predict(
    words: Annotated[
        list[Path],
        typer.Argument(
            metavar="[MODEL] FILE...",
            help="ONNX file (unless --folder is given), then image files, or .json or .csv files with rows of numbers.",
        ),
    ],
    folder: Annotated[Path | None, typer.Option(help="Device's folder; its model is used if it may run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of one prediction; not with --folder, which has its own.")
    ] = 1,
) -> None:
    """Print the class of every image or row of numbers, or the labels that apply to it."""
    model, files = _model_and_files(words, folder, threads)
    predictions, refused = list[_Prediction](), False
    for file in files:
        try:
            predictions += _predictions(model, file)
        except DeviceError as error:
            _say(error)
            refused = True
    if as_json:
        _print_json(model, predictions)
    elif predictions:
        _print_table(model, predictions)
    if refused:
        raise typer.Exit(2)


@app.command(epilog="Example: dlfd-fleet-device show model.onnx")
def show(file: ModelArgument) -> None:
    """Print what a model says of itself."""
    table = Table("key", "value")
    for key, value in DeviceModel(file).metadata.items():
        table.add_row(Text(key), Text(value, overflow="fold"))
    PlainConsole().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error of the user's is one sentence on stderr, its page, and exit code 2.

    Parameters
    ----------
    arguments
        Words of the command line; the process's own when omitted.
    """
    try:
        app(args=arguments, prog_name="dlfd-fleet-device")
    except DeviceError as error:
        _say(f"{error} See docs/how-to/device.md (dlfd-fleet explain device).")
        sys.exit(2)
    except OSError as error:
        refusal = file_refusal(error)
        if refusal is None:
            raise
        _say(refusal)
        sys.exit(2)


def _predictions(model: DeviceModel, file: Path) -> list[_Prediction]:
    """Predict an image, or every row of a file.

    Raises
    ------
    DeviceError
        If the file cannot be used; then nothing of it is predicted.
    """
    if model.input.is_image:
        return [_Prediction(_shown(file), None, model.predict(read_image(file, model.input)[np.newaxis])[0])]
    from dlfd_fleet.device.rows import read_rows

    said = model.predict(read_rows(file, model.input))
    return [_Prediction(_shown(file), number, each) for number, each in enumerate(said, start=1)]


def _model_and_files(words: list[Path], folder: Path | None, threads: int) -> tuple[DeviceModel, list[Path]]:
    if folder is None:
        if len(words) == 1:
            raise DeviceError(f"Give images after the model {words[0]}, or the device's folder with --folder.")
        return DeviceModel(words[0], threads), words[1:]
    from dlfd_fleet.device.folder import DeviceFolder
    from dlfd_fleet.device.reading import allowed_model

    return allowed_model(DeviceFolder(folder)), words


def _print_json(model: DeviceModel, predictions: Sequence[_Prediction]) -> None:
    rows = []
    for prediction in predictions:
        probabilities = dict(zip(model.classes, prediction.probabilities.tolist(), strict=True))
        said = _said(model, prediction)
        answer: dict[str, object] = {"labels": list(said)}
        if not model.multi_label:
            ((name, probability),) = said.items()
            answer = {"class": name, "probability": probability}
        of = {"image": prediction.file} if prediction.row is None else {"file": prediction.file, "row": prediction.row}
        rows.append({**of, **answer, "probabilities": probabilities})
    typer.echo(json.dumps({"version": model.version, "epoch": model.epoch, "predictions": rows}, indent=2))


def _said(model: DeviceModel, prediction: _Prediction) -> dict[str, float]:
    """Return the class of an image, or the labels that apply, and their probabilities."""
    said = decided(prediction.probabilities[np.newaxis], multi_label=model.multi_label)
    numbers = np.flatnonzero(said[0]) if model.multi_label else said
    return {model.classes[number]: float(prediction.probabilities[number]) for number in numbers.tolist()}


def _print_table(model: DeviceModel, predictions: Sequence[_Prediction]) -> None:
    what = "image" if model.input.is_image else "row"
    table = Table(what, "labels" if model.multi_label else "class", "probability")
    for prediction in predictions:
        said = _said(model, prediction)
        probabilities = "\n".join(f"{probability:.3f}" for probability in said.values())
        names = Text("\n".join(map(visible, said)) or NO_LABEL, overflow="fold")
        name = prediction.file if prediction.row is None else f"{prediction.file}, row {prediction.row}"
        table.add_row(Text(name, overflow="fold"), names, Text(probabilities))
    PlainConsole().print(table)


def _say(error: object) -> None:
    typer.echo(visible(str(error)), err=True)


def _shown(value: object) -> str:
    """Return text that any terminal takes: a file name on Linux need not be Unicode."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
