"""What a verdict is: an outcome, what it rests on, and how it is said."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from dlfd_fleet.audit.shares import HALF

EXACT = "The procedure is exact: the model was trained without the forgotten people, from weights that never saw them."


class Outcome(StrEnum):
    """What the evidence allows to say."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


class Evidence(StrEnum):
    """What forgotten people are compared with: the best of these that there is."""

    REFERENCES = "references"
    """What reference models say of them that never saw them, and that did."""
    RETRAINED = "retrained"
    """What models say that were trained without them."""
    UNSEEN = "unseen"
    """Other people, whom the model never saw."""


class Verdict(BaseModel):
    """An outcome, why, and how likely this audit was to see equivalence had it been there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    reasons: tuple[str, ...]
    margin: float
    """Of AUC."""
    power: float
    evidence: Evidence = Evidence.UNSEEN
    e_value: float | None = None
    """By references: the evidence that less than half is left; 1 is none. Those of several erasures multiply."""
    exact: bool = False
    """Whether the model was made by an exact procedure: nothing that it is made of has seen the forgotten people. The
    outcome is what was measured all the same."""

    def sentence(self) -> str:
        """Return the verdict in words that claim no more than was measured."""
        margin = margin_in_words(self.margin, self.evidence)
        measured = f"{self.outcome}: {'; '.join(self.reasons)} (margin {margin}, power {self.power:.2f})."
        return f"{measured} {EXACT}" if self.exact else measured


def margin_in_words(margin: float, evidence: Evidence) -> str:
    """Return the margin of a verdict: of AUC, or by references of what members show."""
    return f"{HALF:.0%} of what members show" if evidence is Evidence.REFERENCES else f"{margin:.2f}"
