from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.data import Manifest, Row, assign_people, choose_people_to_forget, orl_manifest, systematic_sample
from dlfd_fleet.exceptions import DataError


def people(count, images=4, **cells):
    return [
        Row(f"{p}/{i}.png", f"person-{p}", "yes" if (p + i * (p % 3 == 0)) % 2 else "no", **cells)
        for p in range(count)
        for i in range(images)
    ]


@given(
    count=st.integers(14, 40),
    seed=st.integers(0, 2**31 - 1),
    validation=st.integers(1, 4),
    test=st.integers(1, 4),
    sites=st.integers(1, 4),
)
def test_people_are_in_one_split_and_at_one_site(count, seed, validation, test, sites):
    manifest = assign_people(
        Manifest(tuple(people(count)), Path()), validation_people=validation, test_people=test, sites=sites, seed=seed
    )
    places = {}
    for row in manifest.rows:
        assert places.setdefault(row.identity, (row.split, row.site)) == (row.split, row.site)
    splits = [split for split, _ in places.values()]
    assert splits.count("validation") == validation
    assert splits.count("test") == test
    # Held-out people have no site of their own; trained ones are dealt evenly.
    held = [site for split, site in places.values() if split != "train"]
    dealt = [site for split, site in places.values() if split == "train"]
    assert set(held) == {""}
    sizes = [dealt.count(f"site-{number}") for number in range(1, sites + 1)]
    assert sum(sizes) == len(dealt)
    assert max(sizes) - min(sizes) <= 1


def test_a_seed_gives_one_split_and_another_seed_another():
    manifest = Manifest(tuple(people(30)), Path())
    first, again, other = (
        assign_people(manifest, validation_people=4, test_people=4, sites=3, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_splits_and_sites_of_the_manifest_are_kept():
    rows = [
        *people(12),
        Row("x.png", "tess", "yes", split="test"),
        Row("y.png", "walt", "no", site="clinic", split="train"),
    ]
    dealt = assign_people(Manifest(tuple(rows), Path()), validation_people=2, test_people=2, sites=3, seed=0)
    by_person = dealt.by_person()
    assert {(row.split, row.site) for row in by_person["tess"]} == {("test", "")}
    assert {(row.split, row.site) for row in by_person["walt"]} == {("train", "clinic")}
    assert {row.site for row in dealt.rows} == {"", "clinic"}


def test_rows_that_say_no_split_or_site_have_their_persons():
    rows = [
        *people(12),
        Row("w.png", "Walt", "no", "clinic", "train"),
        Row("x.png", "walt ", "yes"),
        Row("y.png", "tess", "yes"),
        Row("z.png", "TESS", "yes", split="test"),
    ]
    dealt = assign_people(Manifest(tuple(rows), Path()), validation_people=2, test_people=2, sites=3, seed=0)
    by_person = dealt.by_person()
    assert [(row.split, row.site) for row in by_person["Walt"]] == [("train", "clinic")] * 2
    assert [(row.split, row.site) for row in by_person["tess"]] == [("test", "")] * 2


@pytest.mark.parametrize("other", ["walt ", "WALT", "\uff37alt"])
def test_a_person_in_two_splits_by_two_spellings_is_refused(other):
    rows = (Row("a.png", "walt", "yes", split="train"), Row("b.png", other, "yes", split="test"))
    with pytest.raises(DataError, match=rf"two splits \(test, train\): 'walt', '{other}'; use one"):
        assign_people(Manifest(rows, Path()), validation_people=0, test_people=0, sites=1, seed=0)


@pytest.mark.parametrize("seed", range(4))
def test_two_spellings_of_a_person_are_dealt_as_one(seed):
    rows = [*people(9), Row("x.png", "walt", "yes"), Row("y.png", "Walt ", "no")]
    dealt = assign_people(Manifest(tuple(rows), Path()), validation_people=2, test_people=2, sites=2, seed=seed)
    assert len({(row.split, row.site) for row in dealt.by_person()["walt"]}) == 1


def test_a_person_in_two_splits_is_refused():
    rows = (Row("a.png", "anna", "yes", split="train"), Row("b.png", "anna", "yes", split="test"))
    with pytest.raises(DataError, match="two splits"):
        assign_people(Manifest(rows, Path()), validation_people=1, test_people=1, sites=1, seed=0)


@pytest.mark.parametrize(("count", "sentence"), [(3, "for 2 test and 2 validation"), (7, "too few for 4 sites")])
def test_too_few_people_are_refused(count, sentence):
    with pytest.raises(DataError, match=sentence):
        assign_people(Manifest(tuple(people(count)), Path()), validation_people=2, test_people=2, sites=4, seed=0)


@given(count=st.integers(1, 30), data=st.data())
def test_a_systematic_sample_takes_one_of_each_block(count, data):
    order = [str(number) for number in range(data.draw(st.integers(count, 60)))]
    sample = systematic_sample(order, count, np.random.default_rng(0))
    places = [int(name) for name in sample]
    bounds = np.ceil(np.linspace(0, len(order), count + 1))
    assert all(low <= place < high for place, low, high in zip(places, bounds, bounds[1:], strict=False))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_split_of_the_orl_faces_shows_both_classes(seed):
    manifest = assign_people(orl_manifest(), validation_people=5, test_people=5, sites=4, seed=seed)
    for split in ("train", "validation", "test"):
        share = np.mean([row.label == "eyewear" for row in manifest.rows if row.split == split])
        assert 0.15 < share < 0.45
    chosen = choose_people_to_forget(manifest, ["site-1", "site-2"], 2)
    names = [name for people_of_site in chosen.values() for name in people_of_site]
    assert len(set(names)) == 4
    assert {row.site for row in manifest.rows if row.identity in chosen["site-2"]} == {"site-2"}
    assert {row.label for row in manifest.rows if row.identity in names} == {"eyewear", "no eyewear"}


def test_nobody_is_chosen_where_nobody_would_stay():
    rows = people(2, site="site-1", split="train")
    with pytest.raises(DataError, match="too few to forget 2"):
        choose_people_to_forget(Manifest(tuple(rows), Path()), ["site-1"], 2)
