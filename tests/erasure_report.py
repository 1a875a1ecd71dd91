"""A report of an erasure that never was, with everything in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from dlfd_fleet.audit import Estimate, Outcome, Scores, Verdict
from dlfd_fleet.report import ErasureReport
from dlfd_fleet.report.contents import (
    AskedRequest,
    FileResult,
    GateReading,
    ModelResult,
    Phase,
    Revoked,
    SiteShare,
    loss_counts,
)

ASKED = datetime(2026, 11, 3, 9, 30, tzinfo=UTC)


def estimate(value: float, error: float = 0.05) -> Estimate:
    return Estimate(value=value, low=max(value - 2 * error, 0), high=min(value + 2 * error, 1), standard_error=error)


def scores(auc: float, error: float = 0.05) -> Scores:
    return Scores(
        test_accuracy=estimate(0.84),
        balanced_accuracy=estimate(0.82),
        retain_accuracy=estimate(0.97),
        forget_accuracy=estimate(0.83),
        mia_accuracy=estimate(auc),
        mia_auc=estimate(auc, error),
        forgetting_score=abs(auc - 0.5),
        nomus=0.9,
        control_auc=estimate(0.5),
        majority_baseline=0.6,
        unseen_classes=2,
        forget_images=40,
        unseen_images=50,
    )


def make_report(**changes) -> ErasureReport:
    verdict = Verdict(outcome=Outcome.PASS, reasons=("no difference detected",), margin=0.1, power=0.83)
    models = {"original": 0.72, "unlearned": 0.51, "relearned": 0.53, "retrained": 0.5}
    losses = loss_counts({"forget": np.array([0.01, 0.2]), "retain": np.array([1e-9]), "unseen": np.array([27.6])})
    fields = {
        "job": "erase-20261124-111007-59ce",
        "state": "settled",
        "note": "released as epoch 1",
        "started_at": ASKED + timedelta(days=4),
        "settled_at": ASKED + timedelta(days=4, minutes=3),
        "released": True,
        "epoch": 1,
        "requests": 2,
        "served": ("3ed7e29205315cf6",),
        "asked": (
            AskedRequest(
                request="3ed7e29205315cf6",
                site="site-1a2b3c4d",
                asked_at=ASKED.date(),
                deadline=ASKED.date() + timedelta(days=30),
            ),
            AskedRequest(
                request="cc7412bef659e23d",
                site="site-5e6f7a8b",
                asked_at=ASKED.date() + timedelta(days=2),
                deadline=ASKED.date() + timedelta(days=32),
            ),
        ),
        "sites": (
            SiteShare(site="site-1a2b3c4d", requests=1, forget_images=20, training_images=90, counted_images=90),
            SiteShare(site="site-5e6f7a8b", requests=1, forget_images=20, training_images=80, counted_images=80),
        ),
        "absent": {"site-5e6f7a8b": "did not answer query.settle within 3600 s"},
        "acknowledged": {"site-1a2b3c4d": 1},
        "purged_images": 20,
        "parent": "ab" * 32,
        "attempts": 1,
        "verdict": verdict,
        "models": {name: ModelResult(scores=scores(auc), seconds=9.0, bytes_sent=10) for name, auc in models.items()},
        "readings": tuple(
            GateReading(
                attempt=1, round=number, utility=0.8, utility_half_width=0.1, retain_accuracy=0.97, attack_auc=auc
            )
            for number, auc in enumerate((0.7, 0.6, 0.5))
        ),
        "losses": dict.fromkeys(("original", "unlearned"), losses),
        "files": {
            form: FileResult(
                name=name,
                sha256=digit * 64,
                size_bytes=44_800_000,
                max_abs_difference=1e-6,
                compared_images=210,
                agreement=1.0,
                scores=scores(0.51),
                verdict=verdict,
            )
            for form, name, digit in (("fp32", "model.onnx", "c"), ("int8", "model.int8.onnx", "d"))
        },
        "released_files": ("fp32",),
        "refused_files": {"int8": "FAIL: forgotten people are still remembered."},
        "phases": {"distancing": Phase(steps=2, seconds=12.5, sent_bytes=90_000_000)},
        "revoked": (Revoked(job="train-20261124-105007-0001", epoch=0),),
        "software": {"dlfd-fleet": "0.1.0", "torch": "2.15.0"},
        "settings": {"seed": 0, "audit.margin": 0.1, "erasure.rounds": 5},
        "seconds": 40.0,
    }
    return ErasureReport(**(fields | changes))
