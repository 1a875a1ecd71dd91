"""What each image may be used for: nobody who is trained on, or has asked, counts as unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.data import LeftOut, Manifest, Row, Use, canonical, image_uses, refuse_leaks, with_whole_splits
from dlfd_fleet.exceptions import DataError


def rows_of(*lines):
    """Rows ``name person split``, with each file's digest after the name where another file has the same bytes."""
    rows, digests = [], []
    for line in lines:
        name, person, split, *bytes_of = line.split(",")
        rows.append(Row(name, person, "yes", "", split))
        digests.append(bytes_of[0] if bytes_of else name)
    return Manifest(tuple(rows), Path()).rows, digests


def used(lines, asked=(), tombstones=()):
    rows, digests = rows_of(*lines)
    return [use.use.value for use in image_uses(rows, digests, asked, tombstones)]


@pytest.mark.parametrize(
    ("lines", "asked", "expected"),
    [
        (["a,anna,train", "b,bert,test"], [], ["train", "test"]),
        (["a,anna,train", "b,bert,train"], ["ANNA "], ["forget", "train"]),
        (["a,anna,train", "b,Anna ,test"], ["anna"], ["forget", ""]),
        (["a,anna,validation", "b,bert,test"], ["anna"], ["", "test"]),
        (["a,anna,train", "b,ANNA,test", "c,anna,validation"], [], ["train", "", ""]),
        (["a,anna,validation", "b,anna,test"], [], ["validation", ""]),
        (["a,anna,train", "b,anna,"], [], ["train", "train"]),
        (["a,anna,test", "b,anna,"], [], ["test", "test"]),
        (["a,anna,"], [], ["train"]),
        (["a,anna,train", "b,anna,"], ["anna"], ["forget", "forget"]),
    ],
    ids=[
        "splits",
        "asked in another spelling",
        "asked, in two splits",
        "asked, never trained on",
        "trained on and unseen",
        "seen by the gate",
        "no split, trained on",
        "no split, unseen",
        "no split at all",
        "no split, asked",
    ],
)
def test_people(lines, asked, expected):
    assert used(lines, asked) == expected


@pytest.mark.parametrize(
    ("lines", "asked", "expected", "why"),
    [
        (["a,Anna,test", "b,bert,test"], [], ["", "test"], LeftOut.TRAINED),
        (["a,anna,validation", "b,bert,train"], [], ["", "train"], LeftOut.TRAINED),
        (["a,anna,train", "b,bert,test"], [], ["train", "test"], None),
        (["a,anna,test", "b,anna,train"], [], ["", "train"], LeftOut.SAME_PERSON),
        (["a,anna,test", "b,bert,test,a"], [], ["", ""], LeftOut.TRAINED),
        (["a,anna,test", "b,bert,train"], ["anna"], ["forget", "train"], LeftOut.ASKED),
        (["a,anna,test"], ["ANNA"], ["forget"], LeftOut.ASKED),
    ],
    ids=[
        "moved to test",
        "moved to validation",
        "in training",
        "one image moved",
        "a copy of an image of hers",
        "moved, and asked",
        "moved, and asked in another spelling",
    ],
)
def test_who_was_trained_on_is_never_unseen_and_can_be_forgotten_wherever_a_manifest_puts_them(
    lines, asked, expected, why
):
    rows, digests = rows_of(*lines)
    uses = image_uses(rows, digests, asked, trained=["anna "])
    assert [use.use.value for use in uses] == expected
    assert uses[0].why is why


@pytest.mark.parametrize(
    ("lines", "asked", "expected"),
    [
        (["a,anna,train", "b,bert,test,a"], [], ["train", ""]),
        (["a,anna,validation", "b,bert,test,a"], [], ["validation", ""]),
        (["a,anna,train", "b,bert,train,a"], [], ["train", "train"]),
        (["a,anna,train", "b,bert,train,a"], ["anna"], ["forget", ""]),
        (["a,anna,train", "b,bert,validation,a", "c,cleo,test,a"], ["anna"], ["forget", "", ""]),
        (["a,anna,train", "b,bert,train,a"], ["bert"], ["", "forget"]),
        (["a,anna,test", "b,bert,train,a", "c,bert,train"], ["anna"], ["", "forget", "train"]),
    ],
    ids=[
        "trained on",
        "seen by the gate",
        "both trained on",
        "copy of who asked",
        "unseen copies of who asked",
        "original of the copy",
        "trained on under another name only",
    ],
)
def test_copies(lines, asked, expected):
    assert used(lines, asked) == expected


def test_what_was_purged_is_used_for_nothing():
    assert used(["a,anna,train", "b,bert,test,a", "c,cleo,train"], tombstones={"a"}) == ["", "", "train"]


def test_a_missing_file_is_no_copy_of_another():
    rows, _ = rows_of("a,anna,train", "b,bert,test")
    assert [use.use for use in image_uses(rows, [None, None])] == [Use.TRAIN, Use.TEST]


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["anna", "ANNA", "bert", "Bert ", "cleo"]),
        st.sampled_from(["", "train", "validation", "test"]),
        st.sampled_from("pqrst"),
    ),
    max_size=12,
)


@given(rows=ROWS, asked=st.sets(st.sampled_from(["anna", "BERT", "cleo"])))
def test_nobody_is_unseen_who_is_trained_on_or_has_asked(rows, asked):
    lines = [f"{number},{person},{split},{content}" for number, (person, split, content) in enumerate(rows)]
    table, digests = rows_of(*lines)
    uses = image_uses(table, digests, asked)
    parts = {
        part: [(row, digest) for row, digest, use in zip(table, digests, uses, strict=True) if use.use is part]
        for part in Use
    }
    gone = {canonical(name) for name in asked}
    bytes_asked = {
        digest for row, digest in zip(table, digests, strict=True) if row.identity.casefold().strip() in gone
    }
    for part in (Use.TRAIN, Use.VALIDATION, Use.TEST):
        for other in (Use.TRAIN, Use.VALIDATION, Use.TEST):
            if part is not other:
                assert not {row.identity for row, _ in parts[part]} & {row.identity for row, _ in parts[other]}
                assert not {digest for _, digest in parts[part]} & {digest for _, digest in parts[other]}
        assert not {canonical(row.identity) for row, _ in parts[part]} & gone
        assert not {digest for _, digest in parts[part]} & bytes_asked
    # Nothing that a model was trained on of who asked is lost.
    trained = {
        digest
        for row, digest in zip(with_whole_splits(Manifest(table, Path())).rows, digests, strict=True)
        if row.split == "train"
    }
    assert {digest for _, digest in parts[Use.FORGET]} == trained & bytes_asked


@pytest.mark.parametrize(
    ("files", "lines", "sentence"),
    [
        (
            {"a.png": b"1", "b.png": b"1"},
            ["a.png,anna,train", "b.png,bert,test"],
            "b.png of 'bert' has the same bytes as a.png of 'anna', in the split 'test' here and in 'train' there",
        ),
        (
            {"a.png": b"1", "b.png": b"2"},
            ["a.png,walt,train", "b.png,walt ,test"],
            "'walt' is in the split 'test' with b.png and in 'train' with a.png; use one split a person",
        ),
    ],
)
def test_a_leak_between_splits_is_refused_with_both_rows(tmp_path, files, lines, sentence):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        refuse_leaks(Manifest(rows_of(*lines)[0], tmp_path))


def test_copies_within_one_split_are_no_leak(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"the same")
    refuse_leaks(Manifest(rows_of("a.png,anna,train", "b.png,bert,train")[0], tmp_path))
    assert LeftOut.SAME_BYTES in [
        use.why for use in image_uses(rows_of("a.png,anna,train", "b.png,bert,test")[0], ["x", "x"])
    ]
