from __future__ import annotations

import shutil

import pytest

from dlfd_fleet.data import check_manifest, read_manifest, write_manifest
from dlfd_fleet.data.manifest import Row


def sentences(file, silent, classes=None):
    return [(p.row, p.column, p.sentence) for p in check_manifest(file, None, classes, silent)]


def test_a_sound_face_set_has_no_problem(synthetic_faces, silent):
    assert sentences(synthetic_faces, silent, {"class-0", "class-1"}) == []


def test_spellings_that_are_read_as_one_name_are_told_with_their_rows_and_are_no_problem(synthetic_faces, silent):
    rows = list(read_manifest(synthetic_faces).rows)
    rows[1] = Row(rows[1].image, "PERSON-00000 ", rows[1].label)
    rows[2] = Row(rows[2].image, rows[2].identity, rows[2].label.upper())
    rows[3] = Row(rows[3].image, "PERSON-00000 ", rows[3].label)
    write_manifest(rows, synthetic_faces)
    found = check_manifest(synthetic_faces, None, {"Class-0", "Class-1"}, silent)
    assert [(one.row, one.column, one.notice) for one in found] == [(3, "identity", True), (4, "label", True)]
    assert found[0].sentence == (
        "'PERSON-00000 ' is read as 'person-00000' of row 2: one person; if they are two, give them different names"
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("O'Brien", "O\u2019Brien"),
        ("Anna-Maria", "Anna\u2011Maria"),
        ("Anna-Maria", "Anna\u2013Maria"),
        ("Jose", "Jos\u00e9"),
        ("patient 3", "patient \u0663"),
    ],
)
def test_two_names_that_a_word_processor_may_have_made_of_one_are_told_once(synthetic_faces, silent, one, other):
    rows = list(read_manifest(synthetic_faces).rows)
    rows = [Row(row.image, (one, other)[number % 2], row.label) for number, row in enumerate(rows)]
    write_manifest(rows, synthetic_faces)
    [notice] = check_manifest(synthetic_faces, None, None, silent)
    assert (notice.row, notice.column, notice.notice) == (3, "identity", True)
    assert notice.sentence.endswith("of row 2; if they are one, spell the name alike")


def test_names_that_differ_by_their_letters_are_not_told(synthetic_faces, silent):
    rows = list(read_manifest(synthetic_faces).rows)
    rows = [Row(row.image, ("p-1", "p1", "p_1", "p 1")[number % 4], row.label) for number, row in enumerate(rows)]
    write_manifest(rows, synthetic_faces)
    assert check_manifest(synthetic_faces, None, None, silent) == []


def test_spellings_that_look_alike_are_told_by_their_characters(synthetic_faces, silent):
    rows = list(read_manifest(synthetic_faces).rows)
    rows = [Row(row.image, ("Zo\u00eb", "Zoe\u0308")[number % 2], row.label) for number, row in enumerate(rows)]
    write_manifest(rows, synthetic_faces)
    [notice] = check_manifest(synthetic_faces, None, None, silent)
    assert notice.sentence == (
        "'Zoe\\u0308' is read as 'Zo\\xeb' of row 2: one person; if they are two, give them different names"
    )


def test_one_person_in_two_splits_by_two_spellings_is_a_problem(synthetic_faces, silent):
    rows = list(read_manifest(synthetic_faces).rows)
    rows[0] = Row(rows[0].image, "Person-00000", rows[0].label, split="test")
    write_manifest(rows, synthetic_faces)
    assert (3, "split") in {(one.row, one.column) for one in check_manifest(synthetic_faces, None, None, silent)}


def test_every_problem_is_listed_with_its_row(synthetic_faces, silent):
    root = synthetic_faces.parent
    rows = list(read_manifest(synthetic_faces).rows)
    (root / rows[0].image).unlink()
    whole = (root / rows[1].image).read_bytes()
    (root / rows[1].image).write_bytes(whole[: len(whole) // 2])
    (root / rows[2].image).write_text("no image at all")
    rows[3] = Row(rows[3].image, rows[3].identity, "a hat")
    rows.append(rows[4])
    rows[5] = Row(rows[5].image, rows[5].identity, rows[5].label, split="test")
    shutil.copyfile(root / rows[8].image, root / "copy.png")
    rows.append(Row("copy.png", "somebody else", rows[8].label))
    write_manifest(rows, synthetic_faces)
    found = sentences(synthetic_faces, silent, {"class-0", "class-1"})

    expected = {
        (2, "image"): "there is no file",
        (3, "image"): "damaged or not an image",
        (4, "image"): "not an image of a kind that is read",
        (5, "label"): "'a hat' is no class",
        (7, "split"): "in split 'test' here and in no split in row 6",
        (50, "image"): "listed in row 6 already",
        (51, "image"): "the same image as row 10 under another person",
    }
    by_place = {(row, column): sentence for row, column, sentence in found}
    for place, sentence in expected.items():
        assert sentence in by_place[place]
    assert by_place.keys() == expected.keys()
    assert [row for row, *_ in found] == sorted(row for row, *_ in found)
