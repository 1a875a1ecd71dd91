"""Attacks, scores and the verdict: numpy in, numbers out.

A predictor of any kind (torch, ONNX Runtime on a device) is audited from what it says of each image, a
:class:`SampleScores`; :func:`measure` turns that into the fleet's :class:`Scores` with bounds, and :func:`judge`
compares them with the original model's. :data:`ATTACKS` is the registry of the attacks that a benchmark makes; to add
one: docs/how-to/attack.md.
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
from dlfd_fleet.audit.equivalence import Difference, accuracy_difference, auc_difference, equivalence_power
from dlfd_fleet.audit.gate import Reading, gate_metrics, matched_auc, read_gate
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
from dlfd_fleet.audit.shift import ReferenceLosses, Shift, shift_from_out
from dlfd_fleet.audit.unseen import least_drop
from dlfd_fleet.audit.verdict import (
    NOBODY_UNSEEN,
    AttackComparison,
    Outcome,
    Tally,
    Verdict,
    beside_reference,
    judge,
    judge_beside_retrained,
    judge_relearned,
    judge_retrained,
    judge_trained,
    judge_without_each,
)

__all__ = [
    "ATTACKS",
    "NOBODY_UNSEEN",
    "SCORE_NAMES",
    "Attack",
    "AttackComparison",
    "AttackResult",
    "Difference",
    "Estimate",
    "MembershipScores",
    "Need",
    "Observation",
    "Outcome",
    "Reading",
    "ReferenceLosses",
    "Role",
    "SampleScores",
    "Scores",
    "Shift",
    "Tally",
    "Verdict",
    "accuracy_difference",
    "agreed",
    "auc_difference",
    "beside_reference",
    "equivalence_power",
    "evaluate",
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
    "linear_probe",
    "loss_attack",
    "matched_auc",
    "measure",
    "nomus",
    "possible_attacks",
    "read_gate",
    "rmia",
    "shift_from_out",
    "tpr_estimate",
]
