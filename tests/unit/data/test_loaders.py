"""The loaders that come with the package, and folders of images."""

import io
import json

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet as files

from dlfd_fleet.data.folders import folders_manifest
from dlfd_fleet.data.loaders import holds_bytes, npz, parquet
from dlfd_fleet.exceptions import DataError


def picture(number, size=16):
    content = io.BytesIO()
    Image.new("RGB", (size, size), (number, 0, 0)).save(content, "PNG")
    return content.getvalue()


def write_parquet(file, rows=10, label=lambda number: ("no", "yes")[number % 2], metadata=None, **columns):
    table = {
        "image": [{"bytes": picture(number), "path": f"{number}.png"} for number in range(rows)],
        "identity": [f"person {number // 2}" for number in range(rows)],
        "label": [label(number) for number in range(rows)],
    } | columns
    made = pyarrow.table(table)
    if metadata:
        noted = metadata if isinstance(metadata, str) else json.dumps(metadata)
        made = made.replace_schema_metadata({"huggingface": noted})
    files.write_table(made, file, row_group_size=4)
    return file


def write_npz(file, **arrays):
    base = {"inputs": np.arange(12.0).reshape(4, 3), "labels": np.array([0, 1, 0, 1]), "people": np.array(list("abab"))}
    np.savez(file, **(base | arrays))
    return file


def test_a_parquet_file_is_read_a_group_at_a_time_and_written_anew_without_rows(tmp_path):
    file = write_parquet(tmp_path / "faces.parquet", split=["train"] * 8 + ["test"] * 2)
    opened = parquet("faces.parquet", site_folder=tmp_path)
    assert len(opened.dataset) == len(opened.people) == 10
    assert opened.splits == ["train"] * 8 + ["test"] * 2
    assert [opened.dataset[number]["image"] for number in (9, 0, 5)] == [picture(number) for number in (9, 0, 5)]
    before = files.read_schema(file)
    opened.delete([0, 4, 5, 6, 7])
    left = parquet(str(file))
    assert left.people == [f"person {number}" for number in (0, 1, 1, 4, 4)]
    assert [left.dataset[number]["image"] for number in range(5)] == [picture(number) for number in (1, 2, 3, 8, 9)]
    assert files.read_schema(file) == before
    assert picture(5) not in file.read_bytes()
    left.delete(range(5))
    assert len(parquet(str(file)).dataset) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["faces.parquet"]


def test_names_of_classes_are_those_that_hugging_face_notes(tmp_path):
    noted = {"info": {"features": {"label": {"names": ["none", "hat"], "_type": "ClassLabel"}}}}
    file = write_parquet(tmp_path / "faces.parquet", label=lambda number: number % 2, metadata=noted)
    assert parquet(str(file)).classes == ("none", "hat")
    assert parquet(str(file), classes=["a", "b"]).classes == ["a", "b"]
    assert parquet(str(write_parquet(tmp_path / "plain.parquet"))).classes is None


@pytest.mark.parametrize("noted", ["{", "[]", '{"info": 1}', "[" * 50_000 + "]" * 50_000])
def test_what_hugging_face_notes_otherwise_is_left_aside(tmp_path, noted):
    assert parquet(str(write_parquet(tmp_path / "faces.parquet", metadata=noted))).classes is None


@pytest.mark.parametrize(
    ("arguments", "columns", "sentence"),
    [
        ({"person": "who"}, {}, "has no column 'who'; it has image, identity, label"),
        ({"split": "part"}, {}, "has no column 'part'"),
        ({}, {"image": ["a.png"] * 10}, "column 'image': it holds string, not bytes of images"),
        (
            {},
            {"image": [{"bytes": None, "path": "a.png"}] * 10},
            "column 'image': it holds|row 0: the image has no bytes",
        ),
    ],
)
def test_a_parquet_file_without_what_is_needed_is_one_sentence(tmp_path, arguments, columns, sentence):
    file = write_parquet(tmp_path / "faces.parquet", **columns)
    with pytest.raises(DataError, match=sentence):
        parquet(str(file), **arguments).dataset[0]


def test_a_parquet_file_of_images_is_told_from_a_manifest(tmp_path):
    assert holds_bytes(write_parquet(tmp_path / "faces.parquet"))
    assert not holds_bytes(write_parquet(tmp_path / "paths.parquet", image=["a.png"] * 10))
    assert not holds_bytes(tmp_path / "none.parquet")


def test_an_npz_file_is_read_and_written_anew_without_rows(tmp_path):
    file = write_npz(tmp_path / "rows.npz", splits=np.array(["train"] * 3 + ["test"]), classes=np.array(["no", "yes"]))
    opened = npz("rows.npz", site_folder=tmp_path)
    assert (opened.people, opened.classes, opened.splits[3]) == (list("abab"), ("no", "yes"), "test")
    assert opened.dataset[2][0].tolist() == [6.0, 7.0, 8.0]
    opened.delete([0, 2])
    left = npz(str(file))
    assert (left.people, left.classes, left.splits) == (["b", "b"], ("no", "yes"), ["train", "test"])
    assert left.dataset[1][0].tolist() == [9.0, 10.0, 11.0]


def test_an_npz_file_without_what_is_needed_is_one_sentence(tmp_path):
    np.savez(tmp_path / "a.npz", inputs=np.zeros(3))
    with pytest.raises(DataError, match=r"a\.npz has no array 'labels'; it has inputs\.$"):
        npz(str(tmp_path / "a.npz"))
    with pytest.raises(DataError, match="has 4 inputs and 3 labels"):
        npz(str(write_npz(tmp_path / "b.npz", labels=np.zeros(3))))
    with pytest.raises(DataError, match="it is no NPZ file of numbers and text"):  # a pickle would run
        npz(str(write_npz(tmp_path / "c.npz", people=np.array([object()] * 4))))
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(DataError, match="it is no NPZ file"):
        npz(str(tmp_path / "d.npy"))


@pytest.mark.parametrize(("loader", "name"), [(npz, "rows.npz"), (parquet, "rows.parquet")])
def test_a_file_that_is_not_there_is_one_sentence(tmp_path, loader, name):
    with pytest.raises(DataError, match=rf"^Cannot read .*{name}: No such file or directory\.$"):
        loader(name, site_folder=tmp_path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return {
        npz: write_npz(folder / "a.npz").read_bytes(),
        parquet: write_parquet(folder / "a.parquet", rows=3).read_bytes(),
    }


@pytest.mark.parametrize("loader", [npz, parquet])
@given(data=st.data())
def test_whatever_is_in_a_damaged_file_is_one_sentence_or_a_data_set(whole_files, tmp_path_factory, loader, data):
    content = bytearray(whole_files[loader])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("damaged") / "a"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    said = ""
    try:
        loader(str(file))
    except DataError as error:
        said = str(error)
    assert said[-1:] in ("", ".")


@pytest.mark.parametrize("order", ["person/label", "label/person"])
def test_folders_name_the_person_and_the_class(tmp_path, order):
    for number, person in enumerate(("anna", "bert")):
        label = ("no", "yes")[number]
        file = tmp_path / (f"{person}/{label}" if order == "person/label" else f"{label}/{person}") / "1.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(picture(number))
    (tmp_path / ".DS_Store").touch()
    manifest = folders_manifest(tmp_path, order)
    assert {(row.identity, row.label) for row in manifest.rows} == {("anna", "no"), ("bert", "yes")}
    assert all(manifest.file_of(row).exists() for row in manifest.rows)


def test_folders_of_another_form_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"There is no image in folders of the form .*/PERSON/LABEL"):
        folders_manifest(tmp_path, "person/label")
    for place in ("anna/1.png", "anna/yes/old/1.png"):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        with pytest.raises(DataError, match=f"{place} is not in a folder of the form .*/LABEL/PERSON; move it"):
            folders_manifest(tmp_path, "label/person")
        file.unlink()
