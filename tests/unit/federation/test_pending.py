"""What a site answers to the first question of a job, and how a person is forgotten at every site that has them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import pytest
import torch
from safetensors.torch import save_file

from dlfd_fleet.data import read_manifest, write_manifest
from dlfd_fleet.exceptions import LedgerError
from dlfd_fleet.federation.fleet import Fleet, Reply
from dlfd_fleet.federation.messages import DevicesReached, PendingQuery, SettleTask
from dlfd_fleet.federation.requests import ask_pending
from dlfd_fleet.federation.site_tasks import answer_pending, settle
from dlfd_fleet.ledger import RequestState, init_site, request_forgetting
from dlfd_fleet.ledger.site import HELD_MODEL_FILE, withdraw
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
        made.append(init_site(tmp_path / name, name=name, manifest=file, image_size=32, fleet_secret=secret))
    yield made
    for site in made:
        site.ledger.close()


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
    (request,) = answer_pending(
        joined, PendingQuery(job="job-1", take=True, asked={name: datetime(2027, 1, 1, tzinfo=UTC)})
    ).requests
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
    assert joined.ledger.get(request).state is RequestState.COMPLETE
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
    assert site.ledger.get(request).state is RequestState.ROLLING_OUT
    assert PERSON not in site.manifest().identities
    answer_pending(site, PendingQuery(job="job-2", devices=waiting))
    settle(site, SettleTask(job="job-2", outcome="returned", reason="failed", epoch=1, purge=False))
    assert site.ledger.get(request).state is RequestState.ROLLING_OUT
    over = DevicesReached(epoch=1, reason="2 devices have purged")
    answer_pending(site, PendingQuery(job="job-3", devices=over))
    assert site.ledger.get(request).state is RequestState.COMPLETE
    assert site.ledger.history(request)[-1].reason == over.reason


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
    found = sites[0].ledger.get(request)
    assert (found.state, found.epoch, sites[0].ledger.epoch()) == (RequestState.ROLLING_OUT, 1, 2)


class FleetOfSites(Fleet):
    """A fleet whose nodes are sites of this process."""

    def __init__(self, sites):
        super().__init__(grid=None, timeout=1.0)
        self.sites = sites

    def wait_for_nodes(self, count=1, patience=60.0):
        return tuple(node for node in range(len(self.sites)) if not self.members or node in self.members)

    def exchange(self, kind, tasks, group):
        for node, records in tasks.items():
            answer = answer_pending(self.sites[node], PendingQuery.from_records(records, "the coordinator"))
            yield Reply(node, self.name(node), answer.to_records())


def asked(fleet, job):
    """The requests that each site has in a job, after both of its questions."""
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
    told = PendingQuery(job="job-1", take=True, asked={name: datetime(2027, 1, 1, tzinfo=UTC)})
    assert len(answer_pending(sites[1], told).requests) == 1
    give_back(sites, "job-1")
    assert asked(FleetOfSites(sites), "job-2")[1] == 1


def test_a_site_whose_classes_are_not_the_models_takes_no_part_and_is_told_why(sites):
    classes = sites[0].card.classes
    card = ModelCard(architecture="resnet18", classes=classes, image_size=32)
    sites[1].card = sites[1].card.model_copy(update={"classes": (*classes, "another")})
    fleet = FleetOfSites(sites)
    assert ask_pending(fleet, PendingQuery(job="job-1"), 1.0, card).keys() == {0, 2}
    (reason,) = fleet.absent.values()
    assert reason == (
        f"has the classes {', '.join(classes)}, another at 32 pixels, and the model has {', '.join(classes)} at 32; "
        "its site.json must agree"
    )
