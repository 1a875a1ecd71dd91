"""What a site answers to the first question of a job, and how a person is forgotten at every site that has them."""

from __future__ import annotations

import itertools
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dlfd_fleet.data import Manifest, canonical, copy_images, read_manifest, write_manifest
from dlfd_fleet.exceptions import JobError, LedgerError
from dlfd_fleet.federation.protocol.messages import DevicesReached, PendingQuery, SettleTask
from dlfd_fleet.federation.rounds.fleet import Fleet, Reply
from dlfd_fleet.federation.rounds.requests import (
    EarlierRequests,
    ask_pending,
    forgotten_without_update,
    someone_to_unlearn,
)
from dlfd_fleet.federation.site.job_requests import refuse_job_that_lost_its_requests
from dlfd_fleet.federation.site.requests import answer_pending, settle
from dlfd_fleet.ledger import RequestState, init_site, request_forgetting
from dlfd_fleet.ledger.requests import extend, refuse, withdraw
from dlfd_fleet.ledger.site import HELD_MODEL_FILE
from dlfd_fleet.ledger.states import Ground
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import ModelCard

PERSON = "person-00003"


@pytest.fixture
def sites(tmp_path, synthetic_faces):
    """Two sites that share a secret and one person, and a third without the secret."""
    (tmp_path / "secret").write_text("ab" * 32)
    manifest = read_manifest(synthetic_faces)
    made = []
    for name, others in (("a", range(4)), ("b", range(3, 8)), ("c", range(3, 8))):
        people = {PERSON, *(f"person-{number:05d}" for number in others)}
        file = synthetic_faces.with_name(f"{name}.csv")
        write_manifest([row for row in manifest.rows if row.identity in people], file)
        secret = tmp_path / "secret" if name != "c" else None
        made.append(
            init_site(tmp_path / name, name=name, manifest=file, model_input=image_input(32), fleet_secret=secret)
        )
    yield made
    for site in made:
        site.ledger.close()


def test_no_job_hears_of_a_request_of_somebody_of_whom_the_site_has_no_image(sites):
    before = [answer_pending(sites[0], PendingQuery(job=f"job-{job}", take=True)) for job in "ab"]
    request = request_forgetting(sites[0], "zoe", deadline_days=30, no_data=True)
    for query in (PendingQuery(job="job-a", take=True), PendingQuery(job="job-a", plan=True)):
        answer = answer_pending(sites[0], query)
        assert (answer.requests, answer.people, answer.withdrawn) == ((), {}, {})
        assert (answer.waiting, answer.begun, answer.forget_images) == (0, 0, 0)
    assert answer_pending(sites[0], PendingQuery(job="job-b", take=True)).class_images == before[1].class_images
    assert sites[0].ledger.get(request.id).state is RequestState.NO_DATA
    assert sites[0].gone(["zoe"]) == frozenset()


def test_a_person_who_asks_at_one_site_is_forgotten_at_all_that_share_the_secret(sites):
    request_forgetting(sites[0], PERSON, deadline_days=30)
    first = [answer_pending(site, PendingQuery(job="job-1", take=True)) for site in sites]
    assert [len(reply.requests) for reply in first] == [1, 0, 0]
    (pseudonym,) = first[0].people
    assert PERSON not in first[0].model_dump_json()
    second = [answer_pending(site, PendingQuery(job="job-1", take=True, asked=first[0].people)) for site in sites]
    assert [reply.forget_images for reply in second] == [4, 4, 0]
    assert list(second[1].people) == [pseudonym]
    assert second[1].retain_images == first[1].retain_images - 4
    assert second[0].requests == first[0].requests != second[1].requests
    later = answer_pending(sites[1], PendingQuery(job="job-2", take=True))
    assert list(later.people) != [pseudonym]


def test_a_site_with_a_forged_withdrawal_takes_part_in_no_job(sites):
    """Its job would train on somebody who has asked."""
    asked = request_forgetting(sites[0], PERSON, deadline_days=30)
    with closing(sqlite3.connect(sites[0].folder / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE request SET state = 'WITHDRAWN' WHERE id = ?", [asked.id])
    for take in (True, False):
        with pytest.raises(LedgerError, match=rf"tampered with: the request {asked.id}"):
            answer_pending(sites[0], PendingQuery(job="job-1", take=take))


def test_a_released_request_of_another_site_is_purged_here_too(sites):
    joined = sites[1]
    name = joined.fleet_pseudonym(PERSON, "job-1")
    (request,) = answer_pending(joined, PendingQuery(job="job-1", take=True, asked={name: date(2027, 1, 1)})).requests
    task = SettleTask(
        job="job-1",
        outcome="released",
        requests=(request,),
        reason="PASS",
        epoch=1,
        purge=True,
        devices=DevicesReached(),
    )
    result = settle(joined, task)
    assert result.epoch == 1
    assert settle(joined, task).purged_images == 4
    assert result.purged_images == 4
    assert joined.find_request(request).state is RequestState.COMPLETE
    assert PERSON not in joined.manifest().identities
    assert answer_pending(joined, PendingQuery(job="job-2", take=True)).people == {}


def test_a_request_is_complete_only_when_no_device_keeps_it_open(sites):
    site = sites[0]
    request_forgetting(site, PERSON, deadline_days=30)
    (request,) = answer_pending(site, PendingQuery(job="job-1", take=True)).requests
    waiting = DevicesReached(epoch=0, reason="1 of 2 devices has not purged")
    task = SettleTask(
        job="job-1", outcome="released", requests=(request,), reason="PASS", epoch=1, purge=True, devices=waiting
    )
    assert settle(site, task).purged_images == 4
    assert site.find_request(request).state is RequestState.ROLLING_OUT
    assert PERSON not in site.manifest().identities
    answer_pending(site, PendingQuery(job="job-2", devices=waiting))
    settle(site, SettleTask(job="job-2", outcome="returned", reason="failed", epoch=1, purge=False))
    assert site.find_request(request).state is RequestState.ROLLING_OUT
    over = DevicesReached(epoch=1, reason="2 devices have purged")
    answer_pending(site, PendingQuery(job="job-3", devices=over))
    assert site.find_request(request).state is RequestState.COMPLETE
    assert site.ledger.history(site.find_request(request).id)[-1].reason == over.reason


def test_a_site_that_was_not_told_of_a_release_learns_it_before_it_says_what_it_holds(sites):
    """It has no request of its own, and may have been away whenever the job said something."""
    site, held = sites[0], sites[0].folder / HELD_MODEL_FILE
    save_file({"w": torch.ones(1)}, held, {"sha256": "ab" * 32})
    assert answer_pending(site, PendingQuery(job="job-1", take=True)).held == "ab" * 32
    assert answer_pending(site, PendingQuery(job="job-2", epoch=1)).held == ""
    assert (held.exists(), site.ledger.epoch()) == (False, 1)
    save_file({"w": torch.zeros(1)}, held, {"sha256": "cd" * 32})  # which has forgotten
    assert answer_pending(site, PendingQuery(job="job-3", epoch=1)).held == "cd" * 32


def test_a_request_has_the_epoch_of_its_own_release_though_a_later_one_is_learnt_with_it(sites):
    request_forgetting(sites[0], PERSON, deadline_days=30)
    (request,) = answer_pending(sites[0], PendingQuery(job="job-1", take=True)).requests
    answer_pending(sites[0], PendingQuery(job="job-3", take=True, released={request: 1}, epoch=2))
    found = sites[0].find_request(request)
    assert (found.state, found.epoch, sites[0].ledger.epoch()) == (RequestState.ROLLING_OUT, 1, 2)


class FleetOfSites(Fleet):
    """A fleet whose nodes are sites of this process."""

    def __init__(self, sites):
        super().__init__(grid=None, timeout=1.0)
        self.site_of, self.present = sites, range(len(sites))

    def keys(self):
        return {}

    def wait_for_nodes(self, count=1, patience=60.0):
        return tuple(node for node in self.present if not self.members or node in self.members)

    def exchange(self, kind, tasks, group):
        for node, records in tasks.items():
            answer = answer_pending(self.site_of[node], PendingQuery.from_records(records, "the coordinator"))
            yield Reply(node, self.name(node), answer.to_records())


def asked(fleet, job):
    """The requests that each site has in a job, after both of its questions."""
    fleet.members = frozenset()
    replies = ask_pending(fleet, PendingQuery(job=job, take=True))
    return [len(replies[node].requests) for node in sorted(replies)]


def give_back(sites, job):
    for site in sites:
        settle(site, SettleTask(job=job, outcome="returned", reason="FAIL", epoch=0, purge=False))


def test_who_withdraws_is_let_go_by_the_sites_that_had_joined_in(sites):
    fleet = FleetOfSites(sites)
    request = request_forgetting(sites[0], PERSON, deadline_days=30)
    assert asked(fleet, "job-1") == [1, 1, 0]
    give_back(sites, "job-1")
    withdraw(sites[0], request.id)
    assert asked(fleet, "job-2") == [0, 0, 0]
    (joined,) = sites[1].ledger.requests()
    assert joined.state is RequestState.WITHDRAWN
    assert sites[1].ledger.history(joined.id)[-1].reason == "withdrawn at another site"
    assert PERSON not in sites[0].gone([PERSON]) | sites[1].gone([PERSON])
    for site in sites:
        site.ledger.verify()
    # Who asks again is forgotten everywhere again.
    request_forgetting(sites[0], PERSON, deadline_days=30)
    assert asked(fleet, "job-3") == [1, 1, 0]


def test_who_is_refused_is_let_go_by_the_sites_that_had_joined_in_and_not_joined_again(sites):
    fleet = FleetOfSites(sites)
    request = request_forgetting(sites[0], PERSON, deadline_days=30)
    assert asked(fleet, "job-1") == [1, 1, 0]
    give_back(sites, "job-1")
    refuse(sites[0], request.id, Ground.LEGAL_CLAIMS, reason="a court case")
    assert asked(fleet, "job-2") == [0, 0, 0]
    assert PERSON not in sites[0].gone([PERSON]) | sites[1].gone([PERSON])
    assert sites[0].find_request(PERSON).state is RequestState.REFUSED
    refuse_job_that_lost_its_requests(sites[0], "job-1")  # no other job has it: it is over


def test_an_extension_is_told_by_its_day_and_taken_over_by_the_sites_that_had_joined_in(sites):
    """Whoever has asked at a desk knows the deadline, and not who joined in."""
    fleet, today = FleetOfSites(sites), datetime.now(UTC).date()
    request = request_forgetting(sites[0], PERSON, deadline_days=20, received=today - timedelta(days=5))
    assert asked(fleet, "job-1") == [1, 1, 0]
    give_back(sites, "job-1")
    extended = extend(sites[0], request.id, months=2, reason="many requests", noticed=today)
    assert asked(fleet, "job-2") == [1, 1, 0]
    for site in sites[:2]:
        assert site.find_request(PERSON).due == extended.due > request.due
        reply = answer_pending(site, PendingQuery(job="job-2"))
        (dates,), (told,) = reply.dates.values(), reply.people.values()
        assert dates.deadline == told == extended.due
    (own,) = answer_pending(sites[0], PendingQuery(job="job-2")).dates.values()
    assert own.asked_at == today - timedelta(days=5)
    assert sites[1].ledger.history(sites[1].find_request(PERSON).id)[-1].reason == "extended at another site"


def test_who_has_asked_at_two_sites_and_withdraws_at_one_is_forgotten_at_both(sites):
    fleet = FleetOfSites(sites)
    request = request_forgetting(sites[0], PERSON, deadline_days=30)
    request_forgetting(sites[1], PERSON, deadline_days=30)
    withdraw(sites[0], request.id)
    assert asked(fleet, "job-1") == [1, 1, 0]


def test_a_withdrawal_before_a_site_joined_in_does_not_end_its_request(sites):
    early = request_forgetting(sites[0], PERSON, deadline_days=30)
    withdraw(sites[0], early.id)
    name = sites[1].fleet_pseudonym(PERSON, "job-1")
    told = PendingQuery(job="job-1", take=True, asked={name: date(2027, 1, 1)})
    assert len(answer_pending(sites[1], told).requests) == 1
    give_back(sites, "job-1")
    assert asked(FleetOfSites(sites), "job-2")[1] == 1


@pytest.fixture
def unseen_elsewhere(tmp_path, synthetic_faces):
    """Two sites with a secret: who is trained on at the first is a test person at the second, in another spelling."""
    (tmp_path / "secret").write_text("ab" * 32)
    manifest, made = read_manifest(synthetic_faces), []
    for name, first, spelled, split in (("a", 0, PERSON, "train"), ("b", 4, f"{PERSON.upper()} ", "test")):
        rows = [
            replace(row, identity=spelled, split=split, site=name)
            if row.identity == PERSON
            else replace(row, split="test" if row.identity == "person-00007" else "train", site=name)
            for row in manifest.rows
            if row.identity == PERSON or first <= int(row.identity[-2:]) < first + 4
        ]
        file = copy_images(Manifest(tuple(rows), manifest.root), tmp_path / f"faces-{name}")
        made.append(
            init_site(
                tmp_path / name, name=name, manifest=file, model_input=image_input(32), fleet_secret=tmp_path / "secret"
            )
        )
    yield made
    for site in made:
        site.ledger.close()


def test_who_asks_at_one_site_joins_at_another_where_nobody_trains_on_them(unseen_elsewhere):
    fleet = FleetOfSites(unseen_elsewhere)
    request_forgetting(unseen_elsewhere[0], PERSON, deadline_days=30)
    replies = ask_pending(fleet, PendingQuery(job="job-1", take=True))
    assert [(reply.forget_images, reply.can_unlearn) for reply in replies.values()] == [(4, True), (0, False)]
    assert forgotten_without_update(replies) == set(replies[1].requests)
    assert someone_to_unlearn(replies)
    done = (*replies[0].requests, *replies[1].requests)
    task = SettleTask(
        job="job-1", outcome="released", requests=done, reason="PASS", epoch=1, purge=True, devices=DevicesReached()
    )
    assert [settle(site, task).purged_images for site in unseen_elsewhere] == [4, 4]
    for site in unseen_elsewhere:
        assert [request.state for request in site.ledger.requests()] == [RequestState.COMPLETE]
        assert canonical(PERSON) not in map(canonical, site.manifest().identities)


def test_who_asks_where_nobody_trains_on_them_is_unlearned_where_somebody_does(unseen_elsewhere):
    _, tests = unseen_elsewhere
    request_forgetting(tests, PERSON, deadline_days=30)
    replies = ask_pending(FleetOfSites(unseen_elsewhere), PendingQuery(job="job-1", take=True))
    assert [(len(reply.requests), reply.forget_images) for reply in replies.values()] == [(1, 4), (1, 0)]


def test_who_was_never_trained_on_needs_no_unlearning(unseen_elsewhere):
    _, tests = unseen_elsewhere
    request_forgetting(tests, "person-00007", deadline_days=30)
    replies = ask_pending(FleetOfSites(unseen_elsewhere), PendingQuery(job="job-1", take=True))
    assert [(len(reply.requests), reply.forget_images) for reply in replies.values()] == [(0, 0), (1, 0)]
    assert not someone_to_unlearn(replies)


def test_a_site_that_nobody_is_left_at_leaves_the_unlearning_to_the_others(unseen_elsewhere):
    trains, tests = unseen_elsewhere
    for person in {row.identity for row in trains.manifest().rows if row.split == "train"}:
        request_forgetting(trains, person, deadline_days=30)
    replies = ask_pending(FleetOfSites(unseen_elsewhere), PendingQuery(job="job-1", take=True))
    assert (replies[0].can_train, replies[0].can_unlearn, replies[0].forget_images) == (False, False, 16)
    assert someone_to_unlearn(replies)
    assert forgotten_without_update(replies) == {*replies[0].requests, *replies[1].requests}
    for person in {row.identity for row in tests.manifest().rows if row.split == "train"}:
        request_forgetting(tests, person, deadline_days=30)
    replies = ask_pending(FleetOfSites(unseen_elsewhere), PendingQuery(job="job-2", take=True))
    with pytest.raises(JobError, match=r"^Everybody whom the sites train on asks to be forgotten"):
        someone_to_unlearn(replies)


def test_classes_that_sites_spell_in_other_ways_are_the_same(sites):
    classes = sites[0].card.classes
    card = ModelCard(
        architecture="resnet18", classes=tuple(f" {name.upper()}" for name in classes), input=image_input(32)
    )
    assert ask_pending(FleetOfSites(sites), PendingQuery(job="job-1"), 1.0, card).keys() == {0, 1, 2}


@pytest.fixture
def clock(monkeypatch):
    """Each site's clock is wrong by as much as a test says."""

    class Clock(datetime):
        offset = timedelta()

        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + cls.offset

    for module in ("ledger", "requests"):
        monkeypatch.setattr(f"dlfd_fleet.ledger.{module}.datetime", Clock)
    return Clock


def test_a_withdrawal_counts_at_a_site_whose_clock_is_behind(sites, clock):
    fleet = FleetOfSites(sites)
    request = request_forgetting(sites[0], PERSON, deadline_days=30)
    clock.offset = timedelta(days=3)  # of the site that joins in
    assert asked(fleet, "job-1") == [1, 1, 0]
    give_back(sites, "job-1")
    clock.offset = -timedelta(days=3)
    withdraw(sites[0], request.id)
    assert asked(fleet, "job-2") == [0, 0, 0]


def test_who_asks_at_a_site_that_had_joined_in_is_forgotten_though_the_first_site_lets_go(sites):
    fleet = FleetOfSites(sites)
    request = request_forgetting(sites[0], PERSON, deadline_days=30)
    asked(fleet, "job-1")
    with pytest.raises(LedgerError, match="the job job-1 works on it here, too; ask again if that job ends"):
        request_forgetting(sites[1], PERSON, deadline_days=30)
    give_back(sites, "job-1")
    own = request_forgetting(sites[1], PERSON, deadline_days=90)
    assert own.deadline <= request.deadline + timedelta(days=1)
    withdraw(sites[0], request.id)
    assert asked(fleet, "job-2") == [1, 1, 0]


@pytest.mark.parametrize("seed", range(2))
def test_whoever_asks_at_any_desk_is_forgotten_and_nobody_else_whatever_the_clocks_say(
    tmp_path, synthetic_faces, clock, seed
):
    """Random orders of asking, withdrawing and jobs, of eight people at three sites that are sometimes away."""
    random = np.random.default_rng(seed)
    (tmp_path / "secret").write_text("ab" * 32)
    sites = [
        init_site(
            tmp_path / name,
            name=name,
            manifest=synthetic_faces,
            model_input=image_input(32),
            fleet_secret=tmp_path / "secret",
        )
        for name in "abc"
    ]
    people, fleet = sites[0].manifest().identities[:8], FleetOfSites(sites)
    own = {}  # the request at a desk, by site and person
    for number in range(6):
        for _ in range(6):
            site, person = int(random.integers(3)), people[random.integers(len(people))]
            clock.offset = timedelta(days=float(random.uniform(-400, 400)))
            if (site, person) in own:
                withdraw(sites[site], own.pop((site, person)))
            else:
                own[site, person] = request_forgetting(sites[site], person, deadline_days=30).id
        fleet.present = range(3) if number % 3 == 2 else [site for site in range(3) if random.random() < 0.7] or [0]
        clock.offset = timedelta(days=float(random.uniform(-400, 400)))
        asked(fleet, f"job-{number}")
        for person in people:
            desks = {site for site, asker in own if asker == person}
            taken = {
                site
                for site in fleet.present
                for request in sites[site].ledger.requests(RequestState.UNLEARNING)
                if request.identity == person
            }
            if desks & set(fleet.present):
                assert taken == set(fleet.present), (number, person)
            elif not desks and len(fleet.present) == 3:
                assert taken == set(), (number, person)
        give_back([sites[site] for site in fleet.present], f"job-{number}")
    for site in sites:
        site.ledger.verify()
        site.ledger.close()


def test_nothing_of_a_request_is_the_same_in_two_jobs_but_its_days(sites):
    request = request_forgetting(sites[0], PERSON, deadline_days=30)
    fleet, texts = FleetOfSites(sites), []
    for number in range(4):  # twice asked, and twice withdrawn
        if number == 2:
            withdraw(sites[0], request.id)
        fleet.members = frozenset()
        replies = ask_pending(fleet, PendingQuery(job=f"job-{number}", take=True))
        give_back(sites, f"job-{number}")
        texts.append(replies[0].model_dump_json())
    assert '"withdrawn":{"' in texts[2]
    for one, other in itertools.combinations(texts, 2):
        shared = set(re.findall("[0-9a-f]{16,}", one)) & set(re.findall("[0-9a-f]{16,}", other))
        assert shared == set()
    assert request.id not in "".join(texts)
    assert not re.search(r"\d\d:\d\d", "".join(texts))  # no time of day


def test_a_site_is_told_of_its_own_requests_alone(sites):
    """What the first site asked in a job that ended while it was away, nobody else hears."""
    for site, person in ((sites[0], "person-00000"), (sites[2], "person-00007")):
        request_forgetting(site, person, deadline_days=30)
    first = ask_pending(FleetOfSites(sites), PendingQuery(job="job-1", take=True))
    released = {f"site-{first[0].site}": EarlierRequests(released=dict.fromkeys(first[0].requests, 1))}
    fleet, heard = FleetOfSites(sites), {}
    exchange = fleet.exchange

    def overheard(kind, tasks, group):
        for node, records in tasks.items():
            heard[node] = heard.get(node, "") + PendingQuery.from_records(records, "test").model_dump_json()
        yield from exchange(kind, tasks, group)

    fleet.exchange = overheard
    ask_pending(fleet, PendingQuery(job="job-2", take=True, epoch=1), earlier=released)
    for node, reply in first.items():
        for other, text in heard.items():
            assert all((request in text) == (other == node == 0) for request in reply.requests)
    states = [[request.state for request in site.ledger.requests()] for site in sites]
    assert states == [[RequestState.ROLLING_OUT], [], [RequestState.UNLEARNING]]


def test_a_site_whose_classes_are_not_the_models_takes_no_part_and_is_told_why(sites):
    classes = sites[0].card.classes
    card = ModelCard(architecture="resnet18", classes=classes, input=image_input(32))
    sites[1].card = sites[1].card.model_copy(update={"classes": (*classes, "another")})
    fleet = FleetOfSites(sites)
    assert ask_pending(fleet, PendingQuery(job="job-1"), 1.0, card).keys() == {0, 2}
    (reason,) = fleet.absent.values()
    assert reason == (
        f"has the classes {', '.join(classes)}, another of 32 x 32 pixels, and the model has {', '.join(classes)} of "
        "32 x 32 pixels; its site.json must agree"
    )
