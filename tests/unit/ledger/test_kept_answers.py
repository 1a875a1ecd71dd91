"""Reference models at a site: who is in which half, and files of answers that are whole, replaced and overwritten."""

from __future__ import annotations

import hmac
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.exceptions import DataError
from dlfd_fleet.ledger.references import Membership, ReferenceFiles, ReferenceSet, halves
from tests.small_disk import fill

ANNA, BERT, CLEO = (letter * 64 for letter in "abc")
IMAGES = [f"{number:064x}" for number in range(1, 6)]
NAMES = st.lists(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=8), unique=True, max_size=30)


def order_of(key, job="references-1"):
    return lambda pair, person: hmac.digest(key, f"{job}\0{pair}\0{person}".encode(), "sha256")


def in_half(bits, model):
    return {person for person, mask in bits.items() if mask >> model & 1}


@given(people=NAMES, pairs=st.integers(1, 32), key=st.binary(min_size=16, max_size=32))
def test_the_halves_of_a_pair_share_out_everybody_as_evenly_as_can_be_and_stay(people, pairs, key):
    bits = halves(people, 2 * pairs, order_of(key))
    assert bits == halves(reversed(people), 2 * pairs, order_of(key))
    assert bits.keys() == set(people)
    for pair in range(pairs):
        first, second = in_half(bits, 2 * pair), in_half(bits, 2 * pair + 1)
        assert first | second == set(people)
        assert not first & second
        assert abs(len(first) - len(second)) <= 1
    assert all(mask < 1 << 2 * pairs for mask in bits.values())


def test_halves_differ_by_pair_by_job_and_by_site():
    people = [f"person-{number}" for number in range(40)]
    found = [
        frozenset(in_half(halves(people, 4, order_of(key, job)), model))
        for key in (b"one site's key", b"another's key")
        for job in ("references-1", "references-2")
        for model in (0, 2)
    ]
    assert len(set(found)) == 8
    assert all(6 <= len(one & other) <= 14 for one in found for other in found if one is not other)


def test_an_only_person_is_in_one_half_of_each_pair_and_not_always_in_the_same():
    bits = halves(["anna"], 64, order_of(b"key"))
    assert bits["anna"].bit_count() == 32
    assert 0 < len([pair for pair in range(32) if bits["anna"] >> 2 * pair & 1]) < 32


@pytest.fixture
def files(tmp_path):
    return ReferenceFiles(tmp_path)


def begun(files, job="references-1", people=None):
    halves_of = {ANNA: 0b01, BERT: 0b10} if people is None else people
    return files.begin(ReferenceSet(job=job, models=2, classes=("no", "yes")), lambda: halves_of)


def answers(seed=0):
    return np.random.default_rng(seed).normal(size=(len(IMAGES), 2)).astype(np.float32)


def finished(files, job="references-1", seed=0):
    chosen = begun(files, job)
    for model in range(2):
        files.keep(chosen, model, IMAGES, [model == 0, False, True, False, False], answers(seed + model))
    return chosen


def test_answers_are_what_was_kept_and_nobody_else_reads_the_files(files, tmp_path):
    chosen = finished(files)
    places, records = files.answers(chosen, 1)
    assert places == {digest: number for number, digest in enumerate(IMAGES)}
    np.testing.assert_array_equal(records["logits"], answers(1))
    assert records["trained"].tolist() == [False, False, True, False, False]
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_who_was_trained_on_is_written_down_beside_the_halves(files):
    chosen = begun(files)
    files.note_trained(chosen, 1, {BERT})
    files.note_trained(chosen, 1, {BERT})
    assert files.people(chosen) == {ANNA: Membership(0b01), BERT: Membership(0b10, 0b10)}
    assert begun(files, people={CLEO: 0b11}) == chosen  # who came later is in no half
    assert files.people(chosen).keys() == {ANNA, BERT}
    with pytest.raises(DataError, match=r"^The stored answers of references-1 are of other classes or models"):
        files.begin(ReferenceSet(job="references-1", models=4, classes=("no", "yes")), dict)


def test_a_set_counts_once_it_has_every_answer_and_then_replaces_the_one_before(files, tmp_path):
    first = finished(files)
    second = begun(files, "references-2")
    files.keep(second, 0, IMAGES, [False] * 5, answers(5))
    assert (files.missing(second), files.current()) == (1, first)
    files.keep(second, 1, IMAGES, [False] * 5, answers(6))
    assert files.current() == second
    assert all(second.key in file.name for file in tmp_path.iterdir())


def test_a_set_that_was_never_finished_goes_when_another_one_begins(files, tmp_path):
    first = begun(files)
    files.keep(first, 0, IMAGES, [False] * 5, answers())
    (tmp_path / f".references-{first.key}-01.npy.new").write_bytes(b"of a killed process")
    second = begun(files, "references-2")
    assert files.current() is None
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"references-{second.key}-people.npy",
        f"references-{second.key}.json",
    ]


def test_an_expired_set_is_deleted_and_others_are_not(files, tmp_path):
    chosen = finished(files)
    files.drop(("references-0",))
    assert files.current() == chosen
    files.drop(("references-0", "references-1"))
    assert (files.current(), list(tmp_path.iterdir())) == (None, [])


def test_a_purge_overwrites_answers_and_people_where_they_lie(files, tmp_path):
    chosen = finished(files)
    places = {file: file.stat().st_ino for file in tmp_path.iterdir()}
    gone = [bytes.fromhex(IMAGES[2]), bytes.fromhex(ANNA), answers()[2].tobytes(), answers(1)[2].tobytes()]
    assert all(any(one in file.read_bytes() for file in places) for one in gone)
    (tmp_path / f".references-{chosen.key}-01.npy.new").write_bytes(b"of a killed process")
    files.purge({IMAGES[2], "f" * 64}, {ANNA})
    assert {file: file.stat().st_ino for file in tmp_path.iterdir()} == places
    assert not any(one in file.read_bytes() for one in gone for file in places)
    places, records = files.answers(chosen, 0)
    assert IMAGES[2] not in places
    left = [0, 1, 3, 4]
    np.testing.assert_array_equal(records["logits"][left], answers()[left])
    assert files.people(chosen).keys() == {BERT}
    files.note_trained(chosen, 1, {BERT})
    assert files.people(chosen) == {BERT: Membership(0b10, 0b10)}


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_stops_no_purge(files, tmp_path, content):
    chosen = finished(files)
    (tmp_path / f"references-{chosen.key}-01.npy").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read; delete it"):
        files.answers(chosen, 1)
    files.purge({IMAGES[0]}, {ANNA})
    assert (files.current(), list(tmp_path.iterdir())) == (None, [])


def test_a_site_without_images_has_empty_answers(files):
    chosen = begun(files, people={})
    for model in range(2):
        files.keep(chosen, model, [], [], np.zeros((0, 2), np.float32))
    assert files.current() == chosen
    assert files.answers(chosen, 0)[0] == {}
    files.purge({IMAGES[0]}, {ANNA})
    assert files.current() == chosen


def test_no_name_out_of_a_message_becomes_a_path(files, tmp_path):
    begun(files, "../../elsewhere")
    assert len(list(tmp_path.iterdir())) == 2
    assert all(file.name.startswith("references-") for file in tmp_path.iterdir())


def test_a_full_disk_leaves_the_answers_that_there_were(mount_disk):
    disk = mount_disk(1)
    files = ReferenceFiles(disk)
    chosen = finished(files)
    fill(disk)
    with pytest.raises(DataError, match=r"^Cannot write .*-01\.npy: .*; check space and rights\.$"):
        files.keep(chosen, 1, IMAGES * 2000, [True] * 10_000, np.zeros((10_000, 2), np.float32))
    assert files.current() == chosen
    assert files.answers(chosen, 1)[1]["logits"].tolist() == answers(1).tolist()
    assert not list(disk.glob(".references-*"))
