"""Attacks, scores and the verdict: numpy in, numbers out.

Any predictor (torch, ONNX Runtime on a device) is audited by its answers. :class:`SampleScores` holds one row an image:
role, person, label, prediction and loss. :func:`measure` turns it into :class:`Scores` with bounds, and :func:`judge`
compares the scores of two models::

    original = measure(samples_of_original)
    unlearned = measure(samples_of_unlearned)
    print(judge(original, unlearned, AuditSettings()).sentence())

:data:`ATTACKS` is the registry of the benchmark's attacks. Stable: the names in ``__all__``. An attack of your own:
docs/how-to/attack.md.
"""

from dlfd_fleet.audit.agreement import agreed
from dlfd_fleet.audit.attacks import (
    AttackResult,
    MembershipScores,
    evaluate,
    linear_probe,
    loss_attack,
    rmia,
    tpr_estimate,
)
from dlfd_fleet.audit.bootstrap import Estimate
from dlfd_fleet.audit.by_references import MemberSums, ReferenceSums, UnseenSums, reference_sums
from dlfd_fleet.audit.equivalence import Difference, accuracy_difference, auc_difference, equivalence_power
from dlfd_fleet.audit.expected import Expected, expect
from dlfd_fleet.audit.gate import Reading, gate_metrics, matched_auc, read_gate
from dlfd_fleet.audit.outcome import Evidence, Outcome, Verdict, margin_in_words
from dlfd_fleet.audit.rates import Rate
from dlfd_fleet.audit.registry import ATTACKS, Attack, Need, Observation, possible_attacks
from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.audit.scores import (
    SCORE_NAMES,
    Scores,
    forgetting_score,
    gap_to_retrain,
    measure,
    nomus,
)
from dlfd_fleet.audit.shares import Left, MemberShare, member_share
from dlfd_fleet.audit.shift import ReferenceLosses, Shift, shift_from_out
from dlfd_fleet.audit.unseen import least_drop
from dlfd_fleet.audit.verdict import (
    NOBODY_UNSEEN,
    AttackComparison,
    Tally,
    beside_reference,
    judge,
    judge_beside_retrained,
    judge_relearned,
    judge_retrained,
    judge_trained,
    judge_without_each,
)
from dlfd_fleet.audit.verdict_by_references import left_by_references

__all__ = [
    "ATTACKS",
    "NOBODY_UNSEEN",
    "SCORE_NAMES",
    "Attack",
    "AttackComparison",
    "AttackResult",
    "Difference",
    "Estimate",
    "Evidence",
    "Expected",
    "Left",
    "MemberShare",
    "MemberSums",
    "MembershipScores",
    "Need",
    "Observation",
    "Outcome",
    "Rate",
    "Reading",
    "ReferenceLosses",
    "ReferenceSums",
    "Role",
    "SampleScores",
    "Scores",
    "Shift",
    "Tally",
    "UnseenSums",
    "Verdict",
    "accuracy_difference",
    "agreed",
    "auc_difference",
    "beside_reference",
    "equivalence_power",
    "evaluate",
    "expect",
    "forgetting_score",
    "gap_to_retrain",
    "gate_metrics",
    "judge",
    "judge_beside_retrained",
    "judge_relearned",
    "judge_retrained",
    "judge_trained",
    "judge_without_each",
    "least_drop",
    "left_by_references",
    "linear_probe",
    "loss_attack",
    "margin_in_words",
    "matched_auc",
    "measure",
    "member_share",
    "nomus",
    "possible_attacks",
    "read_gate",
    "reference_sums",
    "rmia",
    "shift_from_out",
    "tpr_estimate",
]
