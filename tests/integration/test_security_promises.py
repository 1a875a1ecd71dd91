"""What docs/security.md promises of sites that mean harm, of jobs side by side, and of a curious coordinator."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import defaultdict
from contextlib import closing

import pytest
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation import site_tasks
from dlfd_fleet.federation.messages import (
    AuditTask,
    FileAuditTask,
    PendingQuery,
    PendingReply,
    SettleTask,
    UnlearnResult,
    UnlearnTask,
    samples_of,
)
from dlfd_fleet.federation.site_keys import SITE_KEYS_FILE
from dlfd_fleet.federation.store import Store
from dlfd_fleet.ledger import RequestState, Site, site_folders
from tests.integration.fleet_in_process import InProcessGrid, a_person_asks_at_each_site, run_job, trained_fleet


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_fleet(tmp_path_factory.mktemp("promises"))


@pytest.fixture
def fleet(trained, tmp_path):
    """A copy of the trained fleet; somebody asks at each of its two sites."""
    shutil.copytree(trained.state_folder, tmp_path / "state", symlinks=True)
    settings = trained.model_copy(update={"state_folder": tmp_path / "state"})
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


class KeyedGrid(InProcessGrid):
    """Nodes have keys, as SuperNodes have; some answer otherwise than the app does."""

    def __init__(self, settings, keys=None, answers=None):
        super().__init__(settings)
        self.keys, self.answers = keys or {}, answers or {}

    def get_nodes(self):
        return [NodeInfo(node_id=node, public_key=self.key(node)) for node in self.nodes]

    def key(self, node):
        name = self.keys.get(node, f"key {node}")
        return f"-----BEGIN PUBLIC KEY-----\n{name}\n-----END PUBLIC KEY-----\n".encode()

    def answer(self, message, context):
        reply = super().answer(message, context)
        change = self.answers.get((message.metadata.dst_node_id, message.metadata.message_type))
        return change(self, message, reply) if change else reply


def dead(_grid, message, _reply):
    return Message(Error(code=0, reason="killed"), reply_to=message)


# ---------------------------------------------------------------------- sites that mean harm


def test_a_request_that_another_site_says_it_has_unlearned_is_not_done(fleet):
    """Site 2 has seen what site 1 asks; it says so of its own update, and site 1 does not answer."""

    def with_the_others_request(grid, message, reply):
        result = UnlearnResult.from_records(reply.content, "test")
        (others,) = {reply.requests for reply in pending_replies(grid)} - {result.requests}
        reply.content.update(result.model_copy(update={"requests": result.requests + others}).to_records())
        return reply

    grid = KeyedGrid(fleet, answers={(2, UnlearnTask.TYPE): with_the_others_request, (1, UnlearnTask.TYPE): dead})
    before = images_of(fleet)
    with pytest.raises(JobError, match="says it unlearned 1 requests that it never counted"):
        run_job(fleet, "erase", grid)
    assert images_of(fleet) == before
    assert [[state for state, _ in site] for site in requests_of(fleet)] == [[RequestState.ACCEPTED]] * 2


def test_each_site_is_told_of_its_own_requests_alone(fleet):
    grid = InProcessGrid(fleet)
    assert run_job(fleet, "erase", grid).released
    asked = {
        seen.metadata.src_node_id: PendingReply.from_records(seen.content, "test").requests
        for seen in grid.seen
        if seen.metadata.message_type == PendingQuery.TYPE and seen.metadata.src_node_id in grid.nodes
    }
    told = {
        seen.metadata.dst_node_id: SettleTask.from_records(seen.content, "test").requests
        for seen in grid.seen
        if seen.metadata.message_type == SettleTask.TYPE and seen.metadata.dst_node_id in grid.nodes
    }
    assert told == asked
    assert all(len(requests) == 1 for requests in told.values())


def test_who_takes_a_sites_id_does_not_take_its_place(fleet):
    """Node 2 says that it is node 1's site, and is heard first; by its key it is known not to be."""
    run_job(fleet, "train", KeyedGrid(fleet))
    with closing(Store(fleet.state_folder)) as store:
        assert len((store.folder / SITE_KEYS_FILE).read_text().splitlines()) == 4
    with Site(site_folders(fleet.state_folder)[0]) as site:
        victim = site.card.id

    def posing(_grid, _message, reply):
        said = PendingReply.from_records(reply.content, "test")
        reply.content.update(said.model_copy(update={"site": victim}).to_records())
        return reply

    grid = KeyedGrid(fleet, answers={(2, PendingQuery.TYPE): posing})
    grid.nodes = dict(reversed(grid.nodes.items()))
    record = run_job(fleet, "erase", grid)
    assert [share.site for share in record.proceedings.sites] == [f"site-{victim}"]
    (reason,) = [reason for name, reason in record.absent.items() if name.startswith("node-")]
    assert re.match(rf"says that it is site-{victim}, whose key is SHA256:\w+, and has the key SHA256:\w+; if", reason)


def test_a_site_whose_key_was_changed_is_refused_until_its_line_is_deleted(fleet):
    run_job(fleet, "train", KeyedGrid(fleet))
    changed = {1: "another"}
    record = run_job(fleet, "train", KeyedGrid(fleet, changed))
    assert len(record.proceedings.sites) == 1
    with closing(Store(fleet.state_folder)) as store, Site(site_folders(fleet.state_folder)[0]) as site:
        file = store.folder / SITE_KEYS_FILE
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if not line.startswith(site.card.id)))
    assert len(run_job(fleet, "train", KeyedGrid(fleet, changed)).proceedings.sites) == 2


# ---------------------------------------------------------------------- two jobs at once


class Interrupted(InProcessGrid):
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

    record = run_job(fleet, "erase", Interrupted(fleet, AuditTask.TYPE, others))
    assert record.released
    (sentence,) = set(said)
    assert sentence.startswith(
        f"Another coordinator works on {fleet.state_folder} (its job is {record.job}); wait until"
    )
    assert [[state for state, _ in site] for site in requests_of(fleet)] == [[RequestState.COMPLETE]] * 2


@pytest.mark.parametrize("kind", [AuditTask.TYPE, UnlearnTask.TYPE])
def test_jobs_of_two_state_folders_never_share_a_request(fleet, tmp_path, kind):
    """A copy of the coordinator's folder starts a job of its own while a job works: the latter ends, and says why."""
    shutil.copytree(fleet.state_folder / "coordinator", tmp_path / "other" / "coordinator")
    (tmp_path / "other" / "sites").symlink_to(fleet.state_folder / "sites")
    other, records = fleet.model_copy(update={"state_folder": tmp_path / "other"}), []
    with pytest.raises(JobError) as error:
        run_job(fleet, "erase", Interrupted(fleet, kind, lambda: records.append(run_job(other, "erase"))))
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
            run_job(other, "erase", KeyedGrid(other, answers=answers))

    with pytest.raises(JobError, match=r"not its own any more: another job took them up since"):
        run_job(fleet, "erase", Interrupted(fleet, UnlearnTask.TYPE, fails))
    assert [[state for state, _ in site] for site in requests_of(fleet)] == [[RequestState.ACCEPTED]] * 2
    assert images_of(fleet) == before


# ---------------------------------------------------------------------- a curious coordinator


class Curious(InProcessGrid):
    """Keeps every audit that it is sent, with the truth beside it: which image each row is of. That, it cannot see."""

    def __init__(self, settings, monkeypatch, job_dies_at=()):
        super().__init__(settings)
        self.dies_at, self.audits, self.truth = job_dies_at, [], []
        sent, order, orders = site_tasks._sent, site_tasks._random_order, []

        def ordered(count):
            orders.append(order(count))
            return orders[-1]

        def noted(probabilities, images, roles, shared):
            orders.clear()
            samples = sent(probabilities, images, roles, shared)
            own, common = orders
            self.truth.append([images.rows[number] for number in [*own, *(len(own) + common)]])
            return samples

        monkeypatch.setattr(site_tasks, "_random_order", ordered)
        monkeypatch.setattr(site_tasks, "_sent", noted)

    def answer(self, message, context):
        if message.metadata.message_type in self.dies_at:
            return dead(self, message, None)
        before = len(self.truth)
        reply = super().answer(message, context)
        if len(self.truth) > before:
            samples = samples_of(reply.content, 2, "test")
            self.audits.append((message.metadata.dst_node_id, samples, self.truth[-1]))
        return reply


def pending_replies(grid):
    return [
        PendingReply.from_records(seen.content, "test")
        for seen in grid.seen
        if seen.metadata.message_type == PendingQuery.TYPE and seen.metadata.dst_node_id not in grid.nodes
    ]


def text_of(grid):
    """Every word that sites have sent about requests."""
    replies = [seen for seen in grid.seen if seen.metadata.dst_node_id not in grid.nodes and seen.has_content()]
    return " ".join(str(seen.content["body"]["json"]) for seen in replies if "query" in seen.metadata.message_type)


def test_a_curious_coordinator_cannot_follow_people_by_place_number_id_or_time(fleet, monkeypatch):
    """Two jobs with the same people: the first one fails at its last audit, so everybody still asks in the second."""
    first = Curious(fleet, monkeypatch, {FileAuditTask.TYPE})
    with pytest.raises(JobError):
        run_job(fleet, "erase", first)
    with monkeypatch.context() as again:
        second = Curious(fleet, again)
        assert run_job(fleet, "erase", second).released

    # Ids, pseudonyms and marks: none is in both jobs. Times of day: none at all.
    words = [set(re.findall(r"[0-9a-f]{16,}", text_of(grid))) for grid in (first, second)]
    held = {reply.held for grid in (first, second) for reply in pending_replies(grid)}
    assert min(map(len, words)) > 2
    assert words[0] & words[1] <= held  # the digest of a model, which is the coordinator's own
    assert not re.search(r"\d\d:\d\d", text_of(first) + text_of(second))

    # Places and numbers of people, in each pair of audits of the same images, within a job and between the two.
    audits, hits, expected, people, right, chance = [*first.audits, *second.audits], 0, 0, 0, 0.0, 0.0
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
