"""Define every message between the coordinator and the sites as a pydantic model.

A message holds numbers, settings and arrays, never a person's name, a path or a pickled object. A site answers with
counts, with request ids that are valid in one job, and with the model's answers for its images
(:class:`~dlfd_fleet.audit.SampleScores`), in which a person is a random number.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dlfd_fleet.audit import ReferenceSums
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.federation.protocol.bounds import (
    LARGEST_QUERY,
    MOST_CLASSES,
    MOST_JOBS,
    MOST_REFERENCES,
    MOST_REQUESTS,
    MOST_REQUESTS_EVER,
    MOST_TENSORS,
    AtLeastOne,
    Count,
    Day,
    Difference,
    Digest,
    Finite,
    JobName,
    Marks,
    MarksOfSites,
    Pseudonym,
    RequestId,
    Seconds,
    Seed,
    Sentence,
    SiteId,
    TensorName,
    Weights,
)
from dlfd_fleet.federation.protocol.packing import FleetMessage
from dlfd_fleet.ledger.references import UnseenAccuracy
from dlfd_fleet.ledger.site_uses import FEWEST_TO_TRAIN
from dlfd_fleet.model_input import ModelInput
from dlfd_fleet.models import ModelCard, Name
from dlfd_fleet.settings import AugmentationSettings, Precision, TrainingSettings, UnlearningSettings


class DevicesReached(BaseModel):
    """The progress of erasures on devices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: Count | None = None
    """Greatest erasure epoch that no device keeps open; None if the fleet has no devices."""
    reason: Sentence = "no device is registered with this fleet"
    """A sentence about the devices, with counts."""


class LedgerHead(BaseModel):
    """How many rows the history of a site's ledger has, and a digest of the last one under the site's key and a job.

    A later ledger of the site has been there; one that was put back from a backup has not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sequence: Count
    job: JobName
    digest: Digest


class PendingQuery(FleetMessage):
    """Ask a site what it holds and which requests wait. It has no arrays."""

    TYPE: ClassVar[str] = "query.pending"
    LARGEST: ClassVar[int] = LARGEST_QUERY
    job: JobName
    take: bool = False
    """Whether the job takes up waiting requests; they belong to it until it ends."""
    resumed: Annotated[tuple[RequestId, ...], Field(max_length=MOST_REQUESTS)] = ()
    """Requests of this site that the job had taken up before an interruption."""
    plan: bool = False
    """Whether to count the images of waiting requests without taking them up."""
    epoch: Count = 0
    """The fleet's erasure epoch. A site keeps and uses no model from before it."""
    ended: Annotated[tuple[JobName, ...], Field(max_length=MOST_JOBS)] = ()
    """Jobs of whose end this site was not told. Their requests are :attr:`released`, or wait again."""
    released: Annotated[dict[RequestId, Count], Field(max_length=MOST_REQUESTS_EVER)] = Field(default_factory=dict)
    """Requests of this site that a released model of such a job has forgotten, with its epoch."""
    expired: Annotated[tuple[JobName, ...], Field(max_length=MOST_JOBS)] = ()
    """Jobs whose reference models have expired; the site deletes their answers."""
    seen: LedgerHead | None = None
    """Where this site's ledger once was, by its own word; its :attr:`released` requests are all that there are then."""
    devices: DevicesReached | None = None
    """Progress on devices. A purged request is complete once devices have purged older models; None changes nothing."""
    asked: Annotated[dict[Pseudonym, Day], Field(max_length=MOST_REQUESTS_EVER)] = Field(default_factory=dict)
    """People who asked at any site, with deadlines. A site that holds one of them accepts the request."""
    withdrawn: Annotated[dict[Pseudonym, MarksOfSites], Field(max_length=MOST_REQUESTS_EVER)] = Field(
        default_factory=dict
    )
    """People who withdrew, with marks of the jobs in which they had asked.

    A site withdraws a joined request that was in one of these jobs. The coordinator cannot make a mark.
    """


class RequestDates(FleetMessage):
    """The days on which a request was received and is due, without a time of day, which could identify it."""

    asked_at: Day
    deadline: Day


class PendingReply(FleetMessage):
    """What a site holds, in counts, and its requests in this job."""

    site: SiteId
    requests: Annotated[tuple[RequestId, ...], Field(max_length=MOST_REQUESTS)]
    """Ids of the requests that the job has taken up, valid in this job."""
    dates: Annotated[dict[RequestId, RequestDates], Field(max_length=MOST_REQUESTS)]
    """Dates of each of them."""
    waiting: Count = 0
    """Number of other requests, which wait for the next job."""
    begun: Count = 0
    """Of a plan: how many more wait, for the site does not know how the job ended that had taken them up."""
    first_due: Day | None = None
    """Of a plan: the first day by which one of all these is due; None if there is none."""
    unsettled: Annotated[tuple[JobName, ...], Field(max_length=MOST_JOBS)] = ()
    """Earlier jobs with requests of this site, of whose end it was not told."""
    people: Annotated[dict[Pseudonym, Day], Field(max_length=MOST_REQUESTS)] = Field(default_factory=dict)
    """Pseudonyms of people who ask, with deadlines; empty at a site without the fleet's secret."""
    joined: Annotated[dict[Pseudonym, Marks], Field(max_length=MOST_REQUESTS)] = Field(default_factory=dict)
    """Those of them who asked only at another site, with marks of the jobs that their request was in."""
    withdrawn: Annotated[dict[Pseudonym, Marks], Field(max_length=MOST_REQUESTS_EVER)] = Field(default_factory=dict)
    """People who asked here and withdrew, with marks of the jobs that their request was in."""
    forget_images: Count
    answered_images: Count = 0
    """Number of images to forget for which references can measure forgetting."""
    unseen_images: Count = 0
    """Number of images of people never trained on, with which a site can check a model."""
    class_images: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    """Numbers of images to train on, by class or by label."""
    labelled_images: Count | None = None
    """Number of images to train on, if they have labels; None if each has one class."""
    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    input: ModelInput
    epoch: Count = 0
    """Greatest erasure epoch that the site was ever told."""
    ledger: LedgerHead | None = None
    """Where its ledger is; not said to a plan, which is asked again and again."""
    held: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """Digest of the model that the site holds; empty without one."""

    @model_validator(mode="after")
    def _one_count_a_class(self) -> Self:
        if len(self.class_images) != len(self.classes):
            raise ValueError(f"{len(self.class_images)} counts of images for {len(self.classes)} classes")
        if self.labelled_images is not None and max(self.class_images) > self.labelled_images:
            raise ValueError("a label applies to more images than there are")
        for what, names in (("a class", self.classes), ("a request", self.requests)):
            if len(set(names)) < len(names):
                raise ValueError(f"{what} is named twice")
        if self.answered_images > self.forget_images:
            raise ValueError("reference models have answered for more images than are to be forgotten")
        if self.dates.keys() != set(self.requests):
            raise ValueError("the dates are of other requests than those that it names")
        return self

    @property
    def multi_label(self) -> bool:
        """Whether the classes are labels, several of which may apply to an image."""
        return self.labelled_images is not None

    @property
    def retain_images(self) -> int:
        """Images to train on."""
        return sum(self.class_images) if self.labelled_images is None else self.labelled_images

    @property
    def can_train(self) -> bool:
        """Whether the site has enough images to train; otherwise it takes part only in audits."""
        return self.retain_images >= FEWEST_TO_TRAIN

    @property
    def can_unlearn(self) -> bool:
        """Whether the site can unlearn: it has images to forget, and can train on others."""
        return self.can_train and self.forget_images > 0

    @property
    def has_references(self) -> bool:
        """Whether reference models have answered for all images to forget, so that the site has its own gate."""
        return 0 < self.forget_images == self.answered_images

    @property
    def can_aim_at_own(self) -> bool:
        """Whether the site has its own gate by what the model says of changed copies of its images."""
        return self.unseen_images > 0 and self.input.is_image


class Reference(BaseModel):
    """A reference model of a job. 2k and 2k + 1 are a pair, one for each half of the people."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: Annotated[int, Field(ge=0, lt=MOST_REFERENCES)]
    models: Annotated[int, Field(ge=2, le=MOST_REFERENCES, multiple_of=2)]
    """Number of reference models of the job."""

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.number >= self.models:
            raise ValueError(f"of {self.models} reference models none has the number {self.number}")
        return self


class FitTask(FleetMessage):
    """Train on the site's retain images, starting from the ``model`` arrays."""

    TYPE: ClassVar[str] = "train.fit"
    job: JobName
    purpose: Literal["train", "repair", "relearn", "retrain", "reference"]
    reference: Reference | None = None
    """Train only on the people of this reference model's half, whom only the site knows."""
    round: Count
    card: ModelCard
    training: TrainingSettings
    augmentation: AugmentationSettings
    class_weights: Weights
    epochs: AtLeastOne
    learning_rate: Annotated[float, Field(gt=0.0, le=1e12)]
    final: bool = True
    """Whether the model is measured before it is trained again; only then batch-norm statistics matter."""
    precision: Precision
    """Of the update that is sent back."""
    seed: Seed


class FitResult(FleetMessage):
    """The trained ``model`` arrays and their cost."""

    epoch: Count
    """Of the model that it started from."""
    examples: AtLeastOne
    loss: Finite
    seconds: Seconds

    @property
    def weight(self) -> int:
        """Number of images that the update counts by."""
        return self.examples

    def metrics(self) -> dict[str, float]:
        """Return its metrics."""
        return self.model_dump(exclude={"epoch"})


class Aim(StrEnum):
    """What an unlearning site aims at, and whether it may leave a model unchanged."""

    REFERENCES = "references"
    """Aim at reference models, if they have answered; always unlearn."""
    TO_GATE = "to-gate"
    """The same, but a site within its gate leaves the model unchanged and reports this."""
    OWN_ANSWERS = "own-answers"
    """Aim at what the model that the erasure began with says of changed copies of the images; always unlearn."""
    OWN_ANSWERS_TO_GATE = "own-answers-to-gate"
    """The same, but a site within its gate leaves the model unchanged and reports this."""
    WITHOUT_REFERENCES = "without-references"
    """Use the method without anything to aim at."""

    @property
    def to_gate(self) -> bool:
        """Whether a site within its gate leaves the model unchanged."""
        return self in (Aim.TO_GATE, Aim.OWN_ANSWERS_TO_GATE)

    @property
    def at_own(self) -> bool:
        """Whether sites aim at the model's own answers."""
        return self in (Aim.OWN_ANSWERS, Aim.OWN_ANSWERS_TO_GATE)


class UnlearnTask(FleetMessage):
    """Unlearn the people of the site's accepted requests, starting from the ``model`` arrays."""

    TYPE: ClassVar[str] = "train.unlearn"
    job: JobName
    round: Count
    card: ModelCard
    method: Name = "dlfd"
    """Name of a method of :data:`~dlfd_fleet.unlearning.METHODS` that the site has."""
    augmentation: AugmentationSettings
    """Augmentation of retain images."""
    unlearning: UnlearningSettings
    aim: Aim = Aim.REFERENCES
    class_weights: Weights
    precision: Precision
    """Of the update that is sent back."""
    seed: Seed


class UnlearnResult(FleetMessage):
    """The unlearned ``model`` arrays, their requests and cost; no arrays if the model was within the gate."""

    epoch: Count
    """Of the model that it started from."""
    requests: Annotated[tuple[RequestId, ...], Field(max_length=MOST_REQUESTS)]
    forget_examples: AtLeastOne
    retain_examples: AtLeastOne
    steps: Count
    left: Finite | None = None
    """Share that was left in the received model of what is to be forgotten, by what the site aims at."""
    retain_accuracy: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Accuracy of the received model on retain images; None without anything to aim at."""
    retain_accuracy_after: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Accuracy of the returned model on retain images; None without a returned model."""
    done: bool = False
    """Whether the received model was within the gate, so that nothing was unlearned."""
    seconds: Seconds

    @property
    def weight(self) -> int:
        """Number of images that the update counts by."""
        return self.forget_examples

    def metrics(self) -> dict[str, float]:
        """Return its metrics."""
        return self.model_dump(exclude={"epoch", "requests"}, exclude_none=True)


class AuditTask(FleetMessage):
    """Predict the site's images with the ``model`` arrays, and return samples."""

    TYPE: ClassVar[str] = "evaluate.audit"
    job: JobName
    card: ModelCard
    roles: Annotated[tuple[Literal["retain", "forget", "validation", "test"], ...], Field(max_length=len(ROLES))]
    most_retain: AtLeastOne | None = None
    """Most retain images, the same each time, with classes in their shares. Default: all."""
    references: bool = False
    """Whether to compare with reference models, if they have answered."""
    plan: bool = False
    """Whether people with waiting requests count as those to forget, as in :class:`PendingQuery`."""


class AuditResult(FleetMessage):
    """The counts of an audit; the samples are in the same message."""

    shared: Count
    """Number of samples, at the end, of people whom every site holds."""
    withheld: Count = 0
    """Number of images of such people that the site leaves out, because they asked or are trained on."""
    references: ReferenceSums | None = None
    """Sums over people that compare the model with the site's reference models."""
    seconds: Seconds


class ReferenceTask(FleetMessage):
    """Store the answers of a reference model (the ``model`` arrays) for the site's images, but not the model."""

    TYPE: ClassVar[str] = "evaluate.reference"
    job: JobName
    card: ModelCard
    reference: Reference


class ReferenceResult(FleetMessage):
    """Counts only; the answers stay at the site."""

    images: Count
    missing: Annotated[int, Field(ge=0, le=MOST_REFERENCES)]
    """Number of the job's models without answers at the site."""
    seconds: Seconds


class UnseenTask(FleetMessage):
    """Compare the accuracy of reference models and of the ``model`` arrays on people never trained on."""

    TYPE: ClassVar[str] = "evaluate.unseen"
    job: JobName
    card: ModelCard
    max_drop: Annotated[float, Field(ge=0.0, le=1.0)]
    """Largest drop in accuracy that is accepted."""


class UnseenResult(FleetMessage):
    """Both accuracies, over all of these people together."""

    unseen: UnseenAccuracy | None
    """None at a site without such people, or without answers for them."""
    seconds: Seconds


class FileAuditTask(FleetMessage):
    """Audit an exported ONNX ``file`` (uint8 bytes), and compare it with the ``model`` arrays."""

    TYPE: ClassVar[str] = "evaluate.file"
    job: JobName
    card: ModelCard
    roles: Annotated[tuple[Literal["retain", "forget", "validation", "test"], ...], Field(max_length=len(ROLES))]
    references: bool = False
    """As in :class:`AuditTask`."""


class FileAuditResult(FleetMessage):
    """The counts of a file's audit, and how close the file is to torch."""

    shared: Count
    """Number of samples, at the end, of people whom every site holds."""
    withheld: Count = 0
    """As in :class:`AuditResult`."""
    references: ReferenceSums | None = None
    """As in :class:`AuditResult`."""
    max_abs_difference: Difference
    images: Count
    agreeing: Count
    """Number of images, or of labels of all images, for which both give the same answer."""
    seconds: Seconds


class CalibrateTask(FleetMessage):
    """Measure the range of every activation of a prepared ONNX ``file`` (uint8 bytes) on the site's retain images."""

    TYPE: ClassVar[str] = "evaluate.calibrate"
    job: JobName
    card: ModelCard
    images: AtLeastOne
    """Most images to measure on."""
    seed: Seed


class CalibrateResult(FleetMessage):
    """The smallest and largest value of each tensor, over all of a site's images together."""

    ranges: Annotated[dict[TensorName, tuple[Finite, Finite]], Field(max_length=MOST_TENSORS)]
    images: Count
    """Number of images; 0, without ranges, at a site that has none to train on."""
    seconds: Seconds


class SettleTask(FleetMessage):
    """Tell a site how a job ended for its requests."""

    TYPE: ClassVar[str] = "query.settle"
    LARGEST: ClassVar[int] = LARGEST_QUERY
    job: JobName
    outcome: Literal["released", "returned"]
    """``returned``: the requests wait for the next job."""
    requests: Annotated[tuple[RequestId, ...], Field(max_length=MOST_REQUESTS)] = ()
    """Requests of this site that the released model has forgotten; others of the job wait for the next one."""
    reason: Sentence
    epoch: Count
    purge: bool
    """Whether to delete the forgotten people's images from the site's disk."""
    devices: DevicesReached | None = None
    """As in :class:`PendingQuery`."""


class SettleResult(FleetMessage):
    """Numbers of settled requests and purged images."""

    requests: Count
    purged_images: Count
    epoch: Count
    """The fleet's erasure epoch, as the site knows it now; it uses no model from before it."""
    ledger: LedgerHead | None = None
    """Where its ledger is now."""
