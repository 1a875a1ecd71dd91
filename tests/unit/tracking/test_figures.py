from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dlfd_fleet.tracking.figures import loss_histograms, person_scores, score_table, time_by_phase, trade_off


def size_of(png):
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


def test_losses_are_drawn_one_panel_a_model():
    generator = np.random.default_rng(0)
    groups = {name: generator.exponential(size=40) for name in ("forget", "retain")} | {"unseen": np.array([])}
    one, two = loss_histograms({"original": groups}), loss_histograms({"original": groups, "unlearned": groups})
    assert size_of(two)[0] > size_of(one)[0]


def test_a_table_grows_with_its_rows():
    rows = [("test accuracy", "0.9", "0.8")] * 3
    short = score_table("a job", ("", "original", "unlearned"), rows, "PASS")
    long = score_table("a job", ("", "original", "unlearned"), rows * 4, "PASS")
    assert size_of(long)[1] > size_of(short)[1]


def test_people_rounds_and_phases_are_drawn():
    people = {"forget": np.array([0.1, 2.0]), "unseen": np.array([0.7])}
    assert (
        size_of(person_scores({"original": people, "unlearned": people}))[0]
        > size_of(person_scores({"original": people}))[0]
    )
    reading = {"gate_utility": 0.8, "gate_utility_low": 0.7, "gate_utility_high": 0.9}
    reading |= {"gate_loss_auc": 0.6, "gate_loss_auc_low": 0.61, "gate_loss_auc_high": 0.8}  # bounds beside it
    assert size_of(trade_off({1: reading, 2: reading}))
    assert size_of(time_by_phase({"train": 1.0}))[1] < size_of(time_by_phase({"train": 1.0, "audit": 2.0}))[1]
