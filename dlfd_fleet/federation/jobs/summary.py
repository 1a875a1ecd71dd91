"""The table of a job: original, unlearned and, where made, retrained, side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dlfd_fleet.audit import SCORE_NAMES, gap_to_retrain, left_by_references
from dlfd_fleet.federation.records.job_record import FINAL_STEPS, JobRecord
from dlfd_fleet.plain_text import visible
from dlfd_fleet.report import InShort
from dlfd_fleet.report.contents import ModelResult
from dlfd_fleet.report.page import SCORE_TITLES, score_text
from dlfd_fleet.report.words import aimed


@dataclass(frozen=True)
class Summary:
    """A table as text."""

    lead: tuple[str, ...]
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footer: str


def summarise(record: JobRecord, said: InShort | None = None) -> Summary:
    """Return the table of a job; a score from a sample carries its 95% bounds over people.

    Parameters
    ----------
    said
        The job in three lines, if it is an erasure: they come first.
    """
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
    if left := _left(models, models.get("original")):
        rows.append(("left of what members show", *(left.get(name, "-") for name in models)))
        original = models.get("original")
        if again is not None and original is not None and again.sites == original.sites:  # else of other people
            cells = {"unlearned": _left({"again": again}, original).get("again", "-")}
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
    footer = record.note
    if record.unsent:
        footer += f" MLflow does not answer: {record.unsent} records are kept, and the next job sends them."
    return Summary(said or (), title, ("", *models), tuple(rows), footer)


def _left(models: Mapping[str, ModelResult], original: ModelResult | None) -> dict[str, str]:
    """Return what reference models say is left of the forgotten people, with one-sided 95% bounds, by model."""
    if original is None:
        return {}
    found = {name: left_by_references(original.scores, model.scores) for name, model in models.items()}
    return {name: str(left) for name, left in found.items() if left is not None}


_DONE = {
    "train": "Trained the fleet's model",
    "references": "Made reference models",
    "plan": "Looked ahead at an erasure",
    "import": "Imported a model",
}
_SHOWN = ("test_accuracy", "retain_accuracy", "mia_auc")


def describe(record: JobRecord, said: InShort | None = None) -> str:
    """Return what a job was, with what evidence and where its report is: for people who read MLflow, Markdown.

    Parameters
    ----------
    said
        The job in three lines, if it is an erasure; what is open changes until it is settled.
    """
    lines = [_what_was_done(record)]
    if said is not None:
        lines.append(_as_written(said.measured))
        lines += [_as_written(said.open)] if record.step in FINAL_STEPS else []
    elif record.verdict:
        lines.append(_as_written(record.verdict.sentence()))
    elif record.note:
        lines.append(_as_written(f"{record.note[:1].upper()}{record.note[1:]}."))
    lines += [_as_written(sentence) for sentence in aimed(record.proceedings)]
    made = "retrained" if record.proceedings.retrained else "unlearned"
    before, after = record.models.get("original"), record.models.get(made)
    if before is not None and after is not None:
        parts = (f"{SCORE_TITLES[name]} {_score(after, name)} (before {_score(before, name)})" for name in _SHOWN)
        lines.append(f"Scores: {', '.join(parts)}.")
    if record.kind == "erase" and record.requests:
        certificate = ", and `erasure/certificate.json`, signed" if record.released else ""
        lines.append(f"The report is among the artifacts of the job's run: `erasure/report.html`{certificate}.")
    return "\n\n".join(lines)


def _as_written(text: str) -> str:
    """Return a text that Markdown shows as it is: some of it comes from sites."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", visible(text))


def _what_was_done(record: JobRecord) -> str:
    if record.kind != "erase":
        return f"**{_DONE[record.kind]}** ({record.job})."
    many = "1 request" if record.requests == 1 else f"{record.requests} requests"
    if not record.requests:
        return f"**Nobody asked to be forgotten** ({record.job})."
    if record.released:
        served = f", of {many}" if len(record.forgotten) != record.requests else ""
        forgotten = "1 request" if len(record.forgotten) == 1 else f"{len(record.forgotten)} requests"
        return f"**{forgotten} forgotten**{served}; released as epoch {record.epoch} ({record.job})."
    return f"**{many} to forget, and not released** ({record.job})."


def _score(model: ModelResult, name: str) -> str:
    return score_text(getattr(model.scores, name))
