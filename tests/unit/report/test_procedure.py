"""A report says by which procedure certificate its procedure was tried, what came of it, or what has changed since."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dlfd_fleet.audit import Evidence, Rate
from dlfd_fleet.configuration import flatten
from dlfd_fleet.exceptions import EvidenceError
from dlfd_fleet.report import certified, issue, load_signer, read, render
from dlfd_fleet.report.page import render_procedure
from dlfd_fleet.report.procedure import (
    FOLDER,
    NOT_COUNTING,
    PROCEDURE_FILE,
    ProcedureCertificate,
    Spread,
    counting,
    read_procedure,
    tried,
)
from dlfd_fleet.settings import Settings
from tests.erasure_report import make_report


def tree(**sections):
    return Settings(**sections).model_dump(mode="json")


def rate(happened, tries=20):
    return Rate(happened=happened, tries=tries, confidence=0.95)


def certificate(**changes):
    models = ("original", "erased")
    what = ("auc", "forget_accuracy", "retain_accuracy", "test_accuracy")
    fields = {
        "certificate": "certify-20261129-050000-ab12",
        "made_at": datetime(2026, 11, 29, 5, tzinfo=UTC),
        "data": "faces.csv",
        "settings": counting(tree()),
        "runs": 20,
        "marked": 16,
        "labels": "exchanged",
        "asked": 8.2,
        "evidence": {Evidence.REFERENCES: 20},
        "power": rate(16),
        "false_pass": rate(0),
        "false_fail": rate(1),
        "erased": {"PASS": rate(12), "FAIL": rate(2), "INCONCLUSIVE": rate(6)},
        "told_apart": rate(170, 320),
        "distances": {f"{model}.{each}": Spread(mean=0.01, sd=0.02) for model in models for each in what},
        "costs": {"share_of_retraining_time": 0.1, "share_of_retraining_bytes": 0.2, "retraining_seconds": 60.0}
        | {"retraining_megabytes": 12.0},
    }
    return ProcedureCertificate(**fields | changes)


def kept(folder, known):
    (folder / FOLDER).mkdir()
    (folder / FOLDER / PROCEDURE_FILE).write_bytes(known.to_json())
    return folder


def test_an_erasure_under_the_same_settings_is_covered(tmp_path):
    said = tried(kept(tmp_path, certificate()), tree(), Evidence.REFERENCES)
    assert said == (
        "This procedure was tried in procedure certificate certify-20261129-050000-ab12 on 29 November 2026, in 20 "
        "runs of about 8 people who asked, whose labels were exchanged: power 80% [56%, 94%] (16 of 20), false PASS 0% "
        "[0%, 17%] (0 of 20); in brackets exact 95% bounds."
    )


def test_whether_ordinary_people_were_tried_is_said(tmp_path):
    said = tried(kept(tmp_path, certificate(labels="kept")), tree(), Evidence.REFERENCES)
    assert "8 people who asked, ordinary ones: power" in said
    assert "with labels of their own" in " ".join(render_procedure(certificate(labels="kept")).split())


def test_settings_that_have_changed_are_named_and_no_rate_is(tmp_path):
    changed = tree(training={"rounds": 9}, erasure={"unlearning": {"learning_rate": 0.5}})
    said = tried(kept(tmp_path, certificate()), changed, Evidence.REFERENCES)
    assert said.endswith("settings have changed since: erasure.unlearning.learning_rate, training.rounds.")
    assert "power" not in said


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 7},
        {"data": {"sites": 9}},
        {"release": {"on_inconclusive": "hold"}},
        {"fleet": {"late_seconds": 9.0}},
        {"erasure": {"deadline_days": 5, "compare_retrain": True}},
    ],
)
def test_settings_that_change_no_number_do_not_count(changes):
    assert certificate().changed_since(tree(**changes)) == []


def test_every_setting_that_does_not_count_is_one():
    assert flatten(tree()).keys() >= NOT_COUNTING


def test_another_version_of_the_package_is_a_change():
    older = certificate(settings=counting(tree()) | {"dlfd-fleet": "0.0.1"})
    assert older.changed_since(tree()) == ["dlfd-fleet"]


def test_other_evidence_than_in_the_runs_is_said(tmp_path):
    said = tried(kept(tmp_path, certificate()), tree(), Evidence.UNSEEN)
    assert said.endswith("Its verdicts rested on reference models, and this one on people never trained on.")


def test_an_erasure_that_aimed_at_something_else_is_not_covered(tmp_path):
    folder = kept(tmp_path, certificate(aims={"references": 19, "own-answers": 1}))
    for aim in ("references", "own-answers", None):
        assert "power 80%" in tried(folder, tree(), Evidence.REFERENCES, aim)
    said = tried(folder, tree(), Evidence.REFERENCES, "fleet-gate")
    assert "but its erasures aimed at what reference models, which never saw the people who asked, say of" in said
    assert said.endswith(
        "and this one at nothing but one gate of the whole fleet. So what was measured there does not hold for it."
    )
    assert "power" not in said


def test_a_certificate_of_an_earlier_release_covers_as_it_did(tmp_path):
    assert "power 80%" in tried(kept(tmp_path, certificate()), tree(), Evidence.REFERENCES, "own-answers")


def test_where_nobody_has_tried_or_the_file_is_damaged_that_is_said(tmp_path):
    assert tried(tmp_path, tree(), Evidence.UNSEEN).startswith("Nobody has tried this procedure")
    kept(tmp_path, certificate())
    (tmp_path / FOLDER / PROCEDURE_FILE).write_text("{")
    said = tried(tmp_path, tree(), Evidence.UNSEEN)
    assert said == "Whether this procedure was tried before is not known: its procedure certificate cannot be read."
    with pytest.raises(EvidenceError, match="run dlfd-fleet certify again, or move it"):
        read_procedure(tmp_path)


def test_a_certificate_survives_its_json_and_its_page_shows_every_row():
    known = certificate(aims={"own-answers": 20})
    assert ProcedureCertificate.model_validate_json(known.to_json()) == known
    page = render_procedure(known)
    for name, value in known.rows():
        assert name in page
        assert value in page
    assert known.settings_sha256 in page
    assert "This is no certificate of an erasure" in page


def test_the_report_and_the_certificate_of_an_erasure_say_it(tmp_path):
    said = tried(kept(tmp_path, certificate()), tree(), Evidence.REFERENCES)
    report = make_report(losses={}, readings=(), procedure=said)
    (tmp_path / "certificate.json").write_bytes(issue(report, load_signer(tmp_path / "key.pem")))
    assert said in render(report.to_json())
    statement = read(tmp_path / "certificate.json")
    assert statement.predicate.procedure == said
    assert said in list(certified(statement))
