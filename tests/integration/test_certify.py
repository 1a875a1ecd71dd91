"""A procedure is tried on a fleet of drawings: twice, also after a kill, and later erasures are told of it."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from dlfd_fleet.audit import Outcome
from dlfd_fleet.bench.certify.command import certify_command
from dlfd_fleet.bench.certify.trial import Trial
from dlfd_fleet.data import synthesize
from dlfd_fleet.exceptions import ConfigurationError, JobError
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.report import read
from dlfd_fleet.report.procedure import read_procedure
from tests.integration.fleet_in_process import a_person_asks_at_each_site, answer_here, run_job, small_settings
from tests.small_networks import small_networks

MARKED = 4


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlfd_fleet.bench.fleets.seeds.simulate", answer_here)
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certify")
    silent = ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        folder / "faces", people=20, images_per_person=2, image_size=32, classes=2, seed=0, progress=silent
    )
    small = small_settings(folder / "state", manifest)
    return small.model_copy(update={"references": small.references.model_copy(update={"models": 2})})


def certify(settings, runs=2, budget="10m", confidence=0.9, width=200):
    out = io.StringIO()
    certify_command(settings, runs, MARKED, confidence, budget, Console(file=out, width=width))
    return out.getvalue()


@pytest.fixture(scope="module")
def tried(settings):
    """What is printed when one run was killed after its first verdict, and the same command was given again."""
    judged = Trial._write

    def dying(file, content):
        judged(file, content)
        if file.parent.name == "verdicts":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trial, "_write", staticmethod(dying))
        with pytest.raises(KeyboardInterrupt):
            certify(settings)
    made = {file: file.stat().st_mtime_ns for file in settings.state_folder.rglob("run-000/**/models/*.safetensors")}
    verdicts = list(settings.state_folder.rglob("run-000/verdicts/*.json"))
    said = []

    def keeping(self, seconds, compared=Trial._compared):
        said.append({file: file.stat().st_mtime_ns for file in made} if self.settings.seed == 0 else {})
        return compared(self, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trial, "_compared", keeping)
        out = certify(settings)
    assert len(verdicts) == 1
    assert {file.stem for file in made} == {"original", "retrained", "erased"}
    assert said[0] == made, "a model was made anew"
    return out


def test_every_rate_is_shown_with_its_exact_bounds(settings, tried):
    known = read_procedure(settings.state_folder)
    assert (known.runs, known.marked, known.power.tries, known.told_apart.tries) == (2, MARKED, 2, 2 * MARKED)
    assert sum(rate.happened for rate in known.erased.values()) == 2
    assert known.power.confidence == 0.9
    for name, value in known.rows():
        assert name in tried
        assert value in tried
    assert "Run 2 of 2: " in tried


def test_the_runs_are_written_and_no_image_and_no_model_is_left(settings, tried):
    folder = settings.state_folder / "certify"
    left = {file.name for file in folder.rglob("*") if file.is_file()}
    assert left == {"procedure.json", "procedure.html", "runs.csv", "id", "result.json"}
    (file,) = folder.glob("*/runs.csv")
    with file.open() as stream:
        runs = list(csv.DictReader(stream))
    assert [run["run"] for run in runs] == ["0", "1"]
    for run in runs:
        assert int(run["asked"]) + int(run["never"]) == MARKED
        assert run["retrained_verdict"] in {outcome.value for outcome in Outcome}
        assert float(run["share_of_retraining_bytes"]) > 0.0
        assert float(run["references_megabytes"]) > 0.0


def test_mlflow_is_told_under_the_certificates_id(settings, tried):
    outbox = (settings.state_folder / "coordinator" / "outbox.db").read_bytes()
    known = read_procedure(settings.state_folder)
    for words in (known.certificate, known.settings_sha256, "procedure.html", "false_pass_high"):
        assert words.encode() in outbox


def test_a_second_start_makes_no_run_anew_and_keeps_the_id(settings, tried):
    known = read_procedure(settings.state_folder)
    results = {file: file.stat().st_mtime_ns for file in settings.state_folder.rglob("result.json")}
    shown = certify(settings, budget="0.000001s", width=80)
    assert all(value in shown for _, value in known.rows()), "a narrow terminal cuts a value off"
    again = read_procedure(settings.state_folder)
    assert again.model_copy(update={"made_at": known.made_at}) == known
    assert {file: file.stat().st_mtime_ns for file in settings.state_folder.rglob("result.json")} == results
    assert "1 runs are missing" in certify(settings, runs=3, budget="0.000001s")


def test_a_budget_without_a_run_and_too_many_marked_people_are_one_sentence(settings, tmp_path):
    other = settings.model_copy(update={"state_folder": tmp_path / "other"})
    with pytest.raises(JobError, match="The budget ended before a run was done"):
        certify(other, budget="0.000001s")
    with pytest.raises(ConfigurationError, match="--marked is 4000; choose from 2 to"):
        certify_command(other, 1, 4000, 0.95, "1h", Console(file=io.StringIO()))
    assert not (tmp_path / "other").exists()


def test_a_later_erasure_says_by_which_certificate_it_is_covered_or_what_has_changed(settings, tried):
    known = read_procedure(settings.state_folder)
    deal_to_sites(settings, ConsoleProgress(Console(file=io.StringIO())))
    run_job(settings, "train")
    store, said = Store(settings.state_folder), []
    assert known.aims == {"references": 2}
    for rounds, references in ((settings.erasure.rounds, False), (settings.erasure.rounds, True), (9, False)):
        if references:
            run_job(settings, "references")
        a_person_asks_at_each_site(settings)
        erasure = settings.erasure.model_copy(update={"rounds": rounds})
        record = run_job(settings.model_copy(update={"erasure": erasure}), "erase")
        folder = store.folders.made(record.job)
        report = json.loads((folder / "report.json").read_text())
        assert read(folder / "certificate.json").predicate.procedure == report["procedure"]
        said.append(report["procedure"])
    store.close()
    # The runs had reference models, and the first erasure has none.
    assert said[0].endswith("So what was measured there does not hold for it.")
    assert "false PASS" not in said[0]
    assert f"{known.certificate} on " in said[1]
    assert f"false PASS {known.false_pass}" in said[1]
    assert said[2].endswith("settings have changed since: erasure.rounds.")
