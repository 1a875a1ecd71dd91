"""A job that is resumed while sites are away goes on the way that it had begun, and releases what it has audited."""

from __future__ import annotations

import io
import shutil
from contextlib import closing

import pytest
import torch
from flwr.app import Message
from rich.console import Console

from dlfd_fleet.data import synthesize
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.messages import AuditTask, PendingQuery, PendingReply
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.models import digest, load_model, save_model, state_arrays
from dlfd_fleet.progress import ConsoleProgress
from tests.integration.fleet_in_process import InProcessGrid, interrupted_before, run_job, small_settings
from tests.small_networks import small_networks


class OneHasReferences(InProcessGrid):
    """The first site says that reference models have answered about its people; no other site does."""

    def answer(self, message, context):
        reply = super().answer(message, context)
        if message.metadata.message_type != PendingQuery.TYPE or message.metadata.dst_node_id != 1:
            return reply
        records = reply.content
        said = PendingReply.from_records(records, "test")
        changed = said.model_copy(update={"answered_images": said.forget_images}).to_records()
        for name in changed:
            records[name] = changed[name]
        return Message(records, reply_to=message)


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three sites with a champion, whose jobs wait for nobody and go on with one site."""
    folder, silent = tmp_path_factory.mktemp("resumed"), ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=18, images_per_person=3, image_size=32, classes=2, seed=0, progress=silent
    )
    settings = small_settings(folder / "state", manifest, sites=3)
    long_way = {"rounds": 1, "relearning_rounds": 0, "own_answers": False}
    alone = {"connect_seconds": 0.5, "return_seconds": 0.2, "least_sites": 1, "quorum": 0.1}
    settings = settings.model_copy(
        update={
            "fleet": settings.fleet.model_copy(update=alone),
            "erasure": settings.erasure.model_copy(update=long_way),
        }
    )
    deal_to_sites(settings, silent)
    assert run_job(settings, "train").released
    return settings


@pytest.fixture
def fleet(trained, tmp_path):
    shutil.copytree(trained.state_folder, tmp_path / "state")
    return trained.model_copy(update={"state_folder": tmp_path / "state"})


def a_person_asks_at(settings, *nodes):
    for node in nodes:
        with Site(site_folders(settings.state_folder)[node - 1]) as site:
            person = next(row.identity for row in site.manifest().rows if row.split == "train")
            request_forgetting(site, person, deadline_days=30)


def erase(settings, absent=(), before=None):
    """Run an erasure, or what is left of one, without some nodes; return its record and what the others were asked."""
    grid = OneHasReferences(settings, absent=frozenset(absent))
    if before is not None:
        with interrupted_before(before):
            run_job(settings, "erase", grid)
        record = None
    else:
        record = run_job(settings, "erase", grid)
    return record, [each.metadata.message_type for each in grid.seen if not each.metadata.reply_to_message_id]


def made(settings, step):
    """The digest of the model that a step of the last job ended in."""
    with closing(Store(settings.state_folder)) as store:
        return digest(store.steps.find(store.jobs()[-1].job, step).arrays)


def champion(settings):
    with closing(Store(settings.state_folder)) as store:
        model, card = load_model(store.folders.model(store.champions.current().job))
    return card.epoch, digest(state_arrays(model))


def test_the_way_does_not_change_where_a_site_without_references_is_away(fleet):
    """Without it all sites that ask could tell by references; what was audited is the model of the long way."""
    a_person_asks_at(fleet, 1, 2)
    erase(fleet, before="export")
    audited = made(fleet, "repair-2")
    record, asked = erase(fleet, absent=(2, 3))
    assert record.released
    assert champion(fleet) == (1, audited)
    assert AuditTask.TYPE not in asked  # it was audited before
    assert len(record.forgotten) == 2


def test_a_job_whose_gate_cannot_read_those_who_asked_ends_and_their_requests_wait(fleet):
    """Without their site nobody seems to ask, and a model that was only repaired would have nobody to forget."""
    a_person_asks_at(fleet, 2)
    before = champion(fleet)
    erase(fleet, before="gate-2")
    with pytest.raises(JobError, match="The requests wait for the next job"):
        erase(fleet, absent=(2,))
    assert champion(fleet) == before


@pytest.mark.parametrize("step", ["export", "settle"])
def test_a_job_is_ended_for_those_who_asked_though_their_site_is_away(fleet, step):
    a_person_asks_at(fleet, 2)
    erase(fleet, before=step)
    record, _ = erase(fleet, absent=(2,))
    assert (record.step, record.released, record.epoch, record.requests) == ("settled", True, 1, 1)
    assert len(record.forgotten) == 1
    assert record.note.startswith("released as epoch 1")
    assert champion(fleet)[0] == 1


def test_a_model_that_was_exported_is_never_exchanged_for_another_one(fleet):
    a_person_asks_at(fleet, 2)
    erase(fleet, before="audit-file")
    with closing(Store(fleet.state_folder)) as store:
        folder = store.folders.model(store.jobs()[-1].job)
    model, card = load_model(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    save_model(model, card, folder)
    before = champion(fleet)
    with pytest.raises(JobError, match="exported another model than it has now"):
        erase(fleet)
    assert champion(fleet) == before
