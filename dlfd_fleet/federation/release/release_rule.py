"""What a verdict lets happen to a model."""

from __future__ import annotations

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.settings import Settings


def may_release(verdict: Verdict, settings: Settings) -> bool:
    """Tell whether a verdict moves the alias."""
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return settings.release.on_inconclusive == "release"
    return verdict.outcome is Outcome.PASS


def retrain_instead(verdict: Verdict, settings: Settings) -> bool:
    """Tell whether a verdict asks for federated retraining."""
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return settings.release.on_inconclusive == "retrain"
    return verdict.outcome is Outcome.FAIL and settings.erasure.fallback_retrain
