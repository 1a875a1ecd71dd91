"""Decide by a verdict what may happen to a model."""

from __future__ import annotations

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.settings import Settings


def may_release(verdict: Verdict, settings: Settings) -> bool:
    """Tell whether a verdict allows a release."""
    policy = settings.release.on_inconclusive
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return policy == "release" or (policy == "retrain" and verdict.exact)  # it is what that policy asks for
    return verdict.outcome is Outcome.PASS


def may_retrain(settings: Settings) -> bool:
    """Tell whether an erasure may retrain, to compare or to release the result."""
    return settings.erasure.compare_retrain or may_release_retrained(settings)


def may_release_retrained(settings: Settings) -> bool:
    """Tell whether an erasure may release a retrained model."""
    erasure = settings.erasure
    policy = erasure.retrain_after is not None or erasure.retrain_drift is not None
    asked = erasure.way != "unlearn" or erasure.fallback_retrain or policy
    return asked or settings.release.on_inconclusive == "retrain"


def retrain_instead(verdict: Verdict, settings: Settings) -> bool:
    """Tell whether a verdict asks for federated retraining."""
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return settings.release.on_inconclusive == "retrain"
    return verdict.outcome is Outcome.FAIL and settings.erasure.fallback_retrain
