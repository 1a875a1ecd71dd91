"""The table of a job: original, unlearned and, where made, retrained, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from dlfd_fleet.audit import SCORE_NAMES, gap_to_retrain
from dlfd_fleet.federation.records.job_record import JobRecord
from dlfd_fleet.report.contents import ModelResult
from dlfd_fleet.report.page import SCORE_TITLES, score_text


@dataclass(frozen=True)
class Summary:
    """A table as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footer: str


def summarise(record: JobRecord) -> Summary:
    """Return the table of a job; a score from a sample carries its 95% bounds over people."""
    models = {name: model for name, model in record.models.items() if name != "relearned"}
    rows = [(SCORE_TITLES[name], *(_score(model, name) for model in models.values())) for name in SCORE_NAMES]
    again = record.models.get("relearned")
    if again is not None and again.scores.mia_auc is not None:
        # One row, not a column: utility after a round that is not released tells nobody anything.
        cells = {"unlearned": _score(again, "mia_auc")}
        rows.append(("MIA AUC after further training", *(cells.get(name, "-") for name in models)))
    if any(model.scores.retain_auc for model in models.values()):
        rows.append(("AUC beside retained people", *(_score(model, "retain_auc") for model in models.values())))
        if again is not None:
            cells = {"unlearned": _score(again, "retain_auc")}
            rows.append(("the same after further training", *(cells.get(name, "-") for name in models)))
    retrained = models.get("retrained")
    if retrained is not None:
        gaps = (gap_to_retrain(model.scores, retrained.scores) for model in models.values())
        rows.append(("gap to retrained (0 is best)", *(f"{gap:.3f}" for gap in gaps)))
    rows.append(("majority-class accuracy", *(_score(model, "majority_baseline") for model in models.values())))
    rows.append(("seconds", *(f"{model.seconds:.1f}" for model in models.values())))
    rows.append(("MB sent", *(f"{model.bytes_sent / 1e6:.1f}" for model in models.values())))
    counts = next((model.scores for model in models.values() if model.scores.forget_images), None)
    title = record.job
    if counts is not None:
        title += f": {counts.forget_images} images forgotten, {counts.unseen_images} unseen"
    footer = record.verdict.sentence() if record.verdict else record.note
    if record.unsent:
        footer += f" MLflow does not answer: {record.unsent} records are kept, and the next job sends them."
    return Summary(title, ("", *models), tuple(rows), footer)


def _score(model: ModelResult, name: str) -> str:
    return score_text(getattr(model.scores, name))
