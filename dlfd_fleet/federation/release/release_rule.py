"""What a verdict lets happen to a model."""

from __future__ import annotations

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.settings import Settings


def may_release(verdict: Verdict, settings: Settings) -> bool:
    """Tell whether a verdict moves the alias."""
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return settings.release.on_inconclusive == "release"
    return verdict.outcome is Outcome.PASS


def may_retrain(settings: Settings) -> bool:
    """Tell whether an erasure may retrain, to compare or in place of unlearning."""
    erasure = settings.erasure
    return erasure.compare_retrain or erasure.fallback_retrain or settings.release.on_inconclusive == "retrain"


def retrain_instead(verdict: Verdict, settings: Settings) -> bool:
    """Tell whether a verdict asks for federated retraining."""
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return settings.release.on_inconclusive == "retrain"
    return verdict.outcome is Outcome.FAIL and settings.erasure.fallback_retrain
