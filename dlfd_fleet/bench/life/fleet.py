"""The life of one fleet: people ask, join and are forgotten, sites leave and return; it goes on where it was killed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch.nn import functional

from dlfd_fleet.bench.cost import resident_memory
from dlfd_fleet.bench.life.devices import Devices
from dlfd_fleet.bench.life.measures import (
    MEBIBYTE,
    Erasure,
    Utility,
    append_row,
    attack_auc,
    read_rows,
    seconds_of_queries,
    size_of,
)
from dlfd_fleet.bench.life.people import CLASSES, HIGH, LOW, NETWORK, NUMBERS, add_rows, rows_of
from dlfd_fleet.bench.life.sites_here import SitesHere
from dlfd_fleet.data import canonical
from dlfd_fleet.data.loaders import write_npz
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.run import run_jobs
from dlfd_fleet.federation.records.job_record import JobKind, JobRecord
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.site.images import used_images
from dlfd_fleet.files import whole_file
from dlfd_fleet.ledger import RequestState, Site, refresh_rows, request_forgetting, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.ledger.states import DROPPED, FORGOTTEN, TO_PURGE
from dlfd_fleet.models import load_model, permit
from dlfd_fleet.progress import ProgressDisplay
from dlfd_fleet.settings import DataSettings, ModelSettings, Settings

if TYPE_CHECKING:
    from flwr.serverapp import Grid

SITES = 8
_PEOPLE, _UNSEEN, _STRANGERS = 30 * SITES, 24, 1500
_MOST_ASK, _BETWEEN_TRAININGS, _JOIN = 3, 5, 10
_LEAVES_EVERY, _AWAY = 25, 10
_COPY_COMES_BACK = 10


class State(BaseModel):
    """What has been begun, so that a life that was killed goes on: it is written before anything is done."""

    model_config = ConfigDict(extra="forbid")

    asked: dict[int, list[tuple[int, str]]] = {}
    """Who asks before each erasure: the number of the site, and the person."""
    joined: dict[int, list[tuple[int, str]]] = {}
    """Who joins before each erasure."""
    trained: list[int] = []
    """Before which erasures the fleet has trained."""
    unreleased: int = 0
    """Trainings whose model was not released."""


@dataclass(frozen=True)
class Life:
    """A fleet in a folder of its own.

    Attributes
    ----------
    given
        The settings of the command; data, model and state folder are the bench's own.
    """

    given: Settings
    folder: Path
    progress: ProgressDisplay

    @cached_property
    def settings(self) -> Settings:
        """The fleet's."""
        data = DataSettings(
            source="npz",
            manifest=self.folder / "people.npz",
            numbers=(NUMBERS,),
            value_range=(LOW, HIGH),
            sites=SITES,
            validation_people=_UNSEEN,
            test_people=_UNSEEN,
        )
        tracking = self.given.tracking.model_copy(update={"uri": None, "system_metrics": False})
        model = ModelSettings(architecture=NETWORK)
        keys = {"root_keys": 1, "root_threshold": 1, "targets_keys": 1, "targets_threshold": 1}
        delivery = self.given.delivery.model_copy(update={**keys, "folder": self.folder / "delivery"})
        changes = {"data": data, "model": model, "state_folder": self.folder / "state", "tracking": tracking}
        changes |= {"delivery": delivery}
        return self.given.model_copy(update=changes)

    @property
    def erasures_file(self) -> Path:
        """A row for each erasure."""
        return self.folder / "erasures.csv"

    @property
    def utility_file(self) -> Path:
        """A row for each comparison with retraining."""
        return self.folder / "utility.csv"

    # ------------------------------------------------------------------ going on

    def go_on(self, erasures: int, compared: Iterable[int], deadline: float) -> None:
        """Live on until there were so many erasures, or until the deadline (:func:`time.monotonic`)."""
        self._begin()
        done = len(read_rows(self.erasures_file, Erasure))
        with_retraining = {int(row["number"]) for row in read_rows(self.utility_file, Utility)}
        for number in range(1, erasures + 1):
            if number > done:
                if time.monotonic() >= deadline:
                    return
                self._train_before(number)
                append_row(self.erasures_file, self._erase(number))
            if number in compared and number not in with_retraining and number >= done:
                append_row(self.utility_file, self._utility(number))

    def _begin(self) -> None:
        permit(self.settings.model.architecture)
        if not (self.settings.state_folder / "sites").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            names = [f"person-{number:05d}" for number in range(_PEOPLE + 2 * _UNSEEN)]
            write_npz(self.folder / "people.npz", rows_of(names, self.settings.seed))
            deal_to_sites(self.settings, self.progress)
        with closing(Store(self.settings.state_folder)) as store:
            trained = store.champions.current() is not None
        if not trained:
            self._run("train")
        self.devices.begin()

    def _run(self, kind: JobKind, number: int = 0) -> JobRecord:
        return run_jobs(self._grid(number), kind, self.settings, self.progress)

    def _grid(self, number: int) -> Grid:
        return cast("Grid", SitesHere(self.nodes, frozenset(self._away(number))))

    @property
    def devices(self) -> Devices:
        """What runs the fleet's models."""
        return Devices(self.settings, self.folder / "devices")

    @cached_property
    def nodes(self) -> dict[int, Path]:
        """The folders of sites, by their nodes."""
        return dict(enumerate(site_folders(self.settings.state_folder), start=1))

    @staticmethod
    def _away(number: int) -> set[int]:
        """Return the site that is away at an erasure: every 25 erasures another one leaves for ten jobs."""
        turn, place = divmod(number, _LEAVES_EVERY)
        return {1 + turn % SITES} if 5 <= place < 5 + _AWAY else set()

    # ------------------------------------------------------------------ what happens

    def _train_before(self, number: int) -> None:
        """Let people join, and train on from the champion, before every fifth erasure."""
        state = self._state()
        if number == 1 or (number - 1) % _BETWEEN_TRAININGS or number in state.trained:
            return
        there = sorted(set(self.nodes) - self._away(number))
        new = [(there[place % len(there)], f"newcomer-{number:04d}-{place:02d}") for place in range(_JOIN)]
        state.joined[number] = new
        self._write(state)
        for node in there:
            people = [person for at, person in new if at == node]
            if people:
                self._add_arrays(node, rows_of(people, self.settings.seed))
        try:
            self._run("train", number)
        except JobError as error:  # a model that is worse than the champion is not released
            self.progress.say(str(error))
            state.unreleased += 1
        state.trained.append(number)
        self._write(state)

    def _add_arrays(self, node: int, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Add rows to a site's storage, unless they are there, and let the site read it."""
        folder = self.nodes[node]
        with np.load(folder / "rows.npz", allow_pickle=False) as rows:
            there = set(rows["people"].tolist())
        if not there & set(arrays["people"].tolist()):
            add_rows(folder / "rows.npz", arrays)
        with Site(folder) as site:
            refresh_rows(site)

    def _erase(self, number: int) -> Erasure:
        state = self._state()
        if number not in state.asked:
            state.asked[number] = self._who_asks(number, state)
            self._write(state)
        for node, person in state.asked[number]:
            self._keep_copy(node, person)
            with Site(self.nodes[node]) as site:
                if not site.ledger.requests_of(site.person_digest(person)):
                    days = self.settings.erasure.deadline_days
                    request_forgetting(site, person, deadline_days=days)
        if number % _COPY_COMES_BACK == 0:
            self._bring_back(number, state)
        started = time.perf_counter()
        try:
            record = self._run("erase", number)
        except JobError as error:
            self.progress.say(str(error))
            record = self._last()
        return self._measured(number, record, time.perf_counter() - started)

    def _who_asks(self, number: int, state: State) -> list[tuple[int, str]]:
        """Draw one to three people of whoever is trained on; at a site that is away, too, where somebody asks there."""
        random = np.random.default_rng([self.settings.seed, number])
        asked = {person for people in state.asked.values() for _, person in people}
        known = [pair for pair in self._trained_people(state) if pair[1] not in asked]
        chosen = random.choice(len(known), size=int(random.integers(1, _MOST_ASK + 1)), replace=False)
        return [known[index] for index in sorted(chosen.tolist())]

    def _trained_people(self, state: State) -> list[tuple[int, str]]:
        """Return everybody whom the sites have ever trained on, and their sites."""
        dealt = list[tuple[int, str]]()
        file = self.folder / "dealt.npy"
        if not file.exists():
            for node, folder in self.nodes.items():
                with Site(folder) as site:
                    own = {row.identity for row in site.manifest().rows if row.split == "train"}
                    dealt += [(node, person) for person in sorted(own)]
            with file.open("wb") as stream:
                np.save(stream, np.array([f"{node} {person}" for node, person in dealt]))
        else:
            pairs = (str(pair).split(" ", 1) for pair in np.load(file))
            dealt = [(int(node), person) for node, person in pairs]
        return dealt + [pair for new in state.joined.values() for pair in new]

    def _keep_copy(self, node: int, person: str) -> None:
        """Keep somebody's rows as their site has them, where no purge finds them: they are brought back later."""
        file = self.folder / "copies" / f"{person}.npz"
        if file.exists():
            return
        file.parent.mkdir(exist_ok=True)
        with np.load(self.nodes[node] / "rows.npz", allow_pickle=False) as rows:
            write_npz(file, {name: rows[name][rows["people"] == person] for name in rows.files})

    def _bring_back(self, number: int, state: State) -> None:
        """Import the very rows of somebody who is forgotten again, their name spelled otherwise: no site may list them.

        Numbers are told by their person, too, so under another name they would be somebody else's.
        """
        there = [pair for pair in self._forgotten(state) if pair[0] not in self._away(number)]
        if there:
            node, person = there[number % len(there)]
            with np.load(self.folder / "copies" / f"{person}.npz", allow_pickle=False) as rows:
                arrays = {name: rows[name] for name in rows.files}
            arrays["people"] = np.full(len(arrays["people"]), person.upper())
            self._add_arrays(node, arrays)

    # ------------------------------------------------------------------ what is left of whom

    def _forgotten(self, state: State) -> list[tuple[int, str]]:
        """Return whom released models have forgotten, and their sites."""
        found = []
        for node, person in (pair for people in state.asked.values() for pair in people):
            with Site(self.nodes[node]) as site:
                requests = site.ledger.requests_of(site.person_digest(person))
            if requests and requests[-1].state in (*FORGOTTEN, *TO_PURGE):
                found.append((node, person))
        return found

    def _measured(self, number: int, record: JobRecord, seconds: float) -> Erasure:
        state, settings = self._state(), self.settings
        gone = self._forgotten(state)
        asked = {person for people in state.asked.values() for _, person in people}
        lost, returned = 0, 0
        for node, folder in self.nodes.items():
            with Site(folder) as site:
                site.ledger.verify()
                retain = used_images(site).retain()
                waiting = {request.identity for request in site.ledger.requests(RequestState.ACCEPTED)}
                dropped = [request for request in site.ledger.requests() if request.state in DROPPED]
            named = {canonical(person) for person in retain.identities}
            own = [person for at, person in self._trained_people(state) if at == node]
            lost += sum(canonical(person) not in named for person in own if person not in asked) + len(dropped)
            mine = [person for at, person in gone if at == node]
            there = waiting | set(mine)
            lost += sum(person not in there for people in state.asked.values() for at, person in people if at == node)
            rows = {_content(row) for row in settings.data.input.on_device(retain.images[:].numpy())}
            ever = rows_of(mine, settings.seed)["inputs"] if mine else np.zeros((0, NUMBERS), dtype=np.float32)
            returned += sum(canonical(person) in named for person in mine)
            returned += sum(_content(row) in rows for row in ever)
        coordinator = settings.state_folder / "coordinator"
        stored = [settings.state_folder / name for name in ("mlflow.db", "mlartifacts")]
        with closing(Store(settings.state_folder)) as store:
            wrong = self.devices.hear(number, store)
        return Erasure(
            number=number,
            verdict=record.verdict.outcome.value if record.verdict else "",
            released=record.released,
            seconds=seconds,
            asked=len(asked),
            forgotten=len(gone),
            waiting=len(asked) - len(gone),
            lost=lost,
            returned=returned,
            wrong_devices=wrong,
            memory=resident_memory() / MEBIBYTE,
            state=size_of(coordinator),
            sites=size_of(settings.state_folder / "sites"),
            mlflow=size_of(*stored),
            query=seconds_of_queries(settings),
            process=os.getpid(),
        )

    # ------------------------------------------------------------------ beside a retraining

    def _utility(self, number: int) -> Utility:
        """Train anew on a copy of the fleet, and compare both models on strangers and on everybody who is forgotten."""
        copy = self.folder / f"retrained-{number}"
        shutil.rmtree(copy, ignore_errors=True)
        for name in ("sites", "coordinator"):
            shutil.copytree(self.settings.state_folder / name, copy / name)
        training = self.settings.training.model_copy(update={"start": "fresh"})
        tracking = self.settings.tracking.model_copy(update={"uri": "http://127.0.0.1:9"})  # nobody listens there
        changes = {"state_folder": copy, "training": training, "tracking": tracking}
        settings = self.settings.model_copy(update=changes)
        nodes = dict(enumerate(site_folders(copy), start=1))
        with closing(Store(copy)) as store:
            champion = store.champions.current()
        if champion is None:
            raise JobError("The fleet has no champion.")
        before = self._models_scores(self.settings.state_folder, champion.job)
        audit = settings.audit.model_copy(update={"max_accuracy_drop": 1.0, "min_gain_over_majority": -1.0})
        settings = settings.model_copy(update={"audit": audit})
        record = run_jobs(cast("Grid", SitesHere(nodes)), "train", settings, self.progress)
        after = self._models_scores(copy, record.job)
        shutil.rmtree(copy)
        return Utility(number, before[0], after[0], before[1], after[1])

    def _models_scores(self, state_folder: Path, job: str) -> tuple[float, float]:
        """Return a model's accuracy on strangers, and the attack on everybody who is forgotten."""
        with closing(Store(state_folder)) as store:
            model, card = load_model(store.folders.model(job))
        seed = self.settings.seed
        strangers = rows_of([f"stranger-{number:05d}" for number in range(_STRANGERS)], seed)
        right, unseen = _losses(model, card.classes, strangers)
        people = [person for _, person in self._forgotten(self._state())]
        _, forgotten = _losses(model, card.classes, rows_of(people, seed)) if people else (right, unseen)
        return float(right.mean()), attack_auc(forgotten, unseen)

    # ------------------------------------------------------------------ the state

    def _last(self) -> JobRecord:
        with closing(Store(self.settings.state_folder)) as store:
            return store.jobs()[-1]

    def _state(self) -> State:
        file = self.folder / "life.json"
        return State.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else State()

    def _write(self, state: State) -> None:
        with whole_file(self.folder / "life.json", JobError) as new:
            new.write_text(state.model_dump_json(), encoding="utf-8")


def _content(row: NDArray[np.generic]) -> bytes:
    """Return what tells one row from another: a few digits, for it was scaled and back."""
    return np.round(row.astype(np.float64), 3).tobytes()


def _losses(
    model: torch.nn.Module, classes: tuple[str, ...], rows: dict[str, NDArray[np.generic]]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return of each row whether a model is right, and the loss."""
    scaled = torch.from_numpy((rows["inputs"].astype(np.float32) - LOW) / (HIGH - LOW)).float()
    labels = torch.tensor([classes.index(label) for label in rows["labels"].tolist()])
    model.eval()
    with torch.no_grad():
        logits = model(scaled)
    loss = functional.cross_entropy(logits, labels, reduction="none")
    return (logits.argmax(dim=1) == labels).numpy(), loss.double().numpy()


__all__ = ["CLASSES", "Life"]
