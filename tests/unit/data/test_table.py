"""Tables of other people's programs: what is plain is read, the rest is refused with its row and the way out."""

from __future__ import annotations

import decimal

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from dlfd_fleet.data import Row, check_manifest, read_manifest, write_manifest
from dlfd_fleet.exceptions import DataError

HEADER = "image,identity,label\n"
ZOE = "image,identity,label\na.png,Zoë,yes\n"
ANNA, ZOE_ROW = Row("a.png", "anna", "yes"), Row("a.png", "Zoë", "yes")

READ = {
    "semicolons": ("image;identity;label\na.png;anna;yes, sir\n", Row("a.png", "anna", "yes, sir")),
    "tabs": ("image\tidentity\tlabel\na.png\tanna\tyes\n", ANNA),
    "bars": ("image|identity|label\na.png|anna|yes\n", ANNA),
    "Excel's first line": ("sep=;\r\nimage;identity;label\r\na.png;anna;yes\r\n", ANNA),
    "UTF-8 with a mark": (ZOE.encode("utf-8-sig"), ZOE_ROW),
    "UTF-16": (ZOE.encode("utf-16"), ZOE_ROW),
    "UTF-16, big-endian": (b"\xfe\xff" + ZOE.encode("utf-16-be"), ZOE_ROW),
    "UTF-16 without a mark": (ZOE.encode("utf-16-le"), ZOE_ROW),
    "big-endian UTF-16 without a mark": (ZOE.encode("utf-16-be"), ZOE_ROW),
    "UTF-32": (ZOE.encode("utf-32"), ZOE_ROW),
    "line ends of old Macs": ("image,identity,label\ra.png,anna,yes\r", ANNA),
    "columns in capitals": ("Image,IDENTITY,Label\na.png,anna,yes\n", ANNA),
    "padded columns": (" image , identity,\tlabel\na.png,anna,yes\n", ANNA),
    "padded cells with quotes": (
        'image, identity, label\na.png, "Muster, Anna", yes\n',
        Row("a.png", "Muster, Anna", "yes"),
    ),
    "quoted columns": ('"image";"identity";"label"\n"a.png";"anna";"yes"\n', ANNA),
    "a comma after each row": ("image,identity,label,\na.png,anna,yes,\n", ANNA),
    "an empty last row": (f"{HEADER}a.png,anna,yes\n,,\n\n", ANNA),
    "empty rows before": (f"\n,,\n{HEADER}\n  ,\na.png,anna,yes\n", ANNA),
    "whole numbers as 7.0": (f"{HEADER}a.png,7.0,1.0\n", Row("a.png", "7", "1")),
    "a split in capitals": (
        "image,identity,label,split\na.png,anna,yes, Train \n",
        Row("a.png", "anna", "yes", split="train"),
    ),
    "a path of Windows": (f"{HEADER}.\\anna\\1.png,anna,yes\n", Row("anna/1.png", "anna", "yes")),
    "a detour in a path": (f"{HEADER}./anna//1.png,anna,yes\n", Row("anna/1.png", "anna", "yes")),
    "a class that is called none": (f"{HEADER}a.png,anna,none\n", Row("a.png", "anna", "none")),
    "a person who is called Null": (f"{HEADER}a.png,Null,yes\n", Row("a.png", "Null", "yes")),
}


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


@pytest.mark.parametrize(("content", "row"), READ.values(), ids=READ)
def test_what_is_plain_is_read(tmp_path, content, row):
    (tmp_path / "manifest.csv").write_bytes(as_bytes(content))
    assert read_manifest(tmp_path / "manifest.csv").rows == (row,)


def test_absolute_paths_inside_the_image_folder_start_from_it(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "faces").symlink_to(tmp_path / "disk")
    for folder in ("faces", "disk"):
        (tmp_path / "manifest.csv").write_text(f"{HEADER}{tmp_path}/{folder}/anna/1.png,anna,yes\n")
        assert read_manifest(tmp_path / "manifest.csv", tmp_path / "faces").rows[0].image == "anna/1.png"


def test_fractions_stay_as_they_are_and_their_neighbours_too(tmp_path):
    (tmp_path / "manifest.csv").write_text(f"{HEADER}a.png,7.0,1.5\nb.png,8,2.0\n")
    rows = read_manifest(tmp_path / "manifest.csv").rows
    assert [(row.identity, row.label) for row in rows] == [("7", "1.5"), ("8", "2.0")]


WRONG_CELLS = {
    "a person called nan": ("a.png,nan,yes", "identity", "'nan' means an empty cell"),
    "a person called none": ("a.png,none,yes", "identity", "use another spelling"),
    "a class called None": ("a.png,anna,None", "label", "or use 'none' if it is meant"),
    "a class called NULL": ("a.png,anna,NULL", "label", "'NULL' means an empty cell"),
    "an error of a spreadsheet": ("a.png,#REF!,yes", "identity", "'#REF!' is an error of a spreadsheet"),
    "a shortened number": ("a.png,1.23457E+14,yes", "identity", "format the column as text"),
    "blanks": ("a.png,  ,yes", "identity", "the cell is empty"),
    "a path outside": ("/etc/passwd,anna,yes", "image", "leaves the image folder"),
    "a drive": ("C:\\faces\\a.png,anna,yes", "image", "'C:/faces/a.png' is no path on this machine"),
    "an address": ("https://x.org/a.png,anna,yes", "image", "is no path on this machine"),
    "a home": ("~/a.png,anna,yes", "image", "is no path on this machine"),
    "a share": ("\\\\host\\faces\\a.png,anna,yes", "image", "leaves the image folder"),
    "a way up": ("anna\\..\\..\\a.png,anna,yes", "image", "leaves the image folder"),
    "the folder itself": ("./,anna,yes", "image", "is the image folder itself"),
    "a zero byte": ("a.png,an\0na,yes", "identity", "control character U+0000"),
    "a line end in a name": ('a.png,"an\nna",yes', "identity", "control character U+000A"),
    "a letter that was lost": ("a.png,Zo\ufffd,yes", "identity", "a letter that was lost"),
    "a long cell": (f"a.png,anna,{'x' * 1001}", "label", "the cell has 1,001 characters"),
    "a long name of a file": (f"{'x' * 256},anna,yes", "image", "longer than file systems allow"),
}


@pytest.mark.parametrize(("line", "column", "sentence"), WRONG_CELLS.values(), ids=WRONG_CELLS)
def test_a_wrong_cell_is_refused_with_its_row_by_site_and_check(tmp_path, silent, line, column, sentence):
    file = tmp_path / "manifest.csv"
    # The row's number is a spreadsheet's: blank rows count.
    file.write_text(f"{HEADER}\n,,\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"row 4, column '{column}'") as refused:
        read_manifest(file)
    assert sentence in str(refused.value)
    found = [problem for problem in check_manifest(file, None, None, silent) if problem.column == column]
    assert [problem.row for problem in found] == [4]
    assert sentence in found[0].sentence


WRONG_TABLES = {
    "Latin-1": (f"{HEADER}a.png,anna,yes\nb.png,Zoë,yes\n".encode("latin-1"), "row 3 is not UTF-8 text .* CSV UTF-8"),
    "half a letter of UTF-16": (ZOE.encode("utf-16")[:-1], "row 2 is not UTF-16 text"),
    "Excel": (b"PK\x03\x04\x14\x00", "a spreadsheet .* save it as CSV UTF-8"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old or encrypted Excel file; save it as CSV UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00", "unpack it first"),
    "nothing": ("", "it is empty"),
    "blanks only": ("\n ,\n", "it is empty"),
    "no rows": (HEADER, "row"),
    "no header": ("a.png,anna,yes\nb.png,walt,no\n", "lacks the column 'image', for its first row .* 'a.png,anna,yes'"),
    "a repeated column": ("image,label,identity,Label \na.png,yes,anna,no\n", "has the column 'label' twice"),
    "a column without a name": (",image,identity,label\n0,a.png,anna,yes\n", "row 2 .* column without a name"),
    "a cell too many": (f"{HEADER}a.png,anna,yes\nb.png,anna,hat, red\n", "row 3 has more cells than the header"),
    "an open quotation mark": (f'{HEADER}a.png,anna,yes\nb.png,"walt,no\nc.png,walt,no\n', "row 3: .* not closed"),
    "a quotation mark inside": (f'{HEADER}a.png,"anna" m,yes\n', "row 2: a quotation mark stands inside a cell"),
    "a huge cell": (f"{HEADER}a.png,{'x' * 200_000},yes\n", "row 2: a cell is too long"),
    "two tables in one": (f"{HEADER}a.png,anna,yes\n{HEADER}", "row 3 is the header again"),
}


@pytest.mark.parametrize(("content", "sentence"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_a_wrong_table_is_refused_with_the_way_out_by_site_and_check(tmp_path, silent, content, sentence):
    file = tmp_path / "manifest.csv"
    file.write_bytes(as_bytes(content))
    with pytest.raises(DataError, match=sentence):
        read_manifest(file)
    try:
        told = [problem.sentence for problem in check_manifest(file, None, None, silent)]
    except DataError as error:
        told = [str(error)]
    assert len(told) == 1


def test_the_check_names_an_image_folder_that_is_not_there(tmp_path, silent):
    (tmp_path / "manifest.csv").write_text(f"{HEADER}a.png,anna,yes\n")
    with pytest.raises(DataError, match=r"no image folder .*faces; name the right one with --root"):
        check_manifest(tmp_path / "manifest.csv", tmp_path / "faces", None, silent)


IMAGES = pyarrow.array(["a.png", "b.png"])
COLUMNS = {
    "text": pyarrow.array(["7", "8"]),
    "large text": pyarrow.array(["7", "8"], pyarrow.large_string()),
    "bytes": pyarrow.array([b"7", b"8"]),
    "whole numbers": pyarrow.array([7, 8], pyarrow.uint8()),
    "floats": pyarrow.array([7.0, 8.0]),
    "half floats": pyarrow.array(np.array([7, 8], np.float16)),
    "decimals": pyarrow.array([decimal.Decimal("7.00"), decimal.Decimal("8.00")]),
    "text of floats": pyarrow.array(["7.0", "8.0"]),
    "a dictionary": pyarrow.array(["7", "8"]).dictionary_encode(),
    "a dictionary of floats": pyarrow.array([7.0, 8.0]).dictionary_encode(),
}


@pytest.mark.parametrize("people", COLUMNS.values(), ids=COLUMNS)
def test_people_of_a_parquet_file_have_the_names_that_they_have_in_csv(tmp_path, people):
    index = pyarrow.array([3, 5])
    columns = {"__index_level_0__": index, " Image": IMAGES, "IDENTITY": people, "label": pyarrow.array([True, False])}
    parquet.write_table(pyarrow.table({**columns, "site": pyarrow.nulls(2)}), tmp_path / "faces.PARQUET")
    rows = read_manifest(tmp_path / "faces.PARQUET").rows
    assert rows == (Row("a.png", "7", "True"), Row("b.png", "8", "False"))
    write_manifest(rows, tmp_path / "faces.PARQUET")
    assert read_manifest(tmp_path / "faces.PARQUET").rows == rows


WRONG_COLUMNS = {
    "NaN": ("identity", pyarrow.array([7.0, float("nan")]), "row 3, column 'identity': the cell is empty"),
    "null": ("label", pyarrow.array(["yes", None]), "row 3, column 'label': the cell is empty"),
    "a fraction": ("identity", pyarrow.array([7.0, 8.5]), "row 3, column 'identity': 8.5 is no whole number"),
    "infinity": ("identity", pyarrow.array([7.0, float("inf")]), "row 3, column 'identity': inf is no whole number"),
    "a rounded number": ("identity", pyarrow.array([7.0, 2.0**53]), "make the column text"),
    "a rounded float32": ("identity", pyarrow.array([7.0, 2.0**24], pyarrow.float32()), "make the column text"),
    "truth": ("identity", pyarrow.array([True, False]), "'identity' is of type bool; make it text"),
    "dates": ("identity", pyarrow.array([0, 1], pyarrow.date32()), "'identity' is of type date32"),
    "lists": ("identity", pyarrow.array([["x"], ["y"]]), "'identity' is of type list"),
    "images of Hugging Face": ("image", pyarrow.array([{"bytes": b"\xff", "path": "a"}] * 2), r"site init --parquet"),
    "bytes of images": ("image", pyarrow.array([b"\x89PNG\xff", b""]), r"row 2, column 'image': .*site init --parquet"),
    "bytes of no text": ("identity", pyarrow.array([b"anna", b"Zo\xeb"]), "row 3, column 'identity': its bytes are no"),
    "another column": ("age", pyarrow.array([1, 2]), "unknown column 'age'"),
    "a column twice": ("Label", IMAGES, "has the column 'label' twice"),
}


@pytest.mark.parametrize(("column", "values", "sentence"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_what_names_nobody_in_a_parquet_file_is_refused(tmp_path, column, values, sentence):
    columns = {"image": IMAGES, "identity": IMAGES, "label": IMAGES} | {column: values}
    parquet.write_table(pyarrow.table(columns), tmp_path / "manifest.parquet")
    with pytest.raises(DataError, match=sentence):
        read_manifest(tmp_path / "manifest.parquet")


def whole_parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"image": IMAGES, "identity": pyarrow.array([1.0, 2.0]), "label": IMAGES}), sink)
    return sink.getvalue().to_pybytes()


TABLES = [whole_parquet(), *((ZOE + 'b.png,"Zoë, M.",no\n').encode(name) for name in ("utf-8", "utf-16", "utf-32"))]


@given(st.sampled_from(TABLES), st.integers(0, 2**16), st.binary(max_size=3), st.booleans())
def test_a_damaged_table_is_one_sentence(tmp_path_factory, content, place, bytes_, cut):
    place %= len(content)
    file = tmp_path_factory.mktemp("damaged") / "manifest"
    file.write_bytes(content[:place] + bytes_ + (b"" if cut else content[place + len(bytes_) :]))
    try:
        assert read_manifest(file).rows
    except DataError as error:
        assert str(file) in str(error)  # noqa: PT017
