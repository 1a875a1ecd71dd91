"""An audit beside what the sites' reference models say: the same of the model, of its file and after a restart.

What models say is made up here, of real images at real sites: so it is known what is left of whom.
"""

from __future__ import annotations

import io
import re
import shutil
import zlib

import numpy as np
import pytest
from rich.console import Console

from dlfd_fleet.audit import Evidence, MemberSums, Outcome
from dlfd_fleet.data import synthesize
from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.jobs.summary import summarise
from dlfd_fleet.federation.protocol.messages import AuditResult, AuditTask, FileAuditResult, FileAuditTask
from dlfd_fleet.federation.records.steps import Steps
from dlfd_fleet.federation.site import audits as site_audits
from dlfd_fleet.federation.site.images import used_images
from dlfd_fleet.ledger import RequestState, Site, site_folders
from dlfd_fleet.ledger.references import ReferenceSet
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.progress import ConsoleProgress
from tests.integration.fleet_in_process import InProcessGrid, a_person_asks_at_each_site, run_job, small_settings

MODELS, HALF, MEMBER = 4, 3.0, 2.0


def said(image, number, memory):
    """What a model says of an image of which it remembers so much: how hard it is is the image's own."""
    hard = np.random.default_rng(zlib.crc32(image.numpy().tobytes())).normal(1.0, 1.5)
    noise = np.random.default_rng([zlib.crc32(image.numpy().tobytes()), number]).normal(0.0, 0.2)
    return hard + noise + memory


def keep_answers(site):
    """Let a site keep what four half models say, of whom it knows the halves."""
    used, kept = used_images(site), site.references
    images = used.images.images[slice(None)]
    names = sorted(set(used.retain().identities))
    digests = {name: site.person_digest(name) for name in set(used.images.identities)}
    order = [np.random.default_rng(pair).permutation(len(names)) for pair in range(MODELS // 2)]
    half = {
        name: sum(1 << (2 * pair + int(order[pair][place] % 2)) for pair in range(MODELS // 2))
        for place, name in enumerate(names)
    }
    wanted = ReferenceSet(job="references-1", models=MODELS, classes=site.card.classes)
    chosen = kept.begin(wanted, lambda: {digests[name]: bits for name, bits in half.items()})
    for number in range(MODELS):
        inside = {name for name, bits in half.items() if bits >> number & 1}
        kept.note_trained(chosen, number, {digests[name] for name in inside})
        logits = np.zeros((len(used.images), 2), np.float32)
        for row, (name, label) in enumerate(zip(used.images.identities, used.images.labels, strict=True)):
            logits[row, label] = said(images[row], number, HALF * (name in inside))
        kept.keep(chosen, number, list(used.digests), [name in inside for name in used.images.identities], logits)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Two sites with six people each and five whom both hold, a champion, and what four reference models say."""
    folder, silent = tmp_path_factory.mktemp("shares"), ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=18, images_per_person=3, image_size=32, classes=2, seed=0, progress=silent
    )
    settings = small_settings(folder / "state", manifest)
    data = settings.data.model_copy(update={"validation_people": 1, "test_people": 5})
    training = settings.training.model_copy(update={"rounds": 1})
    unlearning = settings.erasure.unlearning.model_copy(update={"epochs": 0.1})
    erasure = settings.erasure.model_copy(
        update={"rounds": 1, "relearning_rounds": 0, "max_attempts": 1, "unlearning": unlearning}
    )
    settings = settings.model_copy(update={"data": data, "training": training, "erasure": erasure})
    deal_to_sites(settings, silent)
    run_job(settings, "train")
    for site_folder in site_folders(settings.state_folder):
        with Site(site_folder) as site:
            keep_answers(site)
    return settings


@pytest.fixture
def fleet(known, tmp_path):
    shutil.copytree(known.state_folder, tmp_path / "state")
    settings = known.model_copy(update={"state_folder": tmp_path / "state"})
    a_person_asks_at_each_site(settings)
    return settings


def script(monkeypatch, settings, left):
    """Let models say of members what members are told by, of who asks so much of it; the original all of it."""
    memory, originals = {}, set()
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            used, asked = used_images(site), {request.identity for request in site.ledger.requests()}
            for image, name, row in zip(
                used.images.images[slice(None)], used.images.identities, used.images.rows, strict=True
            ):
                key = zlib.crc32(image.numpy().tobytes())
                memory[key] = MEMBER * (row.split in ("train", "forget")), name in asked

    def answers(images, labels, share):
        found = np.zeros((len(images), 2))
        for row, (image, label) in enumerate(zip(images[slice(None)], labels, strict=True)):
            member, asks = memory[zlib.crc32(image.numpy().tobytes())]
            found[row, label] = 1.0 / (1.0 + np.exp(-said(image, 9, member * (share if asks else 1.0))))
            found[row, 1 - label] = 1.0 - found[row, label]
        return found

    def of_model(model, data):
        weights = sum(float(value.double().sum()) for value in model.state_dict().values())
        if not originals:
            originals.add(weights)
        return answers(data.images, data.labels, 1.0 if weights in originals else left)

    monkeypatch.setattr(site_audits, "predict_probabilities", of_model)
    monkeypatch.setattr(
        site_audits, "_predicted", lambda _model, images, _: answers(images.images, images.labels, left)
    )


def answers_of(grid, task, result):
    """What the sites answered to tasks of a kind, and the tasks."""
    sent = {
        message.metadata.message_id: task.from_records(message.content, "test")
        for message in grid.seen
        if message.metadata.message_type == task.TYPE and not message.metadata.reply_to_message_id
    }
    return [
        (sent[message.metadata.reply_to_message_id], result.from_records(message.content, "test"))
        for message in grid.seen
        if message.metadata.reply_to_message_id in sent
    ]


def test_an_erasure_that_leaves_nothing_passes_and_so_does_its_file(fleet, monkeypatch):
    script(monkeypatch, fleet, left=0.0)
    grid = InProcessGrid(fleet)
    record = run_job(fleet, "erase", grid)
    assert record.verdict.outcome is Outcome.PASS, record.verdict.sentence()
    assert record.verdict.evidence is Evidence.REFERENCES
    (left,) = [row for row in summarise(record).rows if row[0] == "left of what members show"]
    assert [int(cell.split("%")[0]) for cell in left[1:]] == pytest.approx([100, 0], abs=30)
    file = record.proceedings.files["fp32"].verdict
    assert (file.outcome, file.evidence) == (Outcome.PASS, Evidence.REFERENCES)
    for task, result in answers_of(grid, AuditTask, AuditResult) + answers_of(grid, FileAuditTask, FileAuditResult):
        assert (result.references is not None) is task.references
        if task.references:
            assert (result.references.forget.people, result.references.forget.images) == (1, 3)
            assert result.references.retain.people == 5
            assert (result.references.unseen.people, result.references.shared.people) == (0, 5)


def test_an_erasure_that_leaves_everything_fails(fleet, monkeypatch):
    script(monkeypatch, fleet, left=1.0)
    record = run_job(fleet, "erase")
    assert not record.released
    assert record.verdict.outcome is Outcome.FAIL
    assert "forgotten people are still remembered: of what the original shows" in record.verdict.sentence()


def test_a_job_that_goes_on_knows_what_the_sites_had_said(fleet, monkeypatch):
    script(monkeypatch, fleet, left=0.0)
    finish = Steps.finish

    def stopping(steps, job, step):
        finish(steps, job, step)
        if step.name == "audit-unlearned-1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "finish", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_job(fleet, "erase")
    assert run_job(fleet, "erase").verdict.evidence is Evidence.REFERENCES


def test_a_site_that_sends_sums_over_more_people_than_it_has_is_left_out_by_name(fleet, monkeypatch):
    script(monkeypatch, fleet, left=0.0)

    class Lying(InProcessGrid):
        def answer(self, message, context):
            reply = super().answer(message, context)
            if message.metadata.message_type == AuditTask.TYPE and message.metadata.dst_node_id == 2:
                result = AuditResult.from_records(reply.content, "test")
                if result.references is not None:
                    many = MemberSums(people=7, images=70, weight=70.0, gap=80.0)
                    sums = result.references.model_copy(update={"forget": many})
                    reply.content.update(result.model_copy(update={"references": sums}).to_records())
            return reply

    settings = fleet.model_copy(update={"fleet": fleet.fleet.model_copy(update={"quorum": 0.5})})
    record = run_job(settings, "erase", Lying(settings))
    assert any("sums over more people of the role 'forget'" in reason for reason in record.absent.values())


def states_of(settings):
    found = []
    for folder in site_folders(settings.state_folder):
        with Site(folder) as site:
            found += [request.state for request in site.ledger.requests()]
    return found


def test_a_plan_says_what_an_erasure_can_show_and_changes_nothing(fleet, monkeypatch):
    script(monkeypatch, fleet, left=0.0)
    note = run_job(fleet, "plan").note
    assert note.startswith(
        "2 requests wait at 2 of 2 sites. The champion was trained on 2 people who ask, 6 images in all"
    )
    (passes,) = re.findall(r"By reference models: a right erasure passes in (\d+)% of cases", note)
    assert int(passes) > 50
    assert re.search(r"The last training took \d+ s and [\d.]+ MB$", note)
    assert states_of(fleet) == [RequestState.ACCEPTED] * 2


def test_a_plan_goes_on_with_no_job_that_was_interrupted(fleet, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(fleet, "erase")
    with pytest.raises(JobError, match="is not finished, and a plan goes on with nothing"):
        run_job(fleet, "plan")
