"""What people decide at a coordinator's desk: what each decision would do, and the command's function that does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

from dlfd_fleet.delivery import rollout
from dlfd_fleet.delivery.delivery import opened as opened_delivery
from dlfd_fleet.delivery.status import rollout_line
from dlfd_fleet.desk.starts import KINDS, Kind, Starts
from dlfd_fleet.federation.jobs import command
from dlfd_fleet.federation.jobs.plan import last_costs, refuse_beside
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.release import promotion
from dlfd_fleet.federation.release.rollout_decisions import change_rollout
from dlfd_fleet.settings import Settings


@dataclass(frozen=True)
class Action:
    """Something that a person may decide, with a reason and a second look.

    Attributes
    ----------
    title
        Of the page and the button.
    foresee
        Says what will happen; raises what the command would.
    act
        Does it, for somebody and a reason, and returns where to look next.
    """

    title: str
    foresee: Callable[[], list[str]]
    act: Callable[[str, str], str]


@dataclass(frozen=True)
class Actions:
    """Everything that may be decided at a coordinator's desk."""

    settings: Settings
    starts: Starts

    def find(self, act: str, about: str) -> Action | None:
        """Return what somebody may decide; None if there is no such thing.

        Parameters
        ----------
        act, about
            As the path of its page has them: start and a kind of job, cancel and a job, promote or revoke and a version
            of the registry, hold, go-on.
        """
        settings = self.settings
        if act == "start" and about in KINDS:
            return self._start_action(about)
        if act == "cancel" and about:
            return Action(f"Cancel {about}", lambda: self._cancelling(about), lambda *by: self._cancel(about, *by))
        if act in {"hold", "go-on"} and not about:
            return self._rollout_action("pause" if act == "hold" else "resume")
        if about.isdecimal() and act == "promote":
            return Action(
                f"Promote version {about}",
                lambda: promotion.what_promoting_does(settings, about),
                lambda who, why: _lineage_after(promotion.promote(settings, about, who, why)),
            )
        if about.isdecimal() and act == "revoke":
            also = settings.release.purge_revoked
            return Action(
                f"Revoke version {about}",
                lambda: promotion.what_revoking_does(settings, about),
                lambda who, why: _lineage_after(promotion.revoke(settings, about, why, also_purge=also, who=who)),
            )
        return None

    def _start_action(self, kind: Kind) -> Action:
        titles = {"plan": "Plan an erasure", "train": "Start a training", "erase": "Start an erasure"}

        def foresee() -> list[str]:
            with self._store() as store:
                return _what_starting_does(store, kind)

        def act(who: str, why: str) -> str:
            name = self.starts.begin(kind, who, why)
            with self._store() as store:
                store.decisions.note("plan" if kind == "plan" else "start", name, who, why)
            return f"/starts/{name}"

        return Action(titles.get(kind, "Make reference models"), foresee, act)

    def _cancelling(self, job: str) -> list[str]:
        with self._store() as store:
            return [command.what_cancelling_does(store, job)]

    def _cancel(self, job: str, who: str, why: str) -> str:
        with self._store() as store:
            command.cancel(store, job, who, why)
        return f"/jobs/{job}"

    def _rollout_action(self, step: Literal["pause", "resume"]) -> Action:
        rules = {"pause": rollout.paused, "resume": rollout.resumed}
        words = {
            "pause": ("Hold the release", "No more devices take it; those that have it keep it."),
            "resume": ("Go on with the release", "Devices take it again, as far as its rollout has come."),
        }
        title, meaning = words[step]

        def foresee() -> list[str]:
            with opened_delivery(self.settings) as delivery:
                current = rollout.read(delivery.repository, delivery.repository.read())
                if current is None:
                    return ["There is no rollout."]
                rules[step](current)
                return [rollout_line(current), meaning]

        def act(who: str, why: str) -> str:
            change_rollout(self.settings, step, who, why)
            return "/devices"

        return Action(title, foresee, act)

    @contextmanager
    def _store(self) -> Iterator[Store]:
        with closing(Store(self.settings.state_folder)) as store:
            yield store


def _lineage_after(_: object) -> str:
    return "/lineage"


def _what_starting_does(store: Store, kind: Kind) -> list[str]:
    records, champion = store.jobs(), store.champions.current()
    if kind == "plan":
        for record in store.interrupted():
            refuse_beside(record)
    said = [
        f"{record.job} was cancelled: it is ended first."
        if store.is_cancelled(record.job)
        else f"{record.job} is not finished: it goes on first."
        for record in store.unfinished()
    ]
    if store.is_locked():
        said.append("A coordinator works on this state folder now: until that has ended, another job ends at once.")
    begins = f"the champion, {champion.job} of epoch {champion.epoch}" if champion else "fresh weights"
    if champion is None and kind != "train":
        return [*said, "There is no champion yet, so the job ends at once: train a model first, or import one."]
    said += {
        "plan": [
            "Every site is asked who waits, and the champion is audited on these people: one model goes to each site.",
            "It changes nothing.",
        ],
        "train": [f"The sites train, beginning with {begins}. If the model is no worse, it becomes the champion."],
        "erase": [
            f"The sites are asked who waits, and {begins} is made to forget them.",
            "If the verdict lets it, the new model becomes the champion, models that remember are revoked and deleted, "
            "and the sites delete the people's images and names. That cannot be taken back.",
        ],
        "references": [
            f"Reference models of {begins} are trained at the sites and deleted; the sites keep their answers.",
            "It takes about as long as two trainings.",
        ],
    }[kind]
    return said + [f"{cost}." for cost in last_costs(records)]
