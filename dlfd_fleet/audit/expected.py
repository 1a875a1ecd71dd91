"""Predict, before an erasure, what its audit will be able to show."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from dlfd_fleet.audit.equivalence import equivalence_power
from dlfd_fleet.audit.outcome import Evidence
from dlfd_fleet.audit.scores import Scores
from dlfd_fleet.audit.shares import HALF
from dlfd_fleet.audit.verdict_by_references import left_by_references, what_decides
from dlfd_fleet.exceptions import DataError

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Expected:
    """The expected result of an audit.

    Attributes
    ----------
    evidence
        The evidence that will be used.
    passes
        Chance of PASS if the erasure is correct and costs no accuracy.
    fails
        Chance of FAIL if nothing is unlearned.
    why
        A sentence: what would raise the chances, or what limits them.
    """

    evidence: Evidence
    passes: float
    fails: float
    why: str

    def sentence(self) -> str:
        """Return it as a sentence."""
        said = {
            Evidence.REFERENCES: "By reference models",
            Evidence.RETRAINED: "Beside a retrained model",
            Evidence.UNSEEN: "Beside people never trained on",
        }[self.evidence]
        return (
            f"{said}: a right erasure passes in {self.passes:.0%} of cases, and one that unlearned nothing fails in "
            f"{self.fails:.0%}; {self.why}."
        )


def expect(original: Scores, margin: float) -> Expected:
    """Return what an erasure from this model can show, given the model's audit of the people who ask.

    The audit of the unlearned model has the same people, so its errors are about as large.

    Parameters
    ----------
    margin
        Margin of the AUC, if unseen people are the evidence.

    Raises
    ------
    DataError
        If nobody who asks was audited.
    """
    if not original.forget_images:
        raise DataError("Nobody who asks was audited, so nothing is known of what an erasure can show.")
    left = left_by_references(original, original)
    if left is not None:
        fails = _NORMAL.cdf((left.value - HALF) / left.standard_error - _NORMAL.inv_cdf(0.95))
        return Expected(Evidence.REFERENCES, left.power, fails, what_decides(left))
    auc = original.mia_auc
    if auc is None:
        why = "nobody is unseen and no reference model has answered for them all: only a retrained model can tell"
        return Expected(Evidence.RETRAINED, 0.0, 0.0, why)
    found = auc.low > 0.5  # an attack that may find nobody in the original shows nothing of another model
    passes = equivalence_power(auc.standard_error, margin) if found else 0.0
    error = max(auc.standard_error, 1e-9)
    fails = _NORMAL.cdf((auc.value - 0.5 - margin) / error - _NORMAL.inv_cdf(0.975))
    why = "reference models would tell more (`dlfd-fleet job start references`)"
    return Expected(Evidence.UNSEEN, passes, fails, why if found else f"the attack may find nobody in it; {why}")
