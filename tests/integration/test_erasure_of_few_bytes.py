"""What an erasure of one person sends where sites can tell by reference models: a model to each site, and few more."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
from flwr.app import ArrayRecord, Error, Message
from rich.console import Console

from dlfd_fleet.audit import Outcome
from dlfd_fleet.data import synthesize, write_manifest
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.protocol.messages import (
    AuditTask,
    CalibrateTask,
    FileAuditTask,
    FitTask,
    UnlearnResult,
    UnlearnTask,
)
from dlfd_fleet.federation.protocol.packing import MODEL
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger import Site, request_forgetting, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.models import load_model, state_arrays
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.report import ErasureReport, render
from dlfd_fleet.report.certificate import read
from dlfd_fleet.settings import ReferenceSettings
from tests.integration.fleet_in_process import InProcessGrid, run_job, small_settings
from tests.small_networks import small_networks

SITES, SHARE = 6, 2  # a quarter of the five that nobody asks at


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A fleet of six sites with a champion, and what two reference models say; somebody asks at one of them."""
    folder, silent = tmp_path_factory.mktemp("few-bytes"), ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=16, images_per_person=3, image_size=32, classes=2, seed=0, progress=silent
    )
    settings = small_settings(folder / "state", manifest, sites=SITES)
    unlearning = settings.erasure.unlearning.model_copy(update={"reference_gate": 1.0})
    erasure = settings.erasure.model_copy(update={"unlearning": unlearning})
    settings = settings.model_copy(update={"references": ReferenceSettings(models=2), "erasure": erasure})
    deal_to_sites(settings, silent)
    run_job(settings, "train")
    run_job(settings, "references")
    with Site(site_folders(settings.state_folder)[0]) as site:
        person = next(row.identity for row in site.manifest().rows if row.split == "train")
        request_forgetting(site, person, deadline_days=30)
    return settings


@pytest.fixture
def fleet(known, tmp_path):
    shutil.copytree(known.state_folder, tmp_path / "state")
    return known.model_copy(update={"state_folder": tmp_path / "state"})


class ByWay(InProcessGrid):
    """Knows what went to whom, and may let sites say other things of their unlearning than they do."""

    def __init__(self, settings, *, accuracies=(), after=None):
        super().__init__(settings)
        self.accuracies, self.after = list(accuracies), after

    def answer(self, message, context):
        reply = super().answer(message, context)
        if self.accuracies and message.metadata.message_type == UnlearnTask.TYPE:
            result = UnlearnResult.from_records(reply.content, "test")
            change = {"retain_accuracy": self.accuracies.pop(0)}
            if not result.done and self.after is not None:
                change["retain_accuracy_after"] = self.after
            said = result.model_copy(update=change)
            reply.content.update(said.to_records())
        return reply

    def tasks(self, kind=None):
        """The messages to sites, or those of a kind."""
        tasks = [message for message in self.seen if not message.metadata.reply_to_message_id]
        return [one for one in tasks if kind is None or one.metadata.message_type == kind.TYPE]

    def asked(self, kind, purpose=None):
        """The nodes that were sent tasks of a kind, once for each time."""
        sent = self.tasks(kind)
        if purpose:
            sent = [one for one in sent if kind.from_records(one.content, "test").purpose == purpose]
        return [one.metadata.dst_node_id for one in sent]

    def bytes(self, *, to_sites):
        """The bytes of arrays that went one way, by type of message."""
        found = Counter()
        for message in self.seen:
            if bool(message.metadata.reply_to_message_id) != to_sites and message.has_content():
                arrays = [each for each in message.content.values() if isinstance(each, ArrayRecord)]
                found[message.metadata.message_type] += sum(each.count_bytes() for each in arrays)
        return found


def model_bytes(settings, job):
    with small_networks():
        model, _ = load_model(Store(settings.state_folder).folders.model(job))
    return ArrayRecord.from_torch_state_dict(state_arrays(model)).count_bytes()


def report_of(settings, record):
    folder = Store(settings.state_folder).folders.made(record.job)
    return ErasureReport.from_json((folder / "report.json").read_bytes())


@pytest.fixture(scope="module")
def erased(known, tmp_path_factory):
    """Settings, record and messages of an erasure."""
    state = tmp_path_factory.mktemp("erased") / "state"
    shutil.copytree(known.state_folder, state)
    settings = known.model_copy(update={"state_folder": state})
    grid = ByWay(settings)
    return settings, run_job(settings, "erase", grid), grid


def test_an_erasure_of_one_person_sends_a_model_to_each_site_once(erased):
    fleet, record, grid = erased
    assert record.released
    one, file = model_bytes(fleet, record.job), report_of(fleet, record).files["fp32"].size_bytes
    sent, back = grid.bytes(to_sites=True), grid.bytes(to_sites=False)
    # Sites hold the champion: the one that was asked is sent what it has unlearned, to read its gate.
    assert sent[UnlearnTask.TYPE] == pytest.approx(one, rel=0.02)
    # The others are sent the unlearned model to audit it; what comes back after further training, only the one.
    assert sent[AuditTask.TYPE] == pytest.approx((SITES - 1 + 1) * one, rel=0.02)
    assert sent[FitTask.TYPE] == 0
    assert sent[FileAuditTask.TYPE] == pytest.approx(file, rel=0.02)
    assert back[UnlearnTask.TYPE] == pytest.approx(one, rel=0.02)
    assert back[FitTask.TYPE] == pytest.approx((1 + SHARE) * one, rel=0.02)


def test_a_share_of_the_sites_trains_on_and_the_one_that_was_asked_audits_the_file(erased):
    _, record, grid = erased
    (asked,) = set(grid.asked(UnlearnTask))
    assert len(grid.asked(AuditTask)) == 2 * SITES + 1
    assert grid.asked(AuditTask)[-1] == asked
    trained, audited = grid.asked(FitTask, "relearn"), grid.asked(FileAuditTask)
    assert asked in trained
    assert len(set(trained)) == len(trained) == 1 + SHARE
    assert audited == [asked], "an fp32 file says what torch says"
    models = record.models
    assert (models["original"].sites, models["unlearned"].sites, models["relearned"].sites) == (SITES, SITES, 1)
    # The people who asked are all attacked, of the others those of this site.
    assert models["relearned"].scores.forget_images == models["original"].scores.forget_images
    assert models["relearned"].scores.unseen_images == models["original"].scores.unseen_images


def test_the_record_and_the_report_say_which_way_bytes_went_and_how_long_sites_worked(erased):
    fleet, record, grid = erased
    phases = record.proceedings.phases
    one = model_bytes(fleet, record.job)
    sent, back = grid.bytes(to_sites=True), grid.bytes(to_sites=False)
    assert phases["distancing"].bytes_to_sites == sent[UnlearnTask.TYPE]
    assert phases["relearn"].received_bytes == back[FitTask.TYPE]
    assert sum(phase.bytes_to_sites for phase in phases.values()) == sum(sent.values())
    assert sum(phase.received_bytes for phase in phases.values()) == sum(back.values())
    # One site unlearns, in two rounds: a model each way.
    assert phases["distancing"].steps == 2
    assert phases["distancing"].most_bytes_of_a_site == pytest.approx(2 * one, rel=0.02)
    assert phases["distancing"].longest_site_seconds == phases["distancing"].site_seconds > 0.0
    assert phases["relearn"].site_seconds > phases["relearn"].longest_site_seconds > 0.0
    assert all(phase.coordinator_seconds >= 0.0 for phase in phases.values())
    assert report_of(fleet, record).phases["relearn"] == phases["relearn"]


def test_the_report_and_the_certificate_say_how_many_sites_have_audited_what(erased):
    fleet, record, _ = erased
    folder = Store(fleet.state_folder).folders.made(record.job)
    report = report_of(fleet, record)
    assert report.files["fp32"].sites == 1
    page = " ".join(render(report.to_json()).split())
    assert f"model.onnx was audited at 1 of {SITES} sites" in page
    assert f"After further training the model was attacked at 1 of {SITES} sites" in page
    assert "all sites then trained on everybody else" not in page
    counts = read(folder / "certificate.json").predicate.counts
    assert counts["sites_audited_unlearned"] == counts["sites"] == SITES
    assert (counts["sites_audited_relearned"], counts["sites_audited_fp32"]) == (1, 1)


def test_the_file_of_a_few_sites_leaves_the_verdict_of_all(fleet, monkeypatch):
    from dlfd_fleet.federation.jobs import releaser

    judged = releaser.judge
    verdicts = []

    def remembering(*arguments):
        verdicts.append(judged(*arguments).model_copy(update={"reasons": ("of the file",)}))
        return verdicts[-1]

    monkeypatch.setattr(releaser, "judge", remembering)
    record = run_job(fleet, "erase")
    assert len(verdicts) == 1
    assert record.verdict.outcome is not Outcome.FAIL
    assert record.verdict.reasons != ("of the file",)
    assert record.proceedings.files["fp32"].verdict.reasons == ("of the file",)


def test_a_file_that_fails_at_a_few_sites_is_audited_at_all_and_that_decides(fleet, monkeypatch):
    from dlfd_fleet.federation.jobs import releaser

    judged, outcomes = releaser.judge, [Outcome.FAIL, Outcome.PASS]
    monkeypatch.setattr(
        releaser, "judge", lambda *given: judged(*given).model_copy(update={"outcome": outcomes.pop(0)})
    )
    grid = ByWay(fleet)
    record = run_job(fleet, "erase", grid)
    assert len(grid.asked(FileAuditTask)) == 1 + SITES
    assert record.released
    assert record.verdict.outcome is Outcome.PASS


def test_sites_that_disagree_are_not_the_only_ones_who_are_asked(fleet, monkeypatch):
    from dlfd_fleet.federation.rounds import audits

    together = audits.together

    def disagreeing(fleet, heard):
        if len(heard) < SITES:
            raise JobError("They say different things.")
        return together(fleet, heard)

    monkeypatch.setattr(audits, "together", disagreeing)
    record = run_job(fleet, "erase")
    assert record.released
    assert record.models["relearned"].sites == record.proceedings.files["fp32"].sites == SITES


def test_sites_with_nobody_unseen_are_not_the_only_ones_who_are_asked(fleet):
    for number, folder in enumerate(site_folders(fleet.state_folder)):
        with Site(folder) as site:  # all test people are of the second one
            rows = [replace(row, site=folder.name) if row.split == "test" else row for row in site.manifest().rows]
            write_manifest([row for row in rows if row.split != "test" or number == 1], site.manifest_file)
    record = run_job(fleet, "erase")
    assert record.released
    relearned = record.models["relearned"]
    assert relearned.sites == SITES
    assert relearned.scores.unseen_images == record.models["original"].scores.unseen_images > 0


def with_drop(settings, most):
    unlearning = settings.erasure.unlearning.model_copy(update={"max_utility_drop": most})
    changed = settings.erasure.model_copy(update={"unlearning": unlearning, "relearning_rounds": 0})
    return settings.model_copy(update={"erasure": changed})


def test_a_site_whose_retained_people_lost_much_is_repaired_once_and_goes_to_its_gate_again(fleet):
    grid = ByWay(fleet, accuracies=[0.9, 0.87, 0.6])
    record = run_job(with_drop(fleet, 0.04), "erase", grid)
    assert record.released
    repaired = grid.asked(FitTask, "repair")
    assert len(repaired) == len(set(repaired)) == 1 + SHARE
    assert len(grid.asked(UnlearnTask)) == 3  # once, to its gate, and after the repair to its gate again
    assert not grid.accuracies  # whatever is lost then, nobody repairs again


def test_nobody_repairs_what_is_lost_by_less_than_half_of_what_may_be(fleet):
    grid = ByWay(fleet, accuracies=[0.9, 0.89])
    assert run_job(with_drop(fleet, 0.04), "erase", grid).released
    assert not grid.asked(FitTask)


@pytest.mark.parametrize(("after", "repairs"), [(0.87, True), (0.89, False)])
def test_a_site_that_unlearned_alone_tells_what_was_lost_though_no_round_is_left_to_read_it(fleet, after, repairs):
    settings = with_drop(fleet, 0.04)
    settings = settings.model_copy(update={"erasure": settings.erasure.model_copy(update={"rounds": 1})})
    grid = ByWay(settings, accuracies=[0.9, 0.87], after=after)
    assert run_job(settings, "erase", grid).released
    assert len(grid.asked(FitTask, "repair")) == (1 + SHARE if repairs else 0)
    assert len(grid.asked(UnlearnTask)) == 1 + repairs
    # The original and the unlearned model, and what those have made of it that repaired: nobody is asked beside.
    assert len(grid.asked(AuditTask)) == 2 * SITES + (1 + SHARE if repairs else 0)


@pytest.mark.parametrize(("enough", "asked"), [(1, 1 + SHARE), (10_000, SITES)])
def test_ranges_for_int8_are_measured_at_the_same_few_sites_if_they_have_images_enough(fleet, enough, asked):
    export = fleet.export.model_copy(update={"formats": ("fp32", "int8"), "calibration_images": enough})
    settings = with_drop(fleet, 1.0).model_copy(update={"export": export})
    grid = ByWay(settings)
    assert run_job(settings, "erase", grid).released
    nodes = grid.asked(CalibrateTask)
    assert len(nodes) == len(set(nodes)) == asked
    assert set(grid.asked(UnlearnTask)) <= set(nodes)


def test_few_sites_that_do_not_answer_do_not_end_the_measuring_of_ranges(fleet):
    export = fleet.export.model_copy(update={"formats": ("fp32", "int8"), "calibration_images": 1})
    settings = with_drop(fleet, 1.0).model_copy(update={"export": export})

    class Failing(ByWay):
        def answer(self, message, context):
            if message.metadata.message_type == CalibrateTask.TYPE and len(self.asked(CalibrateTask)) <= 1 + SHARE:
                return Message(Error(code=0, reason="no memory"), reply_to=message)
            return super().answer(message, context)

    grid, out = Failing(settings), io.StringIO()
    assert run_job(settings, "erase", grid, out).released
    assert len(grid.asked(CalibrateTask)) == 1 + SHARE + SITES
    assert "So all sites are asked." in " ".join(out.getvalue().split())


def test_the_model_trained_on_is_as_far_from_retraining_as_the_sites_that_attacked_it_say(fleet, monkeypatch):
    from dlfd_fleet.federation.jobs import erase

    gap, compared = erase.gap_to_retrain, []

    def remembering(candidate, retrained):
        compared.append((candidate, retrained))
        return gap(candidate, retrained)

    monkeypatch.setattr(erase, "gap_to_retrain", remembering)
    settings = fleet.model_copy(update={"erasure": fleet.erasure.model_copy(update={"compare_retrain": True})})
    record = run_job(settings, "erase")
    assert (record.models["relearned"].sites, record.models["retrained"].sites) == (1, SITES)
    everywhere = record.models["retrained"].scores
    beside = dict(zip(record.models, compared, strict=True))
    assert [name for name, (_, retrained) in beside.items() if retrained != everywhere] == ["relearned"]
    assert beside["relearned"][0] == record.models["relearned"].scores
    assert beside["relearned"][1].forget_images == everywhere.forget_images


@pytest.mark.parametrize("rounds", [1, 2])
def test_sites_that_hold_the_champion_are_sent_its_difference(fleet, rounds, monkeypatch):
    from dlfd_fleet.federation.site import training

    # A gate that is reached after so many rounds.
    within, asked = training.within_gate, []

    def within_gate(*arguments):
        asked.append(1)
        return within(*arguments) if len(asked) > rounds else None

    monkeypatch.setattr("dlfd_fleet.federation.site.handlers.training.within_gate", within_gate)
    changed = {"fleet": fleet.fleet.model_copy(update={"update_precision": "int8"})}
    changed["erasure"] = fleet.erasure.model_copy(update={"rounds": 3})
    settings = fleet.model_copy(update=changed)
    grid = ByWay(settings)
    record = run_job(settings, "erase", grid)
    assert record.released
    one, file = model_bytes(settings, record.job), report_of(settings, record).files["fp32"].size_bytes
    sent, least = grid.bytes(to_sites=True), 0.2 * one
    whole = [task.metadata.dst_node_id for task in grid.tasks() if MODEL in task.content]
    # What several rounds have made is rounded to one difference, and the site that was asked holds the last round's.
    assert whole == ([] if rounds == 1 else grid.asked(UnlearnTask)[:1])
    assert sent[AuditTask.TYPE] < SITES * 0.35 * one + len(whole) * one
    assert sent[FileAuditTask.TYPE] == pytest.approx(file, rel=0.02)
    assert sum(sent.values()) - sent[FileAuditTask.TYPE] > least
    assert json.loads((Store(settings.state_folder).folders.model(record.job) / "card.json").read_text())["epoch"] == 1
