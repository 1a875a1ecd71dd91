from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dlfd_fleet.tracking.figures import loss_histograms, score_table


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
