"""The coordinator's side of a job: what its sites said, how far it is, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Unpack

from dlfd_fleet.audit import Scores, Verdict, judge, judge_retrained
from dlfd_fleet.exceptions import DeliveryError, FleetError, JobError
from dlfd_fleet.federation.jobs.pictures import fleet_profile, losses_of
from dlfd_fleet.federation.protocol.bounds import MOST_JOBS
from dlfd_fleet.federation.protocol.messages import DevicesReached, PendingQuery, PendingReply
from dlfd_fleet.federation.records.job_record import JobRecord, JobStep, Notes, RecordChanges
from dlfd_fleet.federation.records.journal import Journal
from dlfd_fleet.federation.records.site_ledgers import SiteLedgers
from dlfd_fleet.federation.release.publication import devices_reached
from dlfd_fleet.federation.rounds.audits import AuditedModel, Audits
from dlfd_fleet.federation.rounds.counts import Claim, PlausibleCounts
from dlfd_fleet.federation.rounds.erasure import AtAskedSites, Erasure
from dlfd_fleet.federation.rounds.fleet import Fleet, site_name
from dlfd_fleet.federation.rounds.job_context import Effort, JobContext, Recorder
from dlfd_fleet.federation.rounds.requests import EarlierRequests, Settled, ask_pending, settle
from dlfd_fleet.federation.rounds.rounds import Rounds
from dlfd_fleet.models import ModelCard
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.report.contents import AskedRequest, ModelResult, SiteShare, loss_counts
from dlfd_fleet.settings import Settings

_ASKED = "asked"


@dataclass
class Coordinator:
    """One job: its fleet, its journal, its record, and the models that were audited in it.

    Attributes
    ----------
    read_epoch
        Tells the fleet's erasure epoch, which rises when the job releases a model.
    keep
        Writes the record; called at each change that a job which goes on must find.
    earlier
        Records of the fleet's other jobs, oldest first.
    ledgers
        Where sites' ledgers were when they were last heard of.
    models
        Audited models by column: original, unlearned, relearned, retrained.
    """

    settings: Settings
    fleet: Fleet
    journal: Journal
    progress: ProgressDisplay
    record: JobRecord
    read_epoch: Callable[[], int]
    keep: Callable[[JobRecord], None]
    recorder: Recorder
    earlier: Sequence[JobRecord] = ()
    ledgers: SiteLedgers = field(default_factory=SiteLedgers)
    models: dict[str, AuditedModel] = field(default_factory=dict)
    _context: JobContext | None = None
    _epoch_of_sites: int = 0

    def __post_init__(self) -> None:
        """Hear from the fleet who is absent: it is written at once, for a killed job must not forget it."""
        self.fleet.tell_absences(self._note_absent)

    @property
    def epoch(self) -> int:
        """The fleet's erasure epoch now; of a fresh model that no older one went into, the latest that sites know."""
        return max(self.read_epoch(), self._epoch_of_sites)

    @property
    def is_behind(self) -> bool:
        """Whether sites know a later epoch than the champion's: this state folder was put back from a backup."""
        return self._epoch_of_sites > self.read_epoch()

    # ------------------------------------------------------------------ the record

    def advance(self, step: JobStep, **changes: Unpack[RecordChanges]) -> None:
        """Write how far the job is; a job that goes over its steps again does not fall back."""
        changes["seconds"] = self.journal.seconds
        self.record = self.record.at(step).changed(**changes)
        self.keep(self.record)

    def note(self, **notes: Unpack[Notes]) -> None:
        """Note something for the job's report; it is written with the next :meth:`advance`."""
        self.record = self.record.noted(**notes)

    def judge_retrained(self, original: Scores, retrained: Scores) -> Verdict:
        """Judge a model that was trained anew without the people who asked, or a file of it.

        Where the job has taken that way at first, it is judged as any model of an erasure. In place of one that did not
        do it is judged by its usefulness, if training anew is exact: its attack scores are then those of any model that
        never saw them.
        """
        noted, audit = self.record.proceedings, self.settings.audit
        instead = noted.way == "unlearn" and noted.exact
        verdict = judge_retrained(original, retrained, audit) if instead else judge(original, retrained, audit)
        return verdict.model_copy(update={"exact": noted.exact})

    def _note_absent(self, site: str, reason: str) -> None:
        self.record = self.record.changed(absent=self.record.absent | {site: reason})
        self.keep(self.record)

    def note_model(self, column: str, model: AuditedModel, effort: Effort) -> None:
        """Keep a model's scores, and what it took, for the table, and log them."""
        result = ModelResult(
            scores=model.scores, seconds=effort.seconds, bytes_sent=effort.sent_bytes, sites=len(model.rows)
        )
        self.models[column] = model
        self.record = self.record.changed(models=self.record.models | {column: result})
        self.note(losses=self.record.proceedings.losses | {column: loss_counts(losses_of(model))})
        self.recorder.metrics({f"{column}.{name}": value for name, value in model.scores.metrics().items()}, 0)
        self.recorder.metrics({f"{column}.seconds": effort.seconds, f"{column}.bytes_sent": effort.sent_bytes}, 0)

    # ------------------------------------------------------------------ rounds and audits

    def context(self, card: ModelCard) -> JobContext:
        """Return what rounds and audits share, for models of this card; rounds go on counting."""
        if self._context is None:
            self._context = JobContext(
                fleet=self.fleet,
                card=card,
                settings=self.settings,
                name=self.record.job,
                progress=self.progress,
                journal=self.journal,
                recorder=self.recorder,
            )
        self._context.card = card
        return self._context

    def rounds(self, card: ModelCard) -> Rounds:
        """Return the job's rounds, on models of this card."""
        return Rounds(self.context(card))

    def audits(self, card: ModelCard) -> Audits:
        """Return the job's audits, of models of this card."""
        return Audits(self.context(card))

    def erasure(self, card: ModelCard) -> Erasure:
        """Return the job's erasure from models of this card, by the method of the settings.

        Raises
        ------
        ConfigurationError
            If there is no such method, or it is none for such models.
        """
        return Erasure(self.rounds(card), self.audits(card), AtAskedSites.of(self.settings.erasure, card))

    # ------------------------------------------------------------------ the sites

    def pending(self, card: ModelCard | None = None) -> dict[int, PendingReply]:
        """Ask the sites what they hold and how many people ask to be forgotten; of those that the model's card fits.

        A job that is resumed asks again, for its nodes may have new ids; it goes on with what the sites said at first:
        what all of them said is ``fleet.said`` then, and what is returned are those that are there now.
        """
        kind, job, fleet = self.record.kind, self.record.job, self.fleet
        erasing = kind == "erase"
        settings = self.settings.fleet
        known = self.journal.is_done(_ASKED)
        first = self.journal.facts(_ASKED, list[PendingReply], list) if known else []
        plausible = PlausibleCounts(settings.largest_weight_ratio, settings.largest_growth, self._counted_before())
        fleet.wait_for_nodes(max(settings.least_sites, len(first)), settings.connect_seconds)
        query = PendingQuery(
            job=job,
            take=erasing and not known,
            plan=kind == "plan",
            epoch=self.epoch,
            expired=self._expired_references(),
            devices=self._devices_reached(self.epoch),
        )
        largest = self.settings.erasure.largest_forget_share if kind in ("erase", "plan") else 1.0
        earlier, anew = self._known_of_sites(first), kind == "train" and self.settings.training.start == "fresh"
        replies = ask_pending(fleet, query, largest, card, earlier, plausible, behind=anew)
        self.ledgers.note({site_name(reply.site): reply.ledger for reply in replies.values()})
        self._epoch_of_sites = max((reply.epoch for reply in replies.values()), default=0) if anew else 0
        if not known:
            first = self.journal.facts(_ASKED, list[PendingReply], lambda: list(replies.values()))
        if len(first) < settings.least_sites:
            raise JobError(f"{len(first)} sites take part, fewer than {settings.least_sites}: {fleet.why_absent()}.")
        nodes = {reply.site: node for node, reply in replies.items()}
        for reply in first:
            if reply.site not in nodes and site_name(reply.site) not in fleet.absent:
                fleet.note_absent(site_name(reply.site), "was there when the job began, and has not come back")
        self._note_missing()
        present = {nodes[reply.site]: reply for reply in first if reply.site in nodes}
        said = dict(enumerate(first))
        claims = {said[number].site: claim for number, claim in plausible.claims(said).items()}
        fleet.admit(present, {node: claims[reply.site] for node, reply in present.items()}, first)
        self._note_sites(first, claims)
        self.recorder.dataset(fleet_profile(first), "unlearning" if erasing else "training")
        return present

    def _known_of_sites(self, first: Iterable[PendingReply]) -> dict[str, EarlierRequests]:
        """Return what is known of each site: its requests in earlier jobs and in this one, and where its ledger was."""
        erasing = self.record.kind == "erase"
        resumed = {site_name(reply.site): reply.requests for reply in first} if erasing else {}
        released, ledgers = released_requests(self.earlier), self.ledgers.known()
        return {
            site: EarlierRequests(resumed.get(site, ()), released.get(site, {}), ledgers.get(site))
            for site in resumed.keys() | released.keys() | ledgers.keys()
        }

    def _expired_references(self) -> tuple[str, ...]:
        """Return the jobs whose reference models are none any more, for the fleet has trained another model since."""
        if self.settings.references.expire == "never":
            return ()
        trained = [other.started_at for other in self.earlier if other.kind == "train" and other.released]
        made = [other for other in self.earlier if other.references is not None]
        return tuple(other.job for other in made if any(other.started_at < later for later in trained))[-MOST_JOBS:]

    def _note_missing(self) -> None:
        """Name the sites of the job before this one that do not answer now: what they were asked waits there."""
        earlier = [job for job in self.earlier if job.proceedings.sites]
        for share in earlier[-1].proceedings.sites if earlier else ():
            if share.site not in self.fleet.names.values() and share.site not in self.fleet.absent:
                self.fleet.note_absent(share.site, f"took part in {earlier[-1].job}, and does not answer now")

    def _counted_before(self) -> dict[str, int]:
        """Return by how many images each site counted in the last job before this one that it took part in."""
        counted = {}
        for job in self.earlier:
            for share in job.proceedings.sites if job.started_at < self.record.started_at else ():
                counted[share.site.removeprefix(site_name(""))] = share.counted_images
        return counted

    def _note_sites(self, replies: Iterable[PendingReply], claims: Mapping[str, Claim]) -> None:
        """Note who takes part and what was asked, as the sites said it when the job began, and who says too much."""
        requests, sites = list[AskedRequest](), list[SiteShare]()
        for reply in replies:
            name = site_name(reply.site)
            sites.append(
                SiteShare(
                    site=name,
                    requests=len(reply.requests),
                    forget_images=reply.forget_images,
                    training_images=reply.retain_images,
                    counted_images=claims[reply.site].weight,
                )
            )
            if claims[reply.site].doubt:
                self.progress.say(f"{name} {claims[reply.site].doubt}.")
                self.recorder.tags({f"dlfd.counted.{name}": claims[reply.site].doubt})
            for request in reply.requests:
                requests.append(AskedRequest(request=request, site=name, **reply.dates[request].model_dump()))
        self.note(asked=tuple(requests), sites=tuple(sites))

    # ------------------------------------------------------------------ the end

    def settle(
        self, outcome: Literal["released", "returned"], reason: str, epoch: int, requests: Iterable[str]
    ) -> Settled:
        """Tell every site how the job ended; one step of the job."""
        job, devices = self.record.job, self._devices_reached(epoch)
        settled = self.journal.facts(
            "settle", Settled, lambda: settle(self.fleet, job, self.progress, outcome, reason, epoch, requests, devices)
        )
        self.ledgers.note(settled.ledgers)
        return settled

    def give_back(self, reason: str) -> None:
        """Let the requests of a job that ended early wait; a site that is away learns it from the next job."""
        if self.record.kind == "erase" and self.fleet.asked:
            try:
                told = settle(self.fleet, self.record.job, self.progress, "returned", reason, self.epoch, ())
                self.ledgers.note(told.ledgers)
            except FleetError as error:
                self.progress.say(f"The sites could not be told that {self.record.job} has ended: {error}")

    def _devices_reached(self, epoch: int) -> DevicesReached | None:
        """Return how far erasures have come on devices; None if that cannot be read, and then requests wait on."""
        try:
            return devices_reached(self.settings, epoch)
        except DeliveryError as error:
            self.progress.say(f"Whether devices have purged is not known, so no request is closed: {error}")
            return None


def released_requests(jobs: Iterable[JobRecord]) -> dict[str, dict[str, int]]:
    """Return every request that a released model has forgotten, and that model's epoch, by site."""
    found: dict[str, dict[str, int]] = {}
    for record in jobs:
        served = frozenset(record.forgotten) if record.released else frozenset()
        for asked in record.proceedings.asked:
            if asked.request in served:
                found.setdefault(asked.site, {})[asked.request] = record.epoch
    return found
