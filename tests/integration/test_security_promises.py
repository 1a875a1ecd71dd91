"""What docs/explanation/security.md promises of sites that mean harm, jobs side by side, and a curious coordinator."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import defaultdict

import numpy as np
import pytest
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo
from scipy.optimize import linear_sum_assignment

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.messages import (
    AuditTask,
    PendingQuery,
    PendingReply,
    SettleTask,
    UnlearnResult,
    UnlearnTask,
)
from dlfd_fleet.federation.protocol.packing import samples_of
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.federation.site import audits as site_audits
from dlfd_fleet.ledger import RequestState, Site, site_folders
from tests.integration.fleet_in_process import (
    InProcessGrid,
    a_person_asks_at_each_site,
    by_the_fleets_gate,
    run_job,
    trained_fleet,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return by_the_fleets_gate(trained_fleet(tmp_path_factory.mktemp("promises")))


def copy_of(trained, folder):
    shutil.copytree(trained.state_folder, folder, symlinks=True)
    return trained.model_copy(update={"state_folder": folder})


@pytest.fixture
def fleet(trained, tmp_path):
    """A copy of the trained fleet; somebody asks at each of its two sites."""
    settings = copy_of(trained, tmp_path / "state")
    a_person_asks_at_each_site(settings)
    return settings


def requests_of(settings):
    """What the sites' ledgers hold: states, and jobs."""
    found = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            site.ledger.verify()
            found.append([(request.state, request.job) for request in site.ledger.requests()])
    return found


def images_of(settings):
    found = 0
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            found += len(site.manifest().rows)
    return found


class HeardGrid(InProcessGrid):
    """Some nodes answer otherwise than the app does; keeps what sites have heard and answered."""

    def __init__(self, settings, answers=None):
        super().__init__(settings)
        self.answers, self.heard, self.said = answers or {}, defaultdict(list), defaultdict(list)

    def answer(self, message, context):
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        self.heard[node, kind].append(message.content)
        change = self.answers.get((node, kind))
        reply = super().answer(message, context) if change is not dead else dead(self, message, None)
        if change:
            reply = change(self, message, reply)
        if reply.has_content():
            self.said[node, kind].append(reply.content)
        return reply

    def asks(self, node):
        """The ids under which a node's site has counted its requests."""
        return PendingReply.from_records(self.said[node, PendingQuery.TYPE][-1], "test").requests


def dead(_grid, message, _reply):
    return Message(Error(code=0, reason="killed"), reply_to=message)


# ---------------------------------------------------------------------- sites that mean harm


def test_a_request_that_another_site_says_it_has_unlearned_is_not_done(fleet):
    """Site 2 has seen what site 1 asks; it says so of its own update, and site 1 does not answer."""

    def with_the_others_request(grid, _message, reply):
        result = UnlearnResult.from_records(reply.content, "test")
        both = {"requests": result.requests + grid.asks(1)}
        reply.content.update(result.model_copy(update=both).to_records())
        return reply

    grid = HeardGrid(fleet, {(2, UnlearnTask.TYPE): with_the_others_request, (1, UnlearnTask.TYPE): dead})
    before = images_of(fleet)
    with pytest.raises(JobError, match="says it unlearned 1 requests that it never counted"):
        run_job(fleet, "erase", grid)
    assert images_of(fleet) == before
    assert [[state for state, _ in site] for site in requests_of(fleet)] == [[RequestState.ACCEPTED]] * 2


def test_who_takes_a_sites_id_does_not_take_its_place(trained, tmp_path):
    """Node 2 says that it is node 1's site, and is heard first; by its key it is known not to be."""
    settings = copy_of(trained, tmp_path / "state")
    with Site(site_folders(settings.state_folder)[0]) as site:
        victim = site.card.id
    key = {node: f"-----BEGIN PUBLIC KEY-----\n{node}\n-----END PUBLIC KEY-----\n".encode() for node in (1, 2)}

    class Posing(HeardGrid):
        def get_nodes(self):
            return [NodeInfo(node_id=node, public_key=key[node]) for node in reversed(list(self.nodes))]

    def as_the_victim(_grid, _message, reply):
        said = PendingReply.from_records(reply.content, "test")
        reply.content.update(said.model_copy(update={"site": victim}).to_records())
        return reply

    run_job(settings, "erase", Posing(settings))  # nobody asks; the sites' keys are noted
    record = run_job(settings, "erase", Posing(settings, {(2, PendingQuery.TYPE): as_the_victim}))
    assert [share.site for share in record.proceedings.sites] == [f"site-{victim}"]
    (reason,) = [reason for name, reason in record.absent.items() if name.startswith("node-")]
    assert re.match(rf"says that it is site-{victim}, whose key is SHA256:\w+, and has the key SHA256:\w+; if", reason)


# ---------------------------------------------------------------------- two jobs at once


class Interrupted(HeardGrid):
    """Before the first message of a kind another job is run, to its end."""

    def __init__(self, settings, kind, other):
        super().__init__(settings)
        self.kind, self.other = kind, other

    def push_messages(self, messages):
        messages = list(messages)
        if self.other and any(message.metadata.message_type == self.kind for message in messages):
            other, self.other = self.other, None
            other()
        return super().push_messages(messages)


def test_of_two_jobs_on_one_state_folder_one_works_and_the_other_names_it(fleet, monkeypatch):
    lock, said = Store.lock, []
    monkeypatch.setattr(Store, "lock", lambda store, _patience=0.0: lock(store, 0.0))

    def others():
        for kind in ("train", "erase"):
            with pytest.raises(JobError) as error:
                run_job(fleet, kind)
            said.append(str(error.value))

    grid = Interrupted(fleet, AuditTask.TYPE, others)
    record = run_job(fleet, "erase", grid)
    assert record.released
    for node in grid.nodes:  # each site is told of its own request alone
        (told,) = grid.heard[node, SettleTask.TYPE]
        assert SettleTask.from_records(told, "test").requests == grid.asks(node)
        assert len(grid.asks(node)) == 1
    (sentence,) = set(said)
    assert sentence.startswith(
        f"Another coordinator works on {fleet.state_folder} (its job is {record.job}); wait until"
    )
    assert [[state for state, _ in site] for site in requests_of(fleet)] == [[RequestState.COMPLETE]] * 2


def test_jobs_of_two_state_folders_never_share_a_request(fleet, tmp_path):
    """A copy of the coordinator's folder starts a job of its own while a job works: the latter ends, and says why."""
    shutil.copytree(fleet.state_folder / "coordinator", tmp_path / "other" / "coordinator")
    (tmp_path / "other" / "sites").symlink_to(fleet.state_folder / "sites")
    other, records = fleet.model_copy(update={"state_folder": tmp_path / "other"}), []
    with pytest.raises(JobError) as error:
        run_job(fleet, "erase", Interrupted(fleet, UnlearnTask.TYPE, lambda: records.append(run_job(other, "erase"))))
    (record,) = records
    assert record.released
    assert requests_of(fleet) == [[(RequestState.COMPLETE, record.job)]] * 2
    assert record.proceedings.purged_images == 6
    assert "had taken up here are not its own any more" in str(error.value) or "the fleet's 1" in str(error.value)


def test_a_job_whose_requests_another_one_took_and_gave_back_releases_nothing_of_them(fleet, tmp_path):
    shutil.copytree(fleet.state_folder / "coordinator", tmp_path / "other" / "coordinator")
    (tmp_path / "other" / "sites").symlink_to(fleet.state_folder / "sites")
    other = fleet.model_copy(update={"state_folder": tmp_path / "other"})
    before = images_of(fleet)

    answers = {(node, AuditTask.TYPE): dead for node in (1, 2)}

    def fails():
        with pytest.raises(JobError, match="Only 0 of 2 sites answered"):
            run_job(other, "erase", HeardGrid(other, answers))

    with pytest.raises(JobError, match=r"are not its own any more: the job erase-[-\w]+ took them up since"):
        run_job(fleet, "erase", Interrupted(fleet, UnlearnTask.TYPE, fails))
    assert [[state for state, _ in site] for site in requests_of(fleet)] == [[RequestState.ACCEPTED]] * 2
    assert images_of(fleet) == before


# ---------------------------------------------------------------------- a curious coordinator


class Curious(HeardGrid):
    """Keeps every audit that it is sent, with the truth beside it: which image each row is of. That, it cannot see.

    After a number of audits all sites die, so that the job ends and everybody still asks.
    """

    def __init__(self, settings, monkeypatch, audits):
        super().__init__(settings)
        self.most, self.audits, self.truth = audits, [], []
        sent, order, orders = site_audits._sent, site_audits._random_order, []

        def ordered(count):
            orders.append(order(count))
            return orders[-1]

        def noted(probabilities, images, roles, shared):
            orders.clear()
            samples = sent(probabilities, images, roles, shared)
            own, common = orders
            self.truth.append([images.rows[number] for number in [*own, *(len(own) + common)]])
            return samples

        monkeypatch.setattr(site_audits, "_random_order", ordered)
        monkeypatch.setattr(site_audits, "_sent", noted)

    def answer(self, message, context):
        if message.metadata.message_type == AuditTask.TYPE and len(self.audits) == self.most:
            return dead(self, message, None)
        before = len(self.truth)
        reply = super().answer(message, context)
        if len(self.truth) > before:
            node = message.metadata.dst_node_id
            self.audits.append((node, samples_of(reply.content, 2, "test"), self.truth[-1]))
        return reply

    def words(self):
        """Everything that sites have said of requests."""
        return " ".join(
            str(records["body"]["json"])
            for (_, kind), said in self.said.items()
            for records in said
            if kind in (PendingQuery.TYPE, UnlearnTask.TYPE, SettleTask.TYPE)
        )


def test_a_curious_coordinator_cannot_follow_people_by_place_number_id_or_time(fleet, monkeypatch):
    """Two jobs with the same people: both end before anything is released."""
    grids = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            grids.append(Curious(fleet, patch, audits=6))
            with pytest.raises(JobError, match="Only 0 of 2 sites answered"):
                run_job(fleet, "erase", grids[-1])

    # Ids, pseudonyms and marks: none is in both jobs. Times of day: none at all.
    words = [set(re.findall(r"[0-9a-f]{16,}", grid.words())) for grid in grids]
    held = {
        PendingReply.from_records(records, "test").held
        for grid in grids
        for node in grid.nodes
        for records in grid.said[node, PendingQuery.TYPE]
    }
    assert min(map(len, words)) > 2
    assert words[0] & words[1] <= held  # the digest of a model, which is the coordinator's own
    assert not any(re.search(r"\d\d:\d\d", grid.words()) for grid in grids)

    # Places and numbers of people, in each pair of audits of the same images, within a job and between the two.
    audits = [audit for grid in grids for audit in grid.audits]
    hits, expected, people, right, chance = 0, 0, 0, 0, 0
    by_kind = defaultdict(list)
    for node, samples, rows in audits:
        by_kind[node, tuple(sorted(row.image for row in rows))].append((samples, rows))
    for alike in by_kind.values():
        for (one, rows), (other, others) in itertools.pairwise(alike):
            hits += sum(row.image == same.image for row, same in zip(rows, others, strict=True))
            expected += 2 if any(row.site == "" for row in rows) else 1  # fixed points of two shuffles, or of one
            numbers = dict(zip((row.identity for row in rows), one.person, strict=True))
            renumbered = dict(zip((row.identity for row in others), other.person, strict=True))
            right += sum(numbers[person] == renumbered[person] for person in numbers)
            people, chance = people + len(numbers), chance + 1
    assert expected > 10
    assert hits < expected + 5 * expected**0.5 + 3
    assert right < chance + 5 * chance**0.5 + 3 < people

    # Losses of one model, the original, in both jobs: with all digits each image would be found again.
    originals = [grid.audits[:2] for grid in grids]
    found = [paired(one, other) for one, other in zip(*originals, strict=True)]
    assert np.mean(np.concatenate(found)) < 0.9


def paired(one, other):
    """Pair the images of two audits by the nearest loss, of one role and label; return which pairs are right."""
    (node, x, rows), (same, y, others) = one, other
    assert node == same
    right = []
    for role, label in sorted(set(zip(x.role, x.label, strict=True))):
        left, there = (np.flatnonzero((each.role == role) & (each.label == label)) for each in (x, y))
        distance = np.abs(np.log(x.loss[left, None] + 1e-9) - np.log(y.loss[None, there] + 1e-9))
        pairs = zip(*linear_sum_assignment(distance), strict=True)
        right += [rows[left[a]].image == others[there[b]].image for a, b in pairs]
    return right
