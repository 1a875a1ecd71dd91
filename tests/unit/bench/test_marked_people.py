"""Marked people have the labels of others, a fair coin says who is trained on, and nobody else is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlfd_fleet.bench.certify.marked import mark_people, write_set
from dlfd_fleet.data import Manifest, Row, open_source
from dlfd_fleet.data.loaders import write_npz
from dlfd_fleet.exceptions import ConfigurationError, DataError
from dlfd_fleet.settings import DataSettings

DATA = DataSettings(validation_people=2, test_people=4, sites=2)


def faces(people=24, labels=3):
    rows = [
        Row(f"{person}-{n}.png", f"p{person:02}", f"c{(person + n) % labels}")
        for person in range(people)
        for n in range(3)
    ]
    return Manifest(tuple(rows), Path())


def test_marked_people_are_trained_people_every_image_of_whom_has_another_label():
    drawn = mark_people(faces(), DATA, 6, seed=1)
    people = drawn.asked | drawn.never
    assert len(people) == 6
    assert not drawn.asked & drawn.never
    assert {row.split for row in drawn.alone.rows} == {"train"}
    for before, after in zip(faces().rows, drawn.manifest.rows, strict=True):
        assert (before.image, before.identity) == (after.image, after.identity)
        assert (before.label != after.label) == (after.identity in people)
    assert drawn.manifest.classes == faces().classes
    assert not {row.identity for row in drawn.trained_on.rows} & drawn.never
    assert {row.identity for row in drawn.manifest.rows} - {
        row.identity for row in drawn.trained_on.rows
    } == drawn.never


def test_ordinary_people_keep_their_labels_and_the_coin_is_the_same():
    marked, ordinary = (mark_people(faces(), DATA, 6, 1, exchange=exchange) for exchange in (True, False))
    assert [row.label for row in ordinary.manifest.rows] == [row.label for row in faces().rows]
    assert ordinary.asked == marked.asked


def test_a_draw_is_the_same_again_and_another_run_draws_others():
    first, again, other = (mark_people(faces(), DATA, 6, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.asked != other.asked


def test_coins_are_fair_and_somebody_always_asks():
    asked = np.array([len(mark_people(faces(), DATA, 8, seed).asked) for seed in range(200)])
    assert asked.min() >= 1
    # 1,600 coins: 4 standard deviations are 80.
    assert abs(asked.sum() - 800) < 80


@pytest.mark.parametrize("count", [0, 1, 10])
def test_too_few_or_too_many_marked_people_are_refused(count):
    with pytest.raises(ConfigurationError, match=r"--marked is .*; choose from 2 to 9, half of the 18 people"):
        mark_people(faces(), DATA, count, seed=0)


def test_a_set_of_one_label_is_refused():
    with pytest.raises(DataError, match="one label only"):
        mark_people(faces(labels=1), DATA, 4, seed=0)


def test_a_written_set_is_read_again_with_its_labels_and_splits(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "inputs": generator.integers(0, 256, (60, 3, 8, 8), dtype=np.uint8),
        "labels": np.array([f"c{number % 2}" for number in range(60)]),
        "people": np.array([f"p{number // 3:02}" for number in range(60)]),
    }
    write_npz(tmp_path / "all.npz", arrays)
    loaded = DATA.model_copy(update={"source": "npz", "manifest": tmp_path / "all.npz", "image_size": (8, 8)})
    for name, data, manifest in (("npz", loaded, open_source(loaded)), ("table", DATA, faces())):
        drawn = mark_people(manifest, data, 4, seed=0).trained_on
        if name == "table":
            for row in drawn.rows:
                (tmp_path / row.image).touch()
        written = open_source(write_set(drawn, tmp_path / name, data))
        facts = [[(row.identity, row.label, row.split) for row in each.rows] for each in (drawn, written)]
        assert facts[0] == facts[1]
        if name == "table":
            assert [row.site for row in written.rows] == [row.site for row in drawn.rows]
