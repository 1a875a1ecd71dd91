from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.data import Manifest, Row, read_manifest, write_manifest
from dlfd_fleet.data.manifest import MISSING
from dlfd_fleet.exceptions import DataError

NAMES_OF_NOTHING = {*MISSING, "none"}
TEXT = st.text(string.ascii_letters + string.digits + " ,;\"'äß漢", min_size=1, max_size=12).filter(
    lambda text: text.strip() and text.strip() not in NAMES_OF_NOTHING
)
ROWS = st.lists(
    st.builds(
        Row,
        image=TEXT.map(lambda name: f"faces/{name}.png"),
        identity=TEXT,
        label=TEXT,
        site=st.sampled_from(["", "site-1"]),
        split=st.sampled_from(["", "train", "validation", "test"]),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@given(rows=ROWS)
def test_what_is_written_is_read_back(tmp_path_factory, suffix, rows):
    file = tmp_path_factory.mktemp("manifest") / f"manifest.{suffix}"
    write_manifest(rows, file)
    assert read_manifest(file).rows == Manifest(tuple(rows), file.parent).rows


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_one_person_and_one_class_have_one_spelling_and_the_file_keeps_its_own(tmp_path, suffix):
    names = ["Zoë Doe", "zoe\u0308 doe", "ZOË\u00a0DOE ", "bert"]
    rows = [
        Row(f"{number}.png", name, label)
        for number, (name, label) in enumerate(zip(names, ["Yes", "yes ", "no", "no"], strict=True))
    ]
    file = tmp_path / f"manifest.{suffix}"
    write_manifest(rows, file)
    manifest = read_manifest(file)
    assert (manifest.identities, manifest.classes) == (("bert", "Zoë Doe"), ("no", "Yes"))
    assert [len(own) for own in manifest.by_person().values()] == [1, 3]
    assert manifest.spellings() == (tuple(names[:3]), ("Yes", "yes "))
    write_manifest(manifest.rows[1:], file)
    assert read_manifest(file).identities == ("bert", names[1])


def test_site_and_split_columns_may_be_absent(tmp_path):
    file = tmp_path / "manifest.csv"
    file.write_text("image,identity,label\na.png,anna,yes\n")
    assert read_manifest(file).rows == (Row("a.png", "anna", "yes"),)
    assert read_manifest(file).root == tmp_path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,identity\na.png,anna\n", "lacks the column 'label'"),
        ("image,identity,label,age\na.png,anna,yes,3\n", "unknown column 'age'"),
        ("image,identity,label\na.png,,yes\n", "row 2, column 'identity': the cell is empty"),
        ("image,identity,label\na.png, \u200b,yes\n", "row 2, column 'identity': the cell is empty"),
        ("image,identity,label\na.png,anna,\u00a0\n", "row 2, column 'label': the cell is empty"),
        ("image,identity,label\n../a.png,anna,yes\n", "row 2, column 'image': '../a.png' leaves the image folder"),
        ("image,identity,label\n/etc/a.png,anna,yes\n", "leaves the image folder"),
        ("image,identity,label,split\na.png,anna,yes,dev\n", "'dev' is no split"),
        ("image,identity,label\na.png,anna,yes,more\n", "row 2 has more cells than the header"),
        (
            "image,identity,label,site\na.png,anna,yes,nan\n",
            "row 2, column 'site': 'nan' means an empty",
        ),
        ("image,identity,label,split\na.png,anna,yes,None\n", "row 2, column 'split': 'None' means an empty cell"),
        ("image,identity,label\n", "has no rows"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row(tmp_path, text, sentence):
    file = tmp_path / "manifest.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_manifest(file)


@pytest.mark.parametrize("nothing", ["\\N", "-nan", "-NaN", "1.#QNAN", "-1.#IND", "#NA", "<na>", "nil", "NIL", "?"])
@pytest.mark.parametrize("column", ["identity", "label", "split"])
def test_what_programs_write_for_a_missing_value_is_refused_with_its_row(tmp_path, nothing, column):
    cells = {"image": "a.png", "identity": "anna", "label": "yes", "split": "train"} | {column: nothing}
    file = tmp_path / "manifest.csv"
    file.write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n")
    with pytest.raises(DataError, match=f"row 2, column '{column}': '.*' means an empty cell"):
        read_manifest(file)


def test_a_dash_is_no_person_and_may_be_a_class(tmp_path):
    file = tmp_path / "manifest.csv"
    file.write_text("image,identity,label\na.png,anna,-\nb.png,bert,+\n")
    assert read_manifest(file).classes == ("+", "-")
    file.write_text("image,identity,label\na.png,-,yes\n")
    with pytest.raises(DataError, match="row 2, column 'identity': '-' means an empty cell"):
        read_manifest(file)


@pytest.mark.parametrize("name", ["Na", "Nil Smith", "Null", "Nan"])
def test_names_of_people_that_look_like_one_are_left_alone(tmp_path, name):
    file = tmp_path / "manifest.csv"
    file.write_text(f"image,identity,label\na.png,{name},yes\n")
    assert read_manifest(file).identities == (name,)


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
def test_missing_and_unreadable_files_are_named(tmp_path, name):
    with pytest.raises(DataError, match="There is no manifest"):
        read_manifest(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(DataError, match="cannot be read"):
        read_manifest(tmp_path / name)


def test_a_site_sees_its_own_people_and_the_shared_ones(tmp_path):
    rows = [
        Row("a.png", "anna", "yes", "site-1", "train"),
        Row("b.png", "bert", "yes", "site-2", "train"),
        Row("c.png", "cleo", "no", "", "test"),
    ]
    write_manifest(rows, tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv").of_site("site-1").identities == ("anna", "cleo")
