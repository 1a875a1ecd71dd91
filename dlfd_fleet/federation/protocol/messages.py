"""What travels between the coordinator and the sites: one pydantic model a message kind.

A message carries numbers, settings and arrays; never a name, a path or a pickled object. A site answers with counts,
ids of requests that are of one job, and what the model says of its images (:class:`~dlfd_fleet.audit.SampleScores`),
in which a person is a random number.
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
    """How far erasures have come on the devices that run the fleet's models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: Count | None = None
    """Greatest erasure epoch that no device keeps open; None if the fleet has no devices."""
    reason: Sentence = "no device is registered with this fleet"
    """How the devices stand, in counts and words."""


class LedgerHead(BaseModel):
    """How many rows the history of a site's ledger has, and a digest of the last one under the site's key and a job.

    A later ledger of the site has been there; one that was put back from a backup has not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sequence: Count
    job: JobName
    digest: Digest


class PendingQuery(FleetMessage):
    """Ask a site what it holds and how many people ask to be forgotten. No arrays."""

    TYPE: ClassVar[str] = "query.pending"
    LARGEST: ClassVar[int] = LARGEST_QUERY
    job: JobName
    take: bool = False
    """Whether the job takes up the requests that wait: they are its own until it ends."""
    resumed: Annotated[tuple[RequestId, ...], Field(max_length=MOST_REQUESTS)] = ()
    """Requests of this site that the job had taken up, before it was interrupted."""
    plan: bool = False
    """Count the images to forget of the requests that wait, and take none of them up."""
    epoch: Count = 0
    """The fleet's erasure epoch: a site that was away when it rose keeps no model from before, and works on none."""
    ended: Annotated[tuple[JobName, ...], Field(max_length=MOST_JOBS)] = ()
    """Jobs whose end this site does not know: what they had taken up is :attr:`released`, or waits again."""
    released: Annotated[dict[RequestId, Count], Field(max_length=MOST_REQUESTS_EVER)] = Field(default_factory=dict)
    """Requests of this site that such a job's released model has forgotten, and its epoch."""
    expired: Annotated[tuple[JobName, ...], Field(max_length=MOST_JOBS)] = ()
    """Jobs whose reference models are of a model that the fleet does not train on any more: their answers go."""
    seen: LedgerHead | None = None
    """Where this site's ledger once was, by its own word; its :attr:`released` requests are all that there are then."""
    devices: DevicesReached | None = None
    """A request whose images are purged is complete once devices have purged older models, too; None leaves it."""
    asked: Annotated[dict[Pseudonym, Day], Field(max_length=MOST_REQUESTS_EVER)] = Field(default_factory=dict)
    """People who asked at any site, and their deadlines: a site that has one of them too accepts the request."""
    withdrawn: Annotated[dict[Pseudonym, MarksOfSites], Field(max_length=MOST_REQUESTS_EVER)] = Field(
        default_factory=dict
    )
    """People who ask nowhere any more, and marks of the jobs that they had asked in.

    A site whose joined request was in one of these jobs takes it back; the coordinator cannot make up a mark.
    """


class RequestDates(FleetMessage):
    """The site's days on which a request was received, and by which it is due: no time of day, which would name it."""

    asked_at: Day
    deadline: Day


class PendingReply(FleetMessage):
    """Counts, never names."""

    site: SiteId
    requests: Annotated[tuple[RequestId, ...], Field(max_length=MOST_REQUESTS)]
    """The requests that the job has taken up, under ids of this job's own."""
    dates: Annotated[dict[RequestId, RequestDates], Field(max_length=MOST_REQUESTS)]
    """Of each of them."""
    waiting: Count = 0
    """How many other requests wait for the next job."""
    begun: Count = 0
    """Of a plan: how many more wait, for the site does not know how the job ended that had taken them up."""
    first_due: Day | None = None
    """Of a plan: the first day by which one of all these is due; None if there is none."""
    unsettled: Annotated[tuple[JobName, ...], Field(max_length=MOST_JOBS)] = ()
    """Earlier jobs that have taken up requests here, and whose end the site was not told."""
    people: Annotated[dict[Pseudonym, Day], Field(max_length=MOST_REQUESTS)] = Field(default_factory=dict)
    """Who asks, under a secret that only sites have, and the deadlines; empty at a site without that secret."""
    joined: Annotated[dict[Pseudonym, Marks], Field(max_length=MOST_REQUESTS)] = Field(default_factory=dict)
    """Those of them who asked at another site and not here, and marks of the jobs that their request was in."""
    withdrawn: Annotated[dict[Pseudonym, Marks], Field(max_length=MOST_REQUESTS_EVER)] = Field(default_factory=dict)
    """Who asked here once and has withdrawn, and marks of the jobs that their request was in."""
    forget_images: Count
    answered_images: Count = 0
    """Of the images to forget, those whose answers of reference models the site has, and people to compare with."""
    class_images: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    """Images to train on, one count a class; of labels, those that each applies to."""
    labelled_images: Count | None = None
    """Images to train on, where they have labels and so are no sum of those; None where each has one class."""
    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MOST_CLASSES)]
    input: ModelInput
    epoch: Count = 0
    """Greatest erasure epoch that the site was ever told."""
    ledger: LedgerHead | None = None
    """Where its ledger is; not said to a plan, which is asked again and again."""
    held: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    """Digest of the model that an earlier job left at the site, or this one before it was resumed."""

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
        """Whether the classes are labels, of which any number may apply to an image."""
        return self.labelled_images is not None

    @property
    def retain_images(self) -> int:
        """Images to train on."""
        return sum(self.class_images) if self.labelled_images is None else self.labelled_images

    @property
    def can_train(self) -> bool:
        """Whether the site has enough images; one without them takes part in audits."""
        return self.retain_images >= FEWEST_TO_TRAIN

    @property
    def can_unlearn(self) -> bool:
        """Whether an update of the site forgets somebody: it has trained on them, and can train on others."""
        return self.can_train and self.forget_images > 0

    @property
    def has_references(self) -> bool:
        """Whether the site can tell by itself when its people are forgotten: reference models answered for them all."""
        return 0 < self.forget_images == self.answered_images


class Reference(BaseModel):
    """Which of a job's reference models a task is about; 2k and 2k + 1 are a pair, one for each half of the people."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: Annotated[int, Field(ge=0, lt=MOST_REFERENCES)]
    models: Annotated[int, Field(ge=2, le=MOST_REFERENCES, multiple_of=2)]
    """How many the job makes."""

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
    """Train on the images of the people of this model's half alone; the site decides who they are, and tells nobody."""
    round: Count
    card: ModelCard
    training: TrainingSettings
    augmentation: AugmentationSettings
    class_weights: Weights
    epochs: AtLeastOne
    learning_rate: Annotated[float, Field(gt=0.0, le=1e12)]
    final: bool = True
    """Whether the model is read or audited before it is trained again: only then do batch-norm statistics matter."""
    precision: Precision
    """Of the update that is sent back."""
    seed: Seed


class FitResult(FleetMessage):
    """The trained ``model`` arrays and what they took."""

    epoch: Count
    """Of the model that it started from."""
    examples: AtLeastOne
    loss: Finite
    seconds: Seconds

    @property
    def weight(self) -> int:
        """Images that the update counts by."""
        return self.examples

    def metrics(self) -> dict[str, float]:
        """Return what is logged of it."""
        return self.model_dump(exclude={"epoch"})


class Aim(StrEnum):
    """What an unlearning site aims at, and whether it may leave a model as it is."""

    REFERENCES = "references"
    """What the site's reference models say, where they have answered; it unlearns whatever its gate reads."""
    TO_GATE = "to-gate"
    """The same; a site within the gate of its reference models leaves the model as it is, and says so."""
    WITHOUT_REFERENCES = "without-references"
    """What the method does by itself, whatever reference models have said."""


class UnlearnTask(FleetMessage):
    """Unlearn the people of the site's accepted requests, starting from the ``model`` arrays."""

    TYPE: ClassVar[str] = "train.unlearn"
    job: JobName
    round: Count
    card: ModelCard
    method: Name = "dlfd"
    """One of :data:`~dlfd_fleet.unlearning.METHODS`, which the site must have."""
    augmentation: AugmentationSettings
    """Of retain images."""
    unlearning: UnlearningSettings
    aim: Aim = Aim.REFERENCES
    class_weights: Weights
    precision: Precision
    """Of the update that is sent back."""
    seed: Seed


class UnlearnResult(FleetMessage):
    """The unlearned ``model`` arrays, what they forgot, and what it took; no arrays of a model within the gate."""

    epoch: Count
    """Of the model that it started from."""
    requests: Annotated[tuple[RequestId, ...], Field(max_length=MOST_REQUESTS)]
    forget_examples: AtLeastOne
    retain_examples: AtLeastOne
    steps: Count
    left: Finite | None = None
    """Of what members have, the share that was left in the model that was sent, by the site's reference models."""
    retain_accuracy: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Share of the retain images that the model that was sent predicts right; None where references cannot tell."""
    retain_accuracy_after: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """The same of the model that the site returns; None where it returns none."""
    done: bool = False
    """Whether what is left is within the gate, so that nothing was unlearned."""
    seconds: Seconds

    @property
    def weight(self) -> int:
        """Images that the update counts by."""
        return self.forget_examples

    def metrics(self) -> dict[str, float]:
        """Return what is logged of it."""
        return self.model_dump(exclude={"epoch", "requests"}, exclude_none=True)


class AuditTask(FleetMessage):
    """Say of each image how well the ``model`` arrays predict it."""

    TYPE: ClassVar[str] = "evaluate.audit"
    job: JobName
    card: ModelCard
    roles: Annotated[tuple[Literal["retain", "forget", "validation", "test"], ...], Field(max_length=len(ROLES))]
    most_retain: AtLeastOne | None = None
    """The most retain images, the same each time, classes in their shares; all of them if it is not said."""
    references: bool = False
    """Whether to say how that is beside what reference models say, where they have answered."""
    plan: bool = False
    """Whether those are to be forgotten whose requests wait: as in :class:`PendingQuery`."""


class AuditResult(FleetMessage):
    """The audited samples come beside it."""

    shared: Count
    """How many of the samples, the last ones, are of people whom every site holds."""
    withheld: Count = 0
    """How many images of such people the site leaves out: it knows that they asked, or that it trains on the image."""
    references: ReferenceSums | None = None
    """Sums over people of what the model says beside what the site's reference models say of them."""
    seconds: Seconds


class ReferenceTask(FleetMessage):
    """Keep what a reference model, the ``model`` arrays, says of each of the site's images, and not the model."""

    TYPE: ClassVar[str] = "evaluate.reference"
    job: JobName
    card: ModelCard
    reference: Reference


class ReferenceResult(FleetMessage):
    """What the model says stays at the site; here are counts."""

    images: Count
    missing: Annotated[int, Field(ge=0, le=MOST_REFERENCES)]
    """Of how many of the job's models the site has no answers yet."""
    seconds: Seconds


class UnseenTask(FleetMessage):
    """Compare what reference models have said of people never trained on with what the ``model`` arrays say of them."""

    TYPE: ClassVar[str] = "evaluate.unseen"
    job: JobName
    card: ModelCard
    max_drop: Annotated[float, Field(ge=0.0, le=1.0)]
    """By how much less often reference models may be right."""


class UnseenResult(FleetMessage):
    """Two accuracies, over all of these people at once."""

    unseen: UnseenAccuracy | None
    """None at a site without people never trained on, or without answers of reference models for them."""
    seconds: Seconds


class FileAuditTask(FleetMessage):
    """Say the same of the exported ONNX ``file`` (uint8 bytes), and how far it is from the ``model`` arrays."""

    TYPE: ClassVar[str] = "evaluate.file"
    job: JobName
    card: ModelCard
    roles: Annotated[tuple[Literal["retain", "forget", "validation", "test"], ...], Field(max_length=len(ROLES))]
    references: bool = False
    """As in :class:`AuditTask`."""


class FileAuditResult(FleetMessage):
    """The sampled answers of the file, and how near it is to torch."""

    shared: Count
    """How many of the samples, the last ones, are of people whom every site holds."""
    withheld: Count = 0
    """As in :class:`AuditResult`."""
    references: ReferenceSums | None = None
    """As in :class:`AuditResult`."""
    max_abs_difference: Difference
    images: Count
    agreeing: Count
    """Images of which both say the same class; of labels, how many of all images' labels both say the same of."""
    seconds: Seconds


class CalibrateTask(FleetMessage):
    """Measure the range of every activation of a prepared ONNX ``file`` (uint8 bytes) on the site's retain images."""

    TYPE: ClassVar[str] = "evaluate.calibrate"
    job: JobName
    card: ModelCard
    images: AtLeastOne
    """The most to measure on."""
    seed: Seed


class CalibrateResult(FleetMessage):
    """Two numbers for each tensor; over all of a site's images at once, never of a single one."""

    ranges: Annotated[dict[TensorName, tuple[Finite, Finite]], Field(max_length=MOST_TENSORS)]
    images: Count
    """0 at a site without images to train on; it has no ranges then."""
    seconds: Seconds


class SettleTask(FleetMessage):
    """Tell a site how a job ended for its requests."""

    TYPE: ClassVar[str] = "query.settle"
    LARGEST: ClassVar[int] = LARGEST_QUERY
    job: JobName
    outcome: Literal["released", "returned"]
    """``returned``: the requests wait for the next job."""
    requests: Annotated[tuple[RequestId, ...], Field(max_length=MOST_REQUESTS)] = ()
    """Those of this site that the released model has forgotten; any other of the job waits for the next one."""
    reason: Sentence
    epoch: Count
    purge: bool
    """Whether to delete the forgotten people's images from the site's disk."""
    devices: DevicesReached | None = None
    """As in :class:`PendingQuery`."""


class SettleResult(FleetMessage):
    """How many requests were settled, and images purged."""

    requests: Count
    purged_images: Count
    epoch: Count
    """The fleet's erasure epoch, as the site knows it from now on: it works on no model under it."""
    ledger: LedgerHead | None = None
    """Where its ledger is now."""
