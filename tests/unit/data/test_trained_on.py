"""Who says that a model was trained on somebody: a list in any form that people keep, or everybody of a manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlfd_fleet.data import Manifest, Row, TrainedOn
from dlfd_fleet.exceptions import DataError

FACES = Manifest((Row("a.png", "Anna Smith", "yes"), Row("b.png", "7", "no"), Row("c.png", "cleo", "no")), Path())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("people.txt", "anna  SMITH\n\n7\nnobody here\n"),
        ("people", "\ufeffAnna Smith\r\n7\r\n"),
        ("people.csv", "identity\nANNA smith\n7.0\n"),
        ("people.csv", "image;Identity;label\na.png;anna smith;yes\nx.png;7;no\n"),
        ("people.txt", "identity\nanna smith\n7\n"),
    ],
    ids=["lines", "with a mark of the byte order", "a table", "a manifest", "lines with a header"],
)
def test_a_list_of_people_marks_them_in_any_spelling_and_nobody_else(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    trained = TrainedOn.read(str(tmp_path / name))
    marked = trained.marked(FACES, Path("faces.csv"))
    assert [row.split for row in marked.rows] == ["train", "train", ""]
    assert {"anna smith", "7"} <= set(trained.people(FACES))
    assert "cleo" not in trained


def test_everybody_of_a_manifest_is_said_by_one_word():
    trained = TrainedOn.read("all")
    assert {row.split for row in trained.marked(FACES, Path("faces.csv")).rows} == {"train"}
    assert set(trained.people(FACES)) == {"Anna Smith", "7", "cleo"}


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("list.txt", "list.txt, row 2: 'ANNA' was trained on, and faces.csv has a.png of theirs in the split 'test'"),
        ("all", "--trained-on all: 'ANNA' was trained on, and faces.csv has a.png of theirs in the split 'test'"),
    ],
)
def test_who_was_trained_on_cannot_be_among_the_unseen_people(tmp_path, monkeypatch, said, sentence):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("bert\nAnna\n")
    faces = Manifest((Row("a.png", "ANNA", "yes", "", "test"), Row("b.png", "bert", "no")), Path())
    with pytest.raises(DataError, match=sentence):
        TrainedOn.read(said).marked(faces, Path("faces.csv"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.txt", None, "There is no list of people"),
        ("none.txt", b" \n", "names nobody; give one identity a line, or 'all'"),
        ("none.csv", b"identity\n", "names nobody"),
        ("none.csv", b"person\nanna\n", "list of people .*none.csv lacks the column 'identity'"),
        ("none.txt", b"anna\nnan\n", "none.txt, row 2: 'nan' means an empty cell"),
        ("none.txt", b"anna\nM\xfcller\n", "row 2 is not UTF-8 text"),
        ("none.txt", b"PK\x03\x04", "it is a spreadsheet"),
    ],
)
def test_what_is_no_list_is_refused_in_one_sentence(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        TrainedOn.read(str(tmp_path / name))
