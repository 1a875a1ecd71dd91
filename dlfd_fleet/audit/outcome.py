"""Define a verdict: its outcome, its evidence, and its sentence."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit.shares import HALF

EXACT = (
    "The procedure is exact: the model was trained without the forgotten people, from weights that never saw them, as "
    "far as is known."
)
_SAID_TO_BE_EXACT = (
    "The model was trained without the forgotten people, from weights that are said to have never seen them."
)


class Outcome(StrEnum):
    """The three outcomes of a verdict."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


class Evidence(StrEnum):
    """What forgotten people are compared with; the first that is available is used."""

    REFERENCES = "references"
    """Reference models that never saw these people, and others that did."""
    RETRAINED = "retrained"
    """Models that were trained without these people."""
    UNSEEN = "unseen"
    """Other people, on whom the model was never trained."""


class Verdict(BaseModel):
    """An outcome, its reasons, and the power of the audit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    reasons: tuple[str, ...]
    margin: float
    """Margin of the AUC."""
    power: float
    evidence: Evidence = Evidence.UNSEEN
    e_value: float | None = None
    """By references: the evidence that less than half is left; 1 is none. Values of several erasures multiply."""
    exact: bool = False
    """Whether the model was trained anew from weights that never saw the forgotten people. The outcome is measured as
    usual."""

    def sentence(self) -> str:
        """Return the verdict as a sentence that claims no more than was measured."""
        margin = margin_in_words(self.margin, self.evidence)
        measured = f"{self.outcome}: {'; '.join(self.reasons)} (margin {margin}, power {self.power:.2f})."
        if not self.exact:
            return measured
        return f"{measured} {_SAID_TO_BE_EXACT if self.outcome is Outcome.FAIL else EXACT}"


def margin_in_words(margin: float, evidence: Evidence) -> str:
    """Return the margin of a verdict in words: of the AUC, or of what members show."""
    return f"{HALF:.0%} of what members show" if evidence is Evidence.REFERENCES else f"{margin:.2f}"
