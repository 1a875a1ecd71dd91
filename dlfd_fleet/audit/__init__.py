"""Attacks, scores and the verdict: numpy in, numbers out.

A predictor of any kind (torch, ONNX Runtime on a device) is audited from what it says of each image, a
:class:`SampleScores`; :func:`measure` turns that into the fleet's :class:`Scores` with bounds, and :func:`judge`
compares them with the original model's.
"""

from dlfd_fleet.audit.gate import Reading, matched_auc, read_gate
from dlfd_fleet.audit.samples import Role, SampleScores
from dlfd_fleet.audit.scores import SCORE_NAMES, Estimate, Scores, forgetting_score, gap_to_retrain, measure, nomus
from dlfd_fleet.audit.verdict import Outcome, Verdict, judge, judge_retrained

__all__ = [
    "SCORE_NAMES",
    "Estimate",
    "Outcome",
    "Reading",
    "Role",
    "SampleScores",
    "Scores",
    "Verdict",
    "forgetting_score",
    "gap_to_retrain",
    "judge",
    "judge_retrained",
    "matched_auc",
    "measure",
    "nomus",
    "read_gate",
]
