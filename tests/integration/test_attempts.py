"""A verdict that fails: a stronger attempt, and then the requests wait."""

from __future__ import annotations

from dlfd_fleet.audit import Outcome
from dlfd_fleet.federation.messages import UnlearnTask
from dlfd_fleet.ledger import RequestState, Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from tests.integration.fleet_in_process import InProcessGrid, run_job, small_settings


def test_a_verdict_that_fails_is_tried_again_stronger_and_its_request_waits(tmp_path, synthetic_faces, silent):
    settings = small_settings(tmp_path / "state", synthetic_faces)
    erasure = settings.erasure.model_copy(update={"max_attempts": 2, "rounds": 1})
    # No model can be that much better than the majority's answer, so every verdict fails.
    audit = settings.audit.model_copy(update={"min_gain_over_majority": 1.0})
    settings = settings.model_copy(update={"erasure": erasure, "audit": audit})
    deal_to_sites(settings, silent)
    run_job(settings, "train")
    folder = site_folders(settings.state_folder)[0]
    with Site(folder) as site:
        person = next(row.identity for row in site.manifest().rows if row.split == "train")
        request_forgetting(site, person, deadline_days=30)

    grid = InProcessGrid(settings)
    record = run_job(settings, "erase", grid)
    assert (record.released, record.verdict.outcome) == (False, Outcome.FAIL)
    asked = [message for message in grid.seen if message.metadata.message_type == UnlearnTask.TYPE]
    tasks = [message for message in asked if not message.metadata.reply_to_message_id]
    epochs = [UnlearnTask.from_records(task.content, "test").unlearning.epochs for task in tasks]
    assert epochs == [erasure.distancing_epochs, 1.5 * erasure.distancing_epochs]
    with Site(folder) as site:
        assert [request.state for request in site.ledger.requests()] == [RequestState.ACCEPTED]
