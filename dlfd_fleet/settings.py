"""Every knob of dlfd-fleet, typed, in one tree; where values come from: :mod:`dlfd_fleet.configuration`."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dlfd_fleet.components import COMPONENT, Arguments, Component, ComponentName, LayerNames
from dlfd_fleet.model_input import Fit, ModelInput, Value, image_input
from dlfd_fleet.passwords import WHY_REFUSED, holds_password
from dlfd_fleet.registry import EntryName, name_in

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e12, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, le=1e12, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10**9)]
BatchSize = Annotated[int, Field(ge=2, le=10**6)]
Steps = Annotated[int, Field(ge=0, le=10**6)]
Precision = Literal["float32", "float16", "int8"]
Side = Annotated[int, Field(ge=1, le=4096)]
"""Pixels."""
Format = EntryName
"""Of :data:`dlfd_fleet.formats.FORMATS`, here or where a file or a message was written."""
_SOURCES, _FORMATS = "dlfd_fleet.data.sources:SOURCES", "dlfd_fleet.formats:FORMATS"
_METHODS, _NETWORKS = "dlfd_fleet.unlearning:METHODS", "dlfd_fleet.models:NETWORKS"
TORCHVISION_WEIGHTS = r"(?:(\w+_Weights)\.)?([A-Z][A-Z0-9_]*)"
"""A name of torchvision's weights: any other is a file's."""


def _words(value: object) -> object:
    """Take a list from a flag or a variable, where it is words separated by commas."""
    return tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value


def _asking(value: str) -> str:
    """Refuse what says neither how many people ask at how many sites, nor which share of all of them asks."""
    at, share = re.fullmatch(r"([1-9]\d{0,6})@([1-9]\d{0,6})", value), re.fullmatch(r"(\d{1,2}(?:\.\d+)?)%", value)
    if at is None and (share is None or float(share[1]) <= 0.0):
        raise ValueError(f"'{value}' says not who asks; write PEOPLE@SITES, such as 8@4, or a share, such as 5%")
    if at is not None and int(at[1]) % int(at[2]):
        raise ValueError(f"'{value}' cannot be dealt: as many people ask at each site, so set a multiple of {at[2]}")
    return value


def _table(value: object) -> object:
    """Take a table from a flag or a variable, where it is JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError('it is no table in JSON, such as {"width": 32}') from error
    _refuse_passwords_in(value)
    return value


def _refuse_passwords_in(value: object) -> None:
    """Refuse a text in a table that holds a password, by itself or beside its name."""
    left: list[tuple[str, object]] = [("", value)]
    while left:
        name, part = left.pop()
        if isinstance(part, str) and (holds_password(part) or holds_password(f"{name}={part}")):
            raise ValueError(WHY_REFUSED)
        if isinstance(part, dict):
            left += [(str(key), each) for key, each in part.items()]
        elif isinstance(part, list | tuple):
            left += [(name, each) for each in part]


def _height_and_width(value: object) -> object:
    """Take ``48x64`` from a flag or a variable."""
    if isinstance(value, str) and re.fullmatch(r"\d+x\d+", value.strip()):
        return tuple(int(side) for side in value.strip().split("x"))
    return value


def _sides(value: object) -> object:
    """Take ``30`` or ``8x8`` from a flag or a variable."""
    if isinstance(value, int):
        return (value,)
    if isinstance(value, str) and re.fullmatch(r"\d+(x\d+)*", value.strip()):
        return tuple(int(side) for side in value.strip().split("x"))
    return value


def _network(value: str) -> str:
    """Refuse a network that is neither registered nor named as a factory."""
    if re.fullmatch(COMPONENT, value):
        return value
    known = tuple(resolve_name(_NETWORKS).names())
    if value not in known:
        raise PydanticCustomError(
            "network",
            "it is none of {known}, and no factory of the form package.module:callable",
            {"known": ", ".join(known)},
        )
    return value


def _weights(value: str | None) -> str | None:
    """Mean the same file to a server that runs in another folder; torchvision's names stay as they are."""
    if value is None or re.fullmatch(TORCHVISION_WEIGHTS, value):
        return value
    return str(_can_be_a_path(Path(value).expanduser().absolute()))


def _without_password(value: object) -> object:
    """Refuse a text that holds a password, whatever setting it is for."""
    if isinstance(value, str | Path) and holds_password(str(value)):
        raise ValueError(WHY_REFUSED)
    for part in value if isinstance(value, list | tuple) else ():
        _without_password(part)
    return value


def _can_be_a_path(value: object) -> object:
    """Refuse a path that no system takes, whatever setting it is for."""
    if isinstance(value, Path):
        wrong = [sign for sign in str(value) if sign == "\0" or "\ud800" <= sign <= "\udfff"]
        if wrong:
            raise ValueError(f"it holds {wrong[0]!r}, which no path may hold; leave it out")
    return value


def _of_postgresql(value: str | None) -> str | None:
    if value is not None and not re.match(r"postgresql(\+\w+)?://", value):
        raise ValueError(
            "it cannot be used; write postgresql+psycopg://host/database, or leave it out for a SQLite file"
        )
    return value


def _tracking_uri(value: str | None) -> str | None:
    if value is not None and re.match("https?:", value, re.IGNORECASE) and re.search(r"[?#\s]", value):
        raise ValueError("the address of an MLflow server has no '?', no '#' and no blank")
    return value


_MOST_OF_A_NAME = 250
_NOT_IN_A_NAME = frozenset("'\"`\\")
_NOT_IN_A_MODEL_NAME = _NOT_IN_A_NAME | frozenset("/:@?#")


def _experiment_name(value: str) -> str:
    return _mlflow_name(value, _NOT_IN_A_NAME)


def _model_name(value: str) -> str:
    return _mlflow_name(value, _NOT_IN_A_MODEL_NAME)


def _mlflow_name(value: str, refused: frozenset[str]) -> str:
    """Refuse a name that MLflow refuses, or that its filters (``name = '…'``) and ``models:/NAME@ALIAS`` misread."""
    if not value or value != value.strip() or value in (".", ".."):
        raise ValueError("MLflow takes no empty name, no '.' or '..', and no blank at an end")
    if len(value) > _MOST_OF_A_NAME:
        raise ValueError(f"it has {len(value)} characters, and MLflow keeps {_MOST_OF_A_NAME} of a name")
    wrong = [sign for sign in value if sign in refused or not sign.isprintable()]
    if wrong:
        raise ValueError(
            f"it holds {wrong[0]!r}, which MLflow misreads in its filters and addresses; use letters, digits, blanks, "
            "'-', '_' and '.'"
        )
    return value


def _address(value: str | None) -> str | None:
    """Refuse what is no address of one machine."""
    if value is not None:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValueError(f"'{value}' is no IP address, such as 10.0.0.5") from None
    return value


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know, and passwords."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)

    _no_password = field_validator("*", mode="before")(_without_password)
    _path = field_validator("*", mode="after")(_can_be_a_path)


class DataSettings(Section):
    """The data source, the input, and how people are assigned to splits and sites."""

    source: Annotated[str, name_in(_SOURCES)] = Field(
        "orl",
        validate_default=False,
        description="Data source: orl, celeba, manifest, image-folders, parquet, npz, loader or another package's.",
    )
    manifest: Path | None = Field(
        None, description="Manifest, CSV or Parquet (source = manifest), or the file of source = parquet or npz."
    )
    root: Path | None = Field(None, description="Folder that image paths start from; for celeba the download folder.")
    folders: Literal["person/label", "label/person"] = Field(
        "person/label", description="Order of the folders above an image (source = image-folders)."
    )
    loader: ComponentName | None = Field(None, description="Loader of rows, package.module:callable (source = loader).")
    loader_arguments: Annotated[Arguments, BeforeValidator(_table)] = Field(
        default_factory=dict, description="Arguments of the loader; JSON in a flag or a variable."
    )
    links: Literal["refuse", "follow"] = Field(
        "refuse", description="How to treat images that are links out of their folder."
    )
    attribute: str = Field("Eyeglasses", description="CelebA attribute to classify.")
    image_size: Annotated[Side | tuple[Side, Side], BeforeValidator(_height_and_width)] = Field(
        64, description="Model input in pixels: the side of a square, or HEIGHTxWIDTH."
    )
    channels: Literal[1, 3] = Field(3, description="Channels of the model input: 3 (colour) or 1 (grey).")
    fit: Fit = Field("resize", description="How images of another aspect ratio fit: resize or crop.")
    multi_label: bool = Field(False, description="Whether an image may have several labels: 'hat;glasses', or 'none'.")
    numbers: Annotated[tuple[Side, ...] | None, BeforeValidator(_sides)] = Field(
        None, description="Shape of a model input that is no image, such as 30 or 8x8."
    )
    value_range: Annotated[tuple[Value, Value], BeforeValidator(_words)] = Field(
        (0.0, 1.0), description="Smallest and largest value that the network takes, such as -1,1."
    )
    validation_people: Count = Field(5, description="Number of people never trained on, for gates.")
    test_people: Count = Field(5, description="Number of people never trained on, for the final audit.")
    sites: Count = Field(4, description="Number of sites that share the training people.")

    @property
    def input(self) -> ModelInput:
        """The input of models for these rows."""
        low, high = self.value_range
        if self.numbers is not None:
            return ModelInput(shape=self.numbers, kind="numbers", low=low, high=high)
        return image_input(self.image_size, self.channels, self.fit, low, high)

    @model_validator(mode="after")
    def _input_can_be_one(self) -> DataSettings:
        _ = self.input
        return self

    @model_validator(mode="after")
    def _source_has_what_it_requires(self) -> DataSettings:
        if "source" in self.model_fields_set and (why := resolve_name(_SOURCES).find(self.source).why_not(self)):
            raise ValueError(why)
        return self


class ModelSettings(Section):
    """The classifier."""

    architecture: Annotated[str, AfterValidator(_network)] = Field(
        "resnet18",
        validate_default=False,
        description="torchvision backbone, or your own factory, package.module:callable.",
    )
    arguments: Annotated[Arguments, BeforeValidator(_table)] = Field(
        default_factory=dict, description="Arguments of the factory; JSON in a flag or a variable."
    )
    feature_layer: str | None = Field(
        None, description="Layer of your network whose output is the features; default: the last linear layer's input."
    )
    weights: Annotated[str | None, AfterValidator(_weights)] = Field(
        None,
        description="Starting weights: a .safetensors or weights-only file, or torchvision's, such as DEFAULT.",
    )
    frozen: Annotated[LayerNames, BeforeValidator(_words)] = Field(
        (), description="Frozen layers, separated by commas: not trained, and sent to a site once."
    )
    mean: Annotated[tuple[float, ...] | None, BeforeValidator(_words)] = Field(
        None, description="Mean for normalisation, one value or one a channel; default: the network's."
    )
    std: Annotated[tuple[float, ...] | None, BeforeValidator(_words)] = Field(
        None, description="Standard deviation for normalisation, like mean."
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.3, description="Dropout of the 512-256-128-C head.")

    @property
    def components(self) -> tuple[Component, ...]:
        """The factory, where there is one."""
        own = ":" in self.architecture
        return (Component(name=self.architecture, arguments=self.arguments),) if own else ()


class AugmentationSettings(Section):
    """Random changes of an image before each training step."""

    flip: Fraction = Field(0.0, description="Probability of a mirrored image.")
    shift: Annotated[int, Field(ge=0, le=4096)] = Field(0, description="Largest shift in pixels.")
    light: Fraction = Field(0.0, description="Largest change of contrast, and half of that of brightness.")


class TrainingSettings(Section):
    """Federated training of the original model, and of the retrained one."""

    start: Literal["champion", "fresh"] = Field(
        "champion", description="Start of a training job: the champion, if there is one, or fresh weights."
    )
    rounds: Count = Field(5, description="Rounds of federated averaging.")
    local_epochs: Count = Field(4, description="Epochs at a site in one round.")
    batch_size: BatchSize = Field(16, description="Images in a step.")
    learning_rate: Positive = Field(0.02, description="SGD step of round 1; cosine decay over the rounds.")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="SGD momentum.")
    weight_decay: Weight = Field(5e-4, description="SGD weight decay.")
    augmentation: AugmentationSettings = Field(default_factory=AugmentationSettings)


class UnlearningSettings(Section):
    """DLFD on one machine. Pixel units are fractions of the range [0, 1]."""

    max_rounds: Count = Field(4, description="Most rounds of distancing and repair.")
    distancing_steps: Count = Field(4, description="Batches of distancing in a round.")
    repair_epochs: Positive = Field(
        4.0,
        description="Passes over the retain images after distancing, such as 0.5; the rate falls to 0.",
    )
    strengthen: Annotated[float, Field(ge=1.0, le=1e6)] = Field(
        1.5, description="Factor on the next round's learning rate if the attack score did not move."
    )
    epochs: Positive = Field(3.0, description="Passes over the retain images, for methods without rounds.")
    batch_size: BatchSize = Field(32, description="Retain images a step.")
    learning_rate: Positive = Field(0.07, description="SGD step of distancing, and of methods without rounds.")
    repair_learning_rate: Positive = Field(0.02, description="SGD step of repair, at its start.")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="SGD momentum.")
    weight_decay: Weight = Field(5e-4, description="SGD weight decay.")
    ball: Fraction = Field(0.03, description="L-infinity bound of the noise, as a share of the pixel range.")
    step_size: Fraction = Field(0.02, description="Sign-gradient step of the noise, as a share of the pixel range.")
    steps: Steps = Field(2, description="Sign-gradient steps a batch.")
    forget_weight: Weight = Field(3.0, description="Weight of the transport distance.")
    retain_weight_start: Weight = Field(1.0, description="Weight of the classification loss at the start.")
    retain_weight_end: Weight = Field(1.0, description="Weight of the classification loss at the end.")
    sinkhorn_epsilon: Positive = Field(0.05, description="Entropic regularisation, cosine cost units.")
    sinkhorn_iterations: Count = Field(100, description="Most Sinkhorn iterations.")
    gate: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        0.05, description="Distancing stops at this AUC - 0.5 of the attack on validation people."
    )
    reference_gate: Fraction = Field(
        0.1,
        description="With references: share that may be left of what members show.",
    )
    own_gate: Fraction = Field(
        0.25, description="In a fleet without references: share of the way to the model's own answers that may be left."
    )
    max_utility_drop: Fraction = Field(
        0.02, description="Accuracy a checkpoint may lose, on validation people and on retained people."
    )
    max_seconds: Positive | None = Field(
        None,
        description="Time limit in seconds, with the monitor's readings; DLFD always finishes its first round.",
    )


class AuditSettings(Section):
    """Limits for audits and verdicts."""

    margin: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        0.10, description="Equivalence margin of the attack AUC around 0.5."
    )
    resamples: Annotated[int, Field(ge=200, le=10**6)] = Field(2000, description="Bootstrap resamples over people.")
    max_accuracy_drop: Fraction = Field(0.02, description="Test accuracy an unlearned model may lose.")
    max_retain_drop: Fraction = Field(0.05, description="Accuracy that it may lose on retained people.")
    min_gain_over_majority: Annotated[float, Field(ge=-1.0, le=1.0)] = Field(
        0.10, description="Balanced accuracy that a model must have above that of a constant answer; -1: no minimum."
    )


class SiteUnlearningSettings(UnlearningSettings):
    """A method at a site of a fleet, in one round; the coordinator repairs and has the gate."""

    epochs: Positive = Field(1.0, description="Passes over a site's retain images in one round.")
    batch_size: BatchSize = Field(16, description="Retain images a step.")
    learning_rate: Positive = Field(0.015, description="SGD step.")
    step_size: Fraction = Field(0.01, description="Sign-gradient step of the noise, as a share of the pixel range.")
    steps: Steps = Field(5, description="Sign-gradient steps a batch.")
    max_utility_drop: Fraction = Field(
        0.04, description="Accuracy a round may lose, on validation people and on retained people."
    )

    @model_validator(mode="after")
    def _refuse_what_only_one_machine_does(self) -> SiteUnlearningSettings:
        for name in ("max_rounds", "distancing_steps", "repair_epochs", "strengthen", "repair_learning_rate"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is of one machine (unlearning.{name}); a fleet has erasure.rounds, "
                    "erasure.repair_epochs and erasure.learning_rate"
                )
        return self


class ReferenceSettings(Section):
    """Models that never saw half of the people, and what they say of each image: what an erasure can aim at."""

    models: Annotated[int, Field(ge=0, le=64)] = Field(
        4, description="Number of reference models, in pairs of complementary halves of each site's people; 0: none."
    )
    with_training: bool = Field(
        False, description="Also train them after each training job; otherwise use `job start references`."
    )
    max_accuracy_drop: Fraction = Field(
        0.1,
        description="An erasure does not use references whose accuracy on people never trained on is lower than the "
        "model's by more than this, beyond chance.",
    )
    update_precision: Precision = Field(
        "int8",
        description="Precision of updates of reference models: differences in int8 or float16, or exact float32. "
        "Models go to sites as float16 differences from the champion, or whole with float32.",
    )
    expire: Literal["with-training", "never"] = Field(
        "with-training", description="Whether sites delete their answers once the fleet has trained another model."
    )

    @field_validator("models")
    @classmethod
    def _in_pairs(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"reference models come in pairs; set {value - 1} or {value + 1}")
        return value


class DueSettings(Section):
    """When `job start erase --if-due` starts a job. One of the three is enough, if somebody waits."""

    days_left: Annotated[int, Field(ge=0, le=366)] = Field(
        14, description="The earliest deadline is at most so many days away: then there is time to try again."
    )
    batch: Count = Field(8, description="So many requests wait: together they cost little more than one.")
    interval_days: Count = Field(7, description="So many days have passed since the last erasure began.")


class ErasureSettings(Section):
    """The erasure job."""

    deadline_days: Annotated[int, Field(ge=1, le=366)] = Field(
        28, description="Calendar days from receipt to the deadline; 28 is never more than a month."
    )
    due: DueSettings = Field(default_factory=DueSettings)
    way: Literal["unlearn", "retrain", "cheapest"] = Field(
        "unlearn",
        description="unlearn, retrain without the people (exact), or the cheapest of both.",
    )
    retrain_after: Count | None = Field(
        None, description="Erasures by unlearning since the last full training after which the next one trains anew."
    )
    retrain_drift: Fraction | None = Field(
        None, description="Test accuracy lost since the last full training above which the next erasure trains anew."
    )
    rounds: Count = Field(5, description="Most rounds of unlearning and repair in one attempt.")
    method: Annotated[str, name_in(_METHODS, "the package of another method must be installed here")] = Field(
        "dlfd",
        validate_default=False,
        description="Unlearning method of the sites: dlfd, or another registered one.",
    )
    unlearning: SiteUnlearningSettings = Field(default_factory=SiteUnlearningSettings)
    repair_epochs: Count = Field(2, description="Epochs on retain images in one round of repair.")
    repair_share: Fraction = Field(
        0.25,
        description="Share of the other sites that take part in a repair by need; with references also in further "
        "training, and in the audit of each file.",
    )
    learning_rate: Positive = Field(0.015, description="SGD step at the start of the first repair; it falls to 0.")
    augmentation: AugmentationSettings = Field(
        AugmentationSettings(flip=0.5, shift=4, light=0.2),
        description="Of images in an erasure that has nothing to aim at; otherwise it is that of training.",
    )
    own_answers: bool = Field(
        True,
        description="Without references: aim at what the model itself says of changed copies of the images to forget.",
    )
    relearning_rounds: Steps = Field(
        1, description="Ordinary rounds of training after which the unlearned model is attacked again."
    )
    max_attempts: Count = Field(
        1,
        description="Most attempts that aim at nothing, after those that do; each unlearns 1.5 times as long as the "
        "one before.",
    )
    largest_update: Positive = Field(
        1.0, description="Largest L2 norm of a site's update, as a multiple of the model's norm."
    )
    largest_forget_share: Fraction = Field(
        0.25, description="Share of the fleet's images that one site may ask to forget in a job."
    )
    compare_retrain: bool = Field(False, description="Also retrain without the people, to compare.")
    fallback_retrain: bool = Field(False, description="Retrain without the forgotten people if unlearning fails.")

    @model_validator(mode="after")
    def _method_runs_at_sites(self) -> ErasureSettings:
        if "method" in self.model_fields_set and (why := resolve_name(_METHODS).find(self.method).why_not_at_site):
            raise ValueError(why)
        return self


class FleetSettings(Section):
    """The sites of a job, and how long to wait for them."""

    least_sites: Count = Field(1, description="Number of sites that must be connected before a job starts.")
    connect_seconds: Positive = Field(60.0, description="Longest wait for these sites, seconds.")
    reply_timeout_seconds: Positive = Field(
        3600.0, description="Longest wait for replies of a round, seconds; a silent site leaves the job."
    )
    return_seconds: Positive = Field(
        120.0,
        description="Longest wait for a site whose process died, seconds; then the round goes on without it. As long "
        "`job start` waits for a SuperLink that does not answer.",
    )
    quorum: Fraction = Field(0.5, description="Share of the job's sites that must reply in a round; 1: all of them.")
    late_seconds: Positive | None = Field(
        1200.0,
        description="Longest wait for the others after a quorum, seconds; default: fleet.reply_timeout_seconds.",
    )
    registered_keys: bool = Field(
        True, description="Whether SuperNodes have registered keys; if so, a site with another key is refused."
    )
    largest_weight_ratio: Annotated[float, Field(gt=1.0, le=1e12)] = Field(
        10.0,
        description="Most images of a site, as a multiple of the others' median; a larger site counts by the median.",
    )
    largest_growth: Annotated[float, Field(gt=1.0, le=1e12)] = Field(
        3.0, description="Most images of a site, as a multiple of its count in the last job."
    )
    update_ratio: Annotated[float, Field(gt=1.0, le=1e12)] = Field(
        5.0,
        description="Largest L2 norm of an update, as a multiple of the others' median. A longer one is shortened; "
        "above the square of this, the site is left out.",
    )
    update_precision: Precision = Field(
        "float32", description="How models travel: exact (float32), or as differences in float16 or int8."
    )


class BenchSettings(Section):
    """The comparison of unlearning methods."""

    epochs: Count = Field(30, description="Epochs of the original and of each retrained model.")
    batch_size: BatchSize = Field(32, description="Images in a step of that training.")
    learning_rate: Positive = Field(0.02, description="SGD step of that training; cosine decay.")
    augmentation: AugmentationSettings = Field(
        AugmentationSettings(flip=0.5, shift=4, light=0.2),
        description="Random changes of images, in that training and in every method.",
    )
    forget_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.2, description="Share of the trained people to forget."
    )
    retrained: Annotated[int, Field(ge=3, le=10**6)] = Field(3, description="Retrained models for each seed.")
    requests: Annotated[
        tuple[Annotated[str, AfterValidator(_asking)], ...], BeforeValidator(_words), Field(min_length=1, max_length=32)
    ] = Field(
        ("4@2",),
        description="bench fleets: people who ask at a number of sites (8@4), or a share of all people (5%).",
    )
    time_limit: Positive = Field(
        0.2, description="Time limit of unlearning with its gate, as a share of a retraining's time."
    )
    jobs: Count = Field(2, description="Worker processes, which share the cores.")
    relearning_epochs: Count = Field(2, description="Epochs on retain images before the relearning attack.")
    relearning_rate: Positive = Field(0.01, description="SGD step of the relearning attack.")
    relearning_rounds: Count = Field(3, description="bench fleets: training rounds before the relearning attack.")
    device_rounds: Count = Field(40, description="bench devices: turns of each way to run a model.")
    device_predictions: Count = Field(10, description="Timed predictions in one turn.")


class ReleaseSettings(Section):
    """When the alias moves, and what becomes of the models before it."""

    on_inconclusive: Literal["release", "hold", "retrain"] = Field(
        "release", description="What to do with an INCONCLUSIVE verdict."
    )
    purge_revoked: bool = Field(
        True, description="Delete the files of models that remember forgotten people, in MLflow and the state folder."
    )
    certificate_key: Path | None = Field(
        None, description="Private Ed25519 key (PEM) that signs certificates; default: made in the state folder."
    )

    @field_validator("certificate_key")
    @classmethod
    def _from_anywhere(cls, value: Path | None) -> Path | None:
        """Mean the same file to a server that runs in another folder."""
        return value.expanduser().absolute() if value else None


class StorageSettings(Section):
    """What the coordinator's state folder keeps of jobs that have ended."""

    prune: bool = Field(True, description="Delete models that nothing needs after each job.")
    models: Count = Field(
        5, description="Models of ended jobs that are kept beside the champion and those that wait for a decision."
    )


class ExportSettings(Section):
    """The files that devices run."""

    opset: Annotated[int, Field(ge=18, le=23)] = Field(
        18, description="ONNX opset; choose that of the oldest runtime in the fleet."
    )
    formats: Annotated[tuple[Annotated[str, name_in(_FORMATS)], ...], BeforeValidator(_words)] = Field(
        ("fp32",),
        validate_default=False,
        description="File formats of models, separated by commas: fp32 (always), fp16, int8, ort or a package's.",
    )
    parity_tolerance: Positive = Field(
        1e-3, description="Largest difference of probabilities between fp32 or ort and torch; rounding gives 1e-4."
    )
    fp16_tolerance: Positive = Field(0.01, description="Largest difference of probabilities between fp16 and torch.")
    int8_agreement: Fraction = Field(
        0.95, description="Lowest share of images for which int8 and torch name the same class."
    )
    int8_accuracy_drop: Fraction = Field(0.02, description="Accuracy that int8 may lose compared with torch.")
    calibration_images: Count = Field(256, description="Most retain images that a site calibrates int8 on.")
    ort_platform: Literal["any", "this"] = Field("any", description="CPUs that .ort runs on; 'this' may be faster.")

    @field_validator("formats")
    @classmethod
    def _fp32_is_there(cls, value: tuple[Format, ...]) -> tuple[Format, ...]:
        if "fp32" not in value:
            raise ValueError("export.formats must contain fp32, which the others are made of")
        return tuple(dict.fromkeys(value))


class DeliverySettings(Section):
    """The signed repository that devices update from, and the devices themselves."""

    folder: Path | None = Field(None, description="Folder of repository, keys and database; default: STATE/delivery.")
    database: Annotated[str | None, AfterValidator(_of_postgresql)] = Field(
        None,
        description="Database of devices, postgresql+psycopg://host/database; default: a SQLite file in the folder.",
    )
    root_keys: Count = Field(3, description="Number of root keys that `delivery init` makes.")
    root_threshold: Count = Field(2, description="How many of them sign.")
    targets_keys: Count = Field(3, description="Number of release keys.")
    targets_threshold: Count = Field(2, description="How many of them sign.")
    root_days: Positive = Field(365.0, description="Days until the root expires.")
    targets_days: Positive = Field(180.0, description="Days until the list of releases expires.")
    snapshot_days: Positive = Field(7.0, description="Days until the snapshot and the rollout expire.")
    timestamp_days: Positive = Field(1.0, description="Until devices must hear from the repository again.")
    shares: Annotated[tuple[Fraction, ...], BeforeValidator(_words)] = Field(
        (0.1, 0.5, 1.0), description="Shares of devices in a rollout after the canaries."
    )
    failed_share: Fraction = Field(0.1, description="Share of failed devices above which a rollout is aborted.")
    least_reports: Count = Field(
        20,
        description="Devices that must have tried a release before it is aborted, or all if they are fewer.",
    )
    report_hours: Positive = Field(24.0, description="How old a device's report may be.")

    @model_validator(mode="after")
    def _enough_keys(self) -> DeliverySettings:
        if self.root_threshold > self.root_keys or self.targets_threshold > self.targets_keys:
            raise ValueError("a threshold of delivery must not be greater than the number of keys")
        if not self.shares or list(self.shares) != sorted(set(self.shares)) or self.shares[-1] != 1.0:
            raise ValueError("delivery.shares must rise to 1.0")
        return self


class DeskSettings(Section):
    """The desk: who may use it, and templates and names for letters to people."""

    letters: Path | None = Field(
        None,
        description="Folder of your letter templates: received.html, extended.html, refused.html, forgotten.html, "
        "letter.html; default: ours.",
    )
    sender: str = Field("", description="Name and address at the head of letters; default: the site's name.")
    authority: str = Field("", description="Supervisory authority in letters, with address.")
    hosts: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="Names that browsers reach the desk by, beside its own address; separated by commas."
    )
    tokens: Path | None = Field(
        None,
        description="File of who may log in: a name, a blank and a token in a line, for its owner alone (mode 600).",
    )
    proxy: Annotated[str | None, AfterValidator(_address)] = Field(
        None, description="IP address of the reverse proxy that says who asks; then the desk answers nobody else."
    )
    user_header: Annotated[str, Field(pattern="^[A-Za-z0-9-]{1,100}$")] = Field(
        "X-Forwarded-User", description="Header in which the reverse proxy names the user."
    )


class TrackingSettings(Section):
    """MLflow."""

    uri: Annotated[str | None, AfterValidator(_tracking_uri)] = Field(
        None, description="Tracking URI; default: a SQLite store in the state folder."
    )
    experiment: Annotated[str, AfterValidator(_experiment_name)] = Field("dlfd-fleet", description="MLflow experiment.")
    registered_model: Annotated[str, AfterValidator(_model_name)] = Field(
        "dlfd-fleet", description="Name in the model registry."
    )
    system_metrics: bool = Field(
        True, description="Whether to record CPU, memory, disk and network of the coordinator's machine."
    )


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)

    _no_password = field_validator("*", mode="before")(_without_password)
    _path = field_validator("*", mode="after")(_can_be_a_path)

    state_folder: Path = Field(
        Path("dlfd-fleet-state"), description="Folder of all state: sites, jobs, models, MLflow store."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of splits, training and noise.")
    data: DataSettings = Field(default_factory=DataSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    unlearning: UnlearningSettings = Field(default_factory=UnlearningSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    references: ReferenceSettings = Field(default_factory=ReferenceSettings)
    erasure: ErasureSettings = Field(default_factory=ErasureSettings)
    fleet: FleetSettings = Field(default_factory=FleetSettings)
    bench: BenchSettings = Field(default_factory=BenchSettings)
    release: ReleaseSettings = Field(default_factory=ReleaseSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    export: ExportSettings = Field(default_factory=ExportSettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    desk: DeskSettings = Field(default_factory=DeskSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)

    @field_validator("state_folder")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings' own
        init_settings: PydanticBaseSettingsSource,
        *_implicit: PydanticBaseSettingsSource,
        **_more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing implicitly: ``configuration`` names every source, so each value has one origin."""
        return (init_settings,)
