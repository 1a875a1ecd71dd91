"""The device agent: polls, installs what the rules allow, deletes what the floor forbids, and reports it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from dlfd_fleet.device import install, report, rules
from dlfd_fleet.device.answering import Answering, Loaded
from dlfd_fleet.device.clock import Clock
from dlfd_fleet.device.contract import Release, Rollout
from dlfd_fleet.device.folder import DeviceFolder
from dlfd_fleet.device.lease import lease_in_force, offered_lease
from dlfd_fleet.device.reserve import RESERVED, give_up_reserve, keep_reserve
from dlfd_fleet.device.state import DeviceState, Refusal, Slot
from dlfd_fleet.device.update import UpdateClient
from dlfd_fleet.exceptions import DeviceError, UpdateRefusedError, UpdateUnreachableError

_CLOCK_SLACK = timedelta(minutes=5)
_MOST_ATTACKS = 20
_LONGEST_ATTACK = 500


class Agent:
    """The agent of one device's folder. The caller must hold :meth:`DeviceFolder.only_agent`.

    Parameters
    ----------
    folder
        The device's folder.

    Attributes
    ----------
    answering
        The current model, for other threads.
    state
        The device's state.
    """

    def __init__(self, folder: DeviceFolder) -> None:
        self._folder = folder
        self._client: UpdateClient | None = None
        self._clock = Clock(folder.clock)
        self.state = folder.read_state()
        self.answering = Answering(self._clock)
        self._listed: set[str] | None = None
        self._start()

    def poll(self) -> None:
        """Poll once: update, purge, and report.

        A report that cannot be sent waits, without an error; ``state.unreported`` has the reason.

        Raises
        ------
        UpdateRefusedError
            If something was refused; the device keeps its model, if that may run.
        UpdateUnreachableError
            If the coordinator does not answer, or the disk refuses.
        DeviceError
            If a model failed its self-test, or the floor is lost.
        """
        problem: DeviceError | None = None
        try:
            problem = self._poll_repository()
        except DeviceError as error:
            problem = error
        except OSError as error:
            problem = self._disk(error)
        if isinstance(problem, UpdateRefusedError):
            self._note(problem)
        try:
            self._end(problem)
        except OSError as error:
            problem = problem or self._disk(error)
        if problem:
            raise problem

    # ------------------------------------------------------------------ the steps of a poll

    def _start(self) -> None:
        """Load the current model, or the previous one if the current one may not or cannot run."""
        self._lease()
        floor = self._folder.floor.read()
        self.state = rules.slots_at_floor(self.state, floor)
        for slot in self.state.slots:
            try:
                model = install.load(self._folder, slot, floor)
            except DeviceError as error:
                self._note(error)
                self.answering.withhold(str(error).rstrip("."))
                if not install.is_whole(self._folder, slot):
                    self.state = rules.without(self.state, slot)
            else:
                self.state = rules.slots_after(self.state, slot, floor)
                self.answering.answer_with(Loaded(model, slot.release))
                return

    def _poll_repository(self) -> DeviceError | None:
        self._folder.floor.raise_to(0)  # mends a damaged copy
        if not self.answering.has_model and self.state.slots:
            self._start()
        self._refresh()
        with self.answering.installing():
            self._raise_floor(self._updates.floor())
            clock = self._hear()
            return self._follow() or clock

    def _refresh(self) -> None:
        """Read the repository, also on a full disk."""
        try:
            self._updates.refresh()
        except UpdateUnreachableError as error:
            if not give_up_reserve(self._folder.reserve, error):
                raise
            self._updates.refresh()

    def _raise_floor(self, epoch: int) -> None:
        """Forbid models under the epoch: stop answering with them, raise the floor on disk, delete them."""
        epoch = max(epoch, self._folder.floor.read())
        kept = rules.slots_at_floor(self.state, epoch)
        if kept.current != self.state.current:
            self.answering.withhold(f"the one that it had is under the floor {epoch}")
        self.state = kept
        with suppress(OSError):  # a full disk: deleting what is forbidden makes room
            self._folder.floor.raise_to(epoch)
        self._purge(lambda path: install.epoch_of(path) >= epoch)
        self._folder.floor.raise_to(epoch)
        if not self.answering.has_model:
            self._start()

    def _hear(self) -> DeviceError | None:
        """Note the contact with the coordinator.

        With a lease it does not count if the clock was set back, because old metadata could be replayed. Without a
        lease this does not matter.
        """
        now = self._clock.now()
        if self._folder.settings.lease_days is None and self.state.acknowledged_lease is None:
            now = min(now, datetime.now(UTC))
        behind = now - datetime.now(UTC)
        if behind > _CLOCK_SLACK:
            return UpdateRefusedError(
                f"The clock here is {behind} behind the latest time that this device has seen, so the lease is not "
                "renewed: set the clock right; if it was ahead before, 'dlfd-fleet-device once --clock-is-right'."
            )
        self.state = self.state.but(heard=now)
        self._lease()
        return None

    def _follow(self) -> DeviceError | None:
        """Install the release that the rules choose; return errors."""
        problem: DeviceError | None = None
        rollout: Rollout | None = rules.NOTHING_NEW
        try:
            rollout = self._updates.rollout()
        except DeviceError as error:
            problem = error
        offers = self._updates.releases()
        listed = {(target, self._updates.sha256(target)) for target, _ in offers}
        self._listed = {digest for _, digest in listed}
        self.state = self.state.but(refusals=rules.standing(self.state.refusals, listed, datetime.now(UTC)))
        missing: dict[str, DeviceError] = {}
        while offer := self._choice(offers, rollout, {*missing, *self._refused()}):
            try:
                slot = self._slot(*offer)
                self._bring(slot)
            except DeviceError as error:  # another attempt may bring what was signed
                missing[offer[0]] = error
                continue
            try:
                self._exchange(slot)
            except DeviceError as error:  # another attempt would end as this one
                self._refuse(slot, error)
        wanted = self._choice(offers, rollout, ())
        if wanted is None:
            self.state = self.state.but(refusals=())
            return problem
        return missing.get(wanted[0]) or DeviceError(self._refused()[wanted[0]])

    def _choice(
        self, offers: list[rules.Offer], rollout: Rollout | None, refused: Collection[str]
    ) -> rules.Offer | None:
        return rules.choose(
            offers,
            rollout,
            device=self._folder.device,
            formats=self._folder.settings.formats,
            floor=self._folder.floor.read(),
            current=self.state.current.release if self.state.current else None,
            refused=refused,
        )

    def _refused(self) -> dict[str, str]:
        """Return targets that are not tried again today, with the reason."""
        return {refusal.target: refusal.reason for refusal in self.state.refusals}

    def _slot(self, target: str, release: Release) -> Slot:
        sha256 = self._updates.sha256(target)
        data_sha256 = self._updates.sha256(release.data) if release.data else None
        try:
            return Slot(target=target, sha256=sha256, data_sha256=data_sha256, release=release)
        except ValidationError as error:
            raise UpdateRefusedError(f"{target} is signed with an invalid digest: {sha256:.80}.") from error

    def _bring(self, slot: Slot) -> None:
        if not install.is_whole(self._folder, slot):
            self._make_room(install.download_size(self._updates, slot))
            install.bring(self._folder, self._updates, slot)

    def _exchange(self, slot: Slot) -> None:
        """Test a model and make it the current one, in an order that is safe in a power cut."""
        floor = self._folder.floor.read()
        if not install.is_whole(self._folder, slot):
            install.put_in_place(self._folder, slot, floor)
        model = install.load(self._folder, slot, floor)
        self._save(rules.slots_after(self.state, slot, floor))
        self.answering.answer_with(Loaded(model, slot.release))

    def _make_room(self, size: int) -> None:
        """Delete the previous model if the disk has no space for three; refuse an update that needs the reserve."""
        spare = 0 if self._folder.reserve.exists() else RESERVED
        if self.state.previous and shutil.disk_usage(self._folder.path).free < size + spare:
            self._save(self.state.but(previous=None))
            self._purge_spare()
        room = shutil.disk_usage(self._folder.path).free - spare
        if spare and self.answering.has_model and room < size:
            raise UpdateUnreachableError(
                f"The next model has {size} bytes, and {self._folder.path} has room for {max(room, 0)}: make room on "
                "the disk."
            )

    def _end(self, problem: DeviceError | None) -> None:
        """Delete unneeded models, save the state, and report."""
        self._purge_spare()
        keep_reserve(self._folder.reserve)
        self._clock.keep()
        offered = self._offered_lease()
        has_lease = offered is None or self._clock.now() < offered
        healthy = self.answering.has_model and has_lease and not self.state.refusals
        self._save(self.state.but(healthy=healthy, problem=str(problem or "")))
        try:
            self._report()
        except UpdateUnreachableError as error:
            waits = self._folder.waiting_report.exists()
            reported = self.state.reported if waits else None
            self._save(self.state.but(unreported=str(error), reported=reported))

    def _purge_spare(self) -> None:
        slots = {self._folder.models / install.folder_name(slot) for slot in self.state.slots}
        floor = self._folder.floor.read()
        refused = {refusal.sha256 for refusal in self.state.refusals}

        def is_kept(path: Path) -> bool:
            if path.parent == self._folder.models:
                return path in slots
            digest = path.name.partition("-")[2]
            is_offered = self._listed is None or digest in self._listed
            return install.epoch_of(path) >= floor and is_offered and digest not in refused

        self._purge(is_kept)

    def _purge(self, is_kept: Callable[[Path], bool]) -> None:
        """Delete models; note their digests before and the deletion after."""
        doomed = [path for path in install.model_folders(self._folder) if not is_kept(path)]
        if not doomed and not self.state.purging:
            return
        digests = (*self.state.purging, *install.digests_of(self._folder, doomed))
        self.state = self.state.but(purging=tuple(dict.fromkeys(digests)))
        with suppress(OSError):  # a full disk must not keep what is to be forgotten
            self._save(self.state)
        install.delete(doomed)
        self._save(self.state.but(purging=(), purged=tuple(dict.fromkeys((*self.state.purged, *digests)))))

    def _report(self) -> None:
        """Send the waiting report, then a new one."""
        floor = self._folder.floor.read()
        for _ in range(2):
            if not self._folder.waiting_report.exists():
                wall = datetime.now(UTC)
                offered = self._offered_lease()
                if not report.is_due(self.state, floor, self._clock.now(), wall, offered):
                    return
                self._save(report.write_report(self._folder, self.state, floor, wall, offered))
            self._save(report.send_report(self._folder, self.state).but(unreported=""))
            self._lease()
            self._folder.waiting_report.unlink()

    @property
    def _updates(self) -> UpdateClient:
        """The client of the repository, opened on first use, because predictions do not need it."""
        if self._client is None:
            self._client = self._folder.client()
        return self._client

    # ------------------------------------------------------------------ what is remembered

    def _save(self, state: DeviceState) -> None:
        self._folder.write_state(state)
        self.state = state

    def _refuse(self, slot: Slot, error: DeviceError) -> None:
        refusal = Refusal(
            target=slot.target,
            sha256=slot.sha256,
            sequence=slot.release.sequence,
            reason=str(error),
            time=datetime.now(UTC),
        )
        self.state = self.state.but(refusals=(*self.state.refusals, refusal))
        self._note(error)

    def _note(self, error: DeviceError) -> None:
        """Note a refusal once for the next report."""
        words = str(error)[:_LONGEST_ATTACK]
        if words not in self.state.attacks and len(self.state.attacks) < _MOST_ATTACKS:
            self.state = self.state.but(attacks=(*self.state.attacks, words))

    def _lease(self) -> None:
        self.answering.lease(lease_in_force(self._offered_lease(), self.state.acknowledged_lease))

    def _offered_lease(self) -> datetime | None:
        return offered_lease(self.state.heard, self._folder.settings.lease_days)

    def _disk(self, error: OSError) -> DeviceError:
        return UpdateUnreachableError(f"{self._folder.path} cannot be used: {error.strerror or error}.")
