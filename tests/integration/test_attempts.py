"""A verdict that fails: a stronger attempt, and then the requests wait."""

from __future__ import annotations

from dlfd_fleet.audit import Outcome
from dlfd_fleet.federation.protocol.messages import UnlearnTask
from dlfd_fleet.ledger import RequestState, Site, site_folders
from tests.integration.fleet_in_process import InProcessGrid, a_person_asks_at_each_site, run_job, trained_fleet


def test_a_verdict_that_fails_is_tried_again_stronger_and_its_requests_wait(tmp_path):
    trained = trained_fleet(tmp_path)
    erasure = trained.erasure.model_copy(update={"max_attempts": 2, "rounds": 1})
    # No model can be that much better than the majority's answer, so every verdict fails.
    audit = trained.audit.model_copy(update={"min_gain_over_majority": 1.0})
    settings = trained.model_copy(update={"erasure": erasure, "audit": audit})
    sites = len(a_person_asks_at_each_site(settings))

    grid = InProcessGrid(settings)
    record = run_job(settings, "erase", grid)
    assert (record.released, record.verdict.outcome) == (False, Outcome.FAIL)
    asked = [message for message in grid.seen if message.metadata.message_type == UnlearnTask.TYPE]
    tasks = [message for message in asked if not message.metadata.reply_to_message_id]
    epochs = [UnlearnTask.from_records(task.content, "test").unlearning.epochs for task in tasks]
    once = erasure.unlearning.epochs
    # The first attempt aims at the model's own answers, and is none of max_attempts.
    assert epochs == sites * [once] + sites * [once] + sites * [1.5 * once]
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            assert [request.state for request in site.ledger.requests()] == [RequestState.ACCEPTED]
