"""What a procedure was found to do before anybody asked: the procedure certificate, and what it says of an erasure.

It is no certificate of an erasure, and no signature is on it: it is what ``dlfd-fleet certify`` has counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field, ValidationError

from dlfd_fleet.audit import Evidence, Rate
from dlfd_fleet.configuration import flatten
from dlfd_fleet.exceptions import EvidenceError
from dlfd_fleet.report import words
from dlfd_fleet.report.contents import AimedAt, Part

FOLDER, PROCEDURE_FILE = "certify", "procedure.json"
COUNTING = ("model", "training", "audit", "erasure", "references", "fleet")
"""Sections of which settings count: what a model is, how it is trained, unlearnt and judged."""
NOT_COUNTING = frozenset(
    {
        "training.start",
        "erasure.deadline_days",
        "erasure.compare_retrain",
        "erasure.fallback_retrain",
        "references.with_training",
        "references.expire",
    }
)
"""Those of them that change no number of an unlearned model or of its audit: days, and what is done beside or after."""
_OF_FLEET = ("fleet.update_precision", "fleet.update_ratio")
"""Of the section ``fleet`` these count: the others say how long sites are waited for, and which of them take part."""
_SOFTWARE = "dlfd-fleet"
_UNREADABLE = "Whether this procedure was tried before is not known: its procedure certificate cannot be read."
_NOBODY = "Nobody has tried this procedure on this fleet before (dlfd-fleet certify)."
_DISTANCES = {
    "auc": "AUC of the loss attack",
    "forget_accuracy": "accuracy on those who asked, by the labels that were trained on",
    "retain_accuracy": "accuracy on retained people",
    "test_accuracy": "accuracy on people never seen",
}
_LABELS = {"exchanged": "whose labels were exchanged", "kept": "ordinary ones"}
_RESTED: dict[Evidence, str] = {
    Evidence.REFERENCES: "reference models",
    Evidence.RETRAINED: "a retrained model",
    Evidence.UNSEEN: "people never trained on",
}
_AIMED: dict[AimedAt, str] = {
    "references": "references",
    "own-answers": "own answers",
    "fleet-gate": "the fleet's gate",
}
"""In the few words of a table's cell."""


def counting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a procedure depends on, by dotted key, and the version of this package."""
    known = flatten({name: settings[name] for name in COUNTING if name in settings})
    found = {
        key: value
        for key, value in known.items()
        if key not in NOT_COUNTING and (not key.startswith("fleet.") or key in _OF_FLEET)
    }
    return found | {_SOFTWARE: version(_SOFTWARE)}


class Spread(Part):
    """The mean of some runs, and how much they vary by."""

    mean: float
    sd: float
    """Standard deviation; 0 of one run."""

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (SD {self.sd:.3f})"


class ProcedureCertificate(Part):
    """What runs of training, erasure and audit came to."""

    format: Literal["urn:dlfd-fleet:procedure-certificate:1"] = "urn:dlfd-fleet:procedure-certificate:1"
    certificate: str
    """Its id, and the name of its run in MLflow."""
    made_at: AwareDatetime
    data: str
    """What people call the set that it was tried on."""
    settings: dict[str, Any]
    """Those that count (:func:`counting`)."""
    runs: int
    marked: int
    """People of a run of whom a coin says who is trained on."""
    labels: Literal["exchanged", "kept"]
    """Whether their labels were exchanged, so that they are surely remembered; ordinary people keep theirs."""
    asked: float
    """How many of them asked in a run, in the mean."""
    evidence: dict[Evidence, int]
    """What verdicts of retrained models rested on, and how many of them."""
    aims: dict[AimedAt, int] = Field(default_factory=dict)
    """What the erasures aimed at in their first attempt, and how many of them; earlier releases do not say it."""
    power: Rate
    """Retrained models that PASS."""
    false_pass: Rate
    """Originals, which have unlearned nothing, that PASS."""
    false_fail: Rate
    """Retrained models that FAIL."""
    erased: dict[str, Rate]
    """Verdicts of the erasures themselves, by outcome."""
    told_apart: Rate
    """Guesses of an attacker, who has a retrained model, on who of the marked people was trained on, that are right."""
    distances: dict[str, Spread]
    """From the retrained model, by what and of which model."""
    costs: dict[str, float]
    """Means: what an erasure took, and its shares of a retraining."""

    @property
    def confidence(self) -> float:
        """Of the bounds of every rate."""
        return self.power.confidence

    @property
    def settings_sha256(self) -> str:
        """Digest of the settings that count."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield what was measured as people read it, a line each."""
        yield "power: retrained models that PASS", str(self.power)
        yield "false PASS: originals that PASS, nothing unlearned", str(self.false_pass)
        yield "false FAIL: retrained models that FAIL", str(self.false_fail)
        for outcome, rate in self.erased.items():
            yield f"erased models: {outcome}", str(rate)
        yield "marked people told apart in the erased model (half is chance)", str(self.told_apart)
        for model in ("original", "erased"):
            for what, words_of in _DISTANCES.items():
                yield f"{model} less retrained: {words_of}", str(self.distances[f"{model}.{what}"])
        yield from self._costs()
        rested = ", ".join(f"{_RESTED[one]} ({count})" for one, count in self.evidence.items())
        if self.aims:
            yield "erasures aimed at", ", ".join(f"{_AIMED[aim]} ({count})" for aim, count in self.aims.items())
        yield "people who asked in a run", f"{self.asked:.1f}"
        yield "verdicts rest on", rested

    def _costs(self) -> Iterator[tuple[str, str]]:
        costs = self.costs
        took = {"erasure, without its audits": "of_retraining", "erasure with its audits": "with_audits"}
        took |= {"and a twentieth of the references": "with_references"}
        for what, name in took.items():
            if f"share_{name}_bytes" in costs:
                yield (
                    f"{what}, of a retraining",
                    f"{costs[f'share_{name}_time']:.2f} of the time, {costs[f'share_{name}_bytes']:.2f} of the bytes",
                )
        for what, name in {"retraining": "retraining_", "references": "references_"}.items():
            if f"{name}seconds" in costs:
                yield what, f"{costs[f'{name}seconds']:.0f} s, {costs[f'{name}megabytes']:.1f} MB"

    def to_json(self) -> bytes:
        """Return ``procedure.json``."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    def changed_since(self, settings: Mapping[str, Any]) -> list[str]:
        """Return the keys of settings, of those that count, that are others now."""
        now = json.loads(json.dumps(counting(settings)))
        keys = sorted(self.settings.keys() | now.keys())
        return [key for key in keys if self.settings.get(key) != now.get(key)]

    def sentence(self, settings: Mapping[str, Any], evidence: Evidence | None, aim: AimedAt | None = None) -> str:
        """Say what it says of an erasure under these settings, whose verdict rests on this evidence.

        Parameters
        ----------
        aim
            What the erasure aimed at in its first attempt; None if that is not known.
        """
        tried = f"{self.certificate} on {words.day(self.made_at)}"
        if changed := self.changed_since(settings):
            return f"This procedure was tried in procedure certificate {tried}, and settings have changed since: " + (
                f"{', '.join(changed)}."
            )
        if aim is not None and self.aims and aim not in self.aims:
            other = " or ".join(words.AIMS[known] for known in self.aims)
            return (
                f"This procedure was tried in procedure certificate {tried}, but its erasures aimed at {other}, and "
                f"this one at {words.AIMS[aim]}. So what was measured there does not hold for it."
            )
        said = (
            f"This procedure was tried in procedure certificate {tried}, in {words.count(self.runs, 'run')} of about "
            f"{self.asked:.0f} people who asked, {_LABELS[self.labels]}: power {self.power}, false PASS "
            f"{self.false_pass}; in brackets exact {self.confidence:.0%} bounds."
        )
        if evidence is not None and evidence not in self.evidence:
            rested = " and ".join(_RESTED[one] for one in self.evidence)
            said += f" Its verdicts rested on {rested}, and this one on {_RESTED[evidence]}."
        return said


def read_procedure(state_folder: Path) -> ProcedureCertificate | None:
    """Return the latest procedure certificate of a fleet; None if nobody has tried its procedure.

    Raises
    ------
    EvidenceError
        If it cannot be read.
    """
    file = state_folder / FOLDER / PROCEDURE_FILE
    try:
        return ProcedureCertificate.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise EvidenceError(
            f"{file} is no procedure certificate that this release can read; run dlfd-fleet certify again, or move it."
        ) from error


def tried(
    state_folder: Path, settings: Mapping[str, Any], evidence: Evidence | None, aim: AimedAt | None = None
) -> str:
    """Say whether the procedure of an erasure was tried before, and what came of it.

    Parameters
    ----------
    settings
        Of the erasure, as a tree.
    evidence
        What its verdict rests on; None if there is none.
    aim
        What it aimed at in its first attempt; None if that is not known.
    """
    try:
        known = read_procedure(state_folder)
    except EvidenceError:
        return _UNREADABLE
    return known.sentence(settings, evidence, aim) if known else _NOBODY
