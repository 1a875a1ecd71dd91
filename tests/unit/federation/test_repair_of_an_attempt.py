"""An attempt without references: a repair that does harm is undone, and the next one has a smaller rate."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from dlfd_fleet.audit import Reading
from dlfd_fleet.federation.records.journal import Merged
from dlfd_fleet.federation.rounds import erasure as attempts
from dlfd_fleet.federation.rounds.erasure import Erasure
from dlfd_fleet.settings import Settings

RATE = 0.1


def reading(useful: float, auc: float = 0.5) -> Reading:
    return Reading(utility=useful, attack_auc=auc, retain_accuracy=useful)


class Fleet:
    """Sites whose repair adds 1 to a model, and a gate that reads what a test has written down."""

    def __init__(self, monkeypatch, *readings: Reading, can_unlearn: bool = True) -> None:
        self.repaired: list[tuple[float, float]] = []
        self.forgotten: list[float] = []
        self.original = SimpleNamespace(arrays={"w": torch.zeros(1)}, samples=None)
        left = list(readings)
        monkeypatch.setattr(attempts, "read_gate", lambda *_: left.pop(0))
        monkeypatch.setattr(attempts, "gate_metrics", lambda *_: {})
        self.settings = Settings.model_validate({"erasure": {"learning_rate": RATE, "rounds": len(readings) - 1}})
        reply = SimpleNamespace(can_unlearn=can_unlearn, can_train=True, requests=(), answered_images=0)
        self.job = SimpleNamespace(
            settings=self.settings,
            round=0,
            aims=(),
            sites_can_tell=False,
            references_too_poor=False,
            card=SimpleNamespace(labels=None),
            fleet=SimpleNamespace(said=[reply], absent={}),
            progress=SimpleNamespace(phase=lambda *_: contextlib.nullcontext(lambda: None), say=lambda _: None),
            recorder=SimpleNamespace(gate=lambda *_: None),
        )

    def fit_round(self, arrays, purpose, epochs, rate, advance):
        self.job.round += 1
        self.repaired.append((float(arrays["w"]), rate))
        return {"w": arrays["w"] + 1}

    def forget(self, rounds, forgetting):
        self.forgotten.append(float(forgetting.arrays["w"]))
        return Merged({"w": forgetting.arrays["w"] + 10}, ("a request",))

    def attempt(self):
        audits = SimpleNamespace(gate_samples=lambda *_: None)
        rounds = SimpleNamespace(job=self.job, fit_round=self.fit_round)
        return Erasure(rounds, audits, self.forget).attempt(self.original, 1)


@pytest.fixture
def fleet(monkeypatch):
    return lambda *readings, **how: Fleet(monkeypatch, *readings, **how)


def test_a_repair_that_does_harm_is_undone_and_the_next_has_a_quarter_of_its_rate(fleet):
    tried = fleet(reading(0.95), reading(0.80), reading(0.70), reading(0.85), reading(0.86))
    attempted = tried.attempt()
    assert tried.forgotten == [0.0]
    assert tried.repaired == [
        (10.0, RATE),
        (11.0, RATE),  # 0.80 became 0.70
        (11.0, RATE / 4),  # again from the model with 0.80; it became 0.85
        (12.0, RATE / 8),
    ]
    assert float(attempted.merged.arrays["w"]) == 13.0
    assert [noted.retain_accuracy for noted in attempted.readings] == [0.95, 0.80, 0.70, 0.85, 0.86]
    made = attempted.made
    assert (made.aim, made.forgetting, made.repair, made.reached) == ("fleet-gate", 1, 4, False)
    assert made.ended == (
        "The gate of the fleet was not reached. In the best round it read an attack AUC of 0.50 on validation people, "
        "and accuracy 0.86 on retained people."
    )


def test_it_ends_once_half_of_the_allowed_drop_is_left(fleet):
    drop = Settings().erasure.unlearning.max_utility_drop
    tried = fleet(reading(0.95), reading(0.95 - 0.9 * drop), reading(0.95 - 0.4 * drop), reading(0.95))
    attempted = tried.attempt()
    assert float(attempted.merged.arrays["w"]) == 12.0
    assert attempted.made.reached
    assert len(tried.repaired) == 2


def test_a_round_that_forgets_is_not_undone_though_it_costs_accuracy(fleet):
    tried = fleet(reading(0.95, 0.9), reading(0.90, 0.8), reading(0.85, 0.8), reading(0.86, 0.5))
    tried.attempt()
    assert tried.forgotten == [0.0, 11.0, 22.0]
    assert [rate for _, rate in tried.repaired] == [RATE] * 3


def test_repair_that_must_forget_by_itself_is_never_undone(fleet):
    tried = fleet(reading(0.95, 0.9), reading(0.90, 0.8), reading(0.85, 0.8), reading(0.86, 0.5), can_unlearn=False)
    tried.attempt()
    assert tried.forgotten == []
    assert tried.repaired == [(0.0, RATE), (1.0, RATE), (2.0, RATE)]
