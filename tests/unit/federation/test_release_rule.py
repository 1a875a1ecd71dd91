"""Which verdict moves the alias, and which asks for retraining: the table of the settings."""

from __future__ import annotations

import pytest

from dlfd_fleet.audit import Outcome, Verdict
from dlfd_fleet.federation.release.release_rule import may_release, retrain_instead
from dlfd_fleet.settings import Settings


def verdict(outcome):
    return Verdict(outcome=outcome, reasons=("measured",), margin=0.1, power=0.0)


@pytest.mark.parametrize(
    ("outcome", "on_inconclusive", "fallback", "releases", "retrains"),
    [
        ("PASS", "hold", True, True, False),
        ("FAIL", "release", False, False, False),
        ("FAIL", "release", True, False, True),
        ("INCONCLUSIVE", "release", True, True, False),
        ("INCONCLUSIVE", "hold", True, False, False),
        ("INCONCLUSIVE", "retrain", False, False, True),
    ],
)
def test_the_alias_moves_as_the_settings_say(outcome, on_inconclusive, fallback, releases, retrains):
    settings = Settings(release={"on_inconclusive": on_inconclusive}, erasure={"fallback_retrain": fallback})
    assert may_release(verdict(Outcome(outcome)), settings) is releases
    assert retrain_instead(verdict(Outcome(outcome)), settings) is retrains


@pytest.mark.parametrize(("policy", "releases"), [("release", True), ("retrain", True), ("hold", False)])
def test_an_inconclusive_verdict_of_an_exact_model_is_what_retraining_asks_for(policy, releases):
    settings = Settings(release={"on_inconclusive": policy})
    exact = verdict(Outcome.INCONCLUSIVE).model_copy(update={"exact": True})
    assert may_release(exact, settings) is releases
    assert not may_release(exact.model_copy(update={"outcome": Outcome.FAIL}), settings)
