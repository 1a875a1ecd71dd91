"""Rows of numbers in files: what a device makes of them, and the one sentence for a file that cannot be used."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.device.rows import read_rows
from dlfd_fleet.exceptions import DeviceError
from dlfd_fleet.model_input import ModelInput, image_input

VISIT = ModelInput(shape=(3,), low=-4.0, high=4.0)
GRID = ModelInput(shape=(2, 2), high=9.0)
ROWS = [[0.5, -1.25, 4.0], [1.0, 2.0, -4.0]]


def write(folder, name, content):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


AS_ROWS = {
    "json": ("rows.json", json.dumps(ROWS)),
    "json in capitals": ("ROWS.JSON", json.dumps(ROWS)),
    "csv": ("rows.csv", "0.5,-1.25,4\n1,2,-4\n"),
    "with a header": ("rows.csv", "pulse,pressure,age\r\n0.5,-1.25,4\r\n1,2,-4\r\n"),
    "with a quoted header": ("rows.csv", '"pulse, at rest",pressure,age\n0.5,-1.25,4\n1,2,-4'),
    "with semicolons": ("rows.csv", "pulse;pressure;age\n0.5;-1.25;4\n1;2;-4\n"),
    "with tabs": ("rows.csv", "0.5\t-1.25\t4\n1\t2\t-4\n"),
    "with blanks": ("rows.csv", "\n 0.5, -1.25 ,4 \n\n1,2,-4\n,,\n"),
    "with a mark of UTF-8": ("rows.csv", "\ufeff0.5,-1.25,4\n1,2,-4\n"),
    "with exponents": ("rows.csv", "5e-1,-125E-2,4.000\n1,+2,-4\n"),
}


@pytest.mark.parametrize(("name", "content"), AS_ROWS.values(), ids=AS_ROWS)
def test_rows_are_read_as_the_model_takes_them(tmp_path, name, content):
    rows = read_rows(write(tmp_path, name, content), VISIT)
    assert rows.dtype == np.float32
    assert rows.tolist() == ROWS


@pytest.mark.parametrize(("name", "content"), [("row.json", "[0.5, -1.25, 4]"), ("row.csv", "0.5,-1.25,4")])
def test_one_row_is_one(tmp_path, name, content):
    assert read_rows(write(tmp_path, name, content), VISIT).tolist() == ROWS[:1]


def test_rows_of_several_dimensions_are_nested_in_json_and_flat_in_csv(tmp_path):
    for name, content in (("a.json", "[[[1, 2], [3, 4]]]"), ("b.json", "[[1, 2], [3, 4]]"), ("c.csv", "1,2,3,4\n")):
        assert read_rows(write(tmp_path, name, content), GRID).tolist() == [[[1.0, 2.0], [3.0, 4.0]]]
    with pytest.raises(DeviceError, match="row 1 has 2 numbers, and the model takes 4"):
        read_rows(write(tmp_path, "lines.csv", "1,2\n3,4\n"), GRID)


REFUSED = {
    "too few": ("rows.json", "[[1, 2, 3], [1, 2]]", r"row 2 has the shape \(2,\), and the model takes \(3,\)"),
    "too many in csv": ("rows.csv", "a,b,c\n1,2,3\n1,2,3,4\n", "row 2 has 4 numbers, and the model takes 3"),
    "nested": ("rows.json", "[[1, [2], 3]]", r"row 1 has not the shape \(3,\)"),
    "mixed": ("rows.json", "[[1, 2, 3], 4]", r"row 2 has the shape \(\), and the model takes \(3,\)"),
    "above": ("rows.csv", "1,2,3\n1,2,4.001\n", "row 2: the value 4.001 is outside the range from -4 to 4"),
    "below": ("rows.json", "[-5, 2, 3]", "row 1: the value -5 is outside the range from -4 to 4"),
    "far above": ("rows.json", "[1, 2, 1e300]", r"row 1: the value 1e\+300 is outside the range from -4 to 4"),
    "infinite": ("rows.csv", "1,2,inf\n", "row 1: the value inf is outside the range"),
    "no number": ("rows.json", "[1, 2, NaN]", "row 1: the value nan is outside the range"),
    "a word": ("rows.csv", "1,2,high\n", "row 1: 'high' is no number"),
    "an empty cell": ("rows.csv", "1,2,3\n1,,3\n", "row 2: '' is no number"),
    "decimal commas": ("rows.csv", "a;b;c\n0,5;1,5;2\n", "row 1: '0,5' is no number"),
    "underscores": ("rows.csv", "1,2,3\n1,2,0_3\n", "row 2: '0_3' is no number"),
    "words in json": ("rows.json", '[["a", "b", "c"]]', "row 1 does not hold numbers"),
    "nothing in json": ("rows.json", "[[null, 1, 2]]", "row 1 does not hold numbers"),
    "an enormous number": ("rows.json", f"[1, 2, {10**400}]", "row 1 does not hold numbers"),
    "an object": ("rows.json", '{"inputs": [[1, 2, 3]]}', "there is no row of 3 numbers from -4 to 4"),
    "a number": ("rows.json", "5", "there is no row of 3 numbers from -4 to 4"),
    "no rows": ("rows.json", "[]", "there is no row of 3 numbers from -4 to 4"),
    "a header alone": ("rows.csv", "pulse,pressure,age\n", "there is no row of 3 numbers from -4 to 4"),
    "an empty file": ("rows.csv", "", "there is no row of 3 numbers from -4 to 4"),
    "half of it": ("rows.json", "[[1, 2, 3],\n[1, ", r"line 2 is no JSON \(.*\)"),
    "too deep": ("rows.json", "[" * 100_000, "no JSON|nested too deeply"),
}


@pytest.mark.parametrize(("name", "content", "why"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, name, content, why):
    file = write(tmp_path, name, content)
    with pytest.raises(DeviceError, match=why) as refused:
        read_rows(file, VISIT)
    assert str(refused.value).startswith(f"The rows of {file} cannot be used: ")
    assert str(refused.value).endswith(".")
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(DeviceError, match=r"^Cannot read the rows .*none\.json: No such file or directory\.$"):
        read_rows(tmp_path / "none.json", VISIT)
    with pytest.raises(DeviceError, match=r"^Cannot read the rows .*: they are not UTF-8 text\.$"):
        read_rows(write(tmp_path, "rows.csv", b"1,2,\xff"), VISIT)
    with pytest.raises(DeviceError, match=r"^The model takes 3 numbers from -4 to 4: give .*face\.png as a \.json or"):
        read_rows(write(tmp_path, "face.png", b""), VISIT)


@given(st.text(max_size=60) | st.text('0123456789.,;[]{}"\n -e', max_size=60))
def test_whatever_a_file_holds_is_rows_or_one_sentence(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("rows")
    for name in ("rows.json", "rows.csv"):
        file = write(folder, name, content.encode("utf-8", "surrogatepass"))
        with suppress(DeviceError):  # anything else fails the test
            assert VISIT.why_not(read_rows(file, VISIT)) is None


def test_images_are_a_batch_likewise():
    image = np.zeros((8, 8, 3), np.uint8)
    wanted = image_input(8)
    assert wanted.batch(image.tolist()).shape == wanted.batch([image]).shape == (1, 8, 8, 3)
    assert wanted.batch(np.stack([image, image])).dtype == np.uint8
    for wrong, why in (
        ([image, image[1:]], r"image 2 has the shape \(7, 8, 3\), and the model takes \(8, 8, 3\)"),
        (image + 0.5, "image 1 does not hold whole numbers from 0 to 255"),
        (image.astype(np.int64) + 256, "image 1: the value 256 is outside the range from 0 to 255"),
        (image.astype(np.int64) - 1, "image 1: the value -1 is outside"),
        (np.zeros((0, 8, 8, 3), np.uint8), "there is no image of 8 x 8 pixels"),
        ("face.png", "there is no image of 8 x 8 pixels"),
    ):
        with pytest.raises(ValueError, match=why):
            wanted.batch(wrong)
