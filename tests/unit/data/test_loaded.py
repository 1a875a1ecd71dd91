"""Loaders: which inputs, labels and people they may give, and what each other one is told."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dlfd_fleet.components import Component
from dlfd_fleet.data import Manifest
from dlfd_fleet.data.dataset import load_dataset
from dlfd_fleet.data.loaded import LoadedRows, classes_of, digest_of_key
from dlfd_fleet.exceptions import DataError
from dlfd_fleet.model_input import ModelInput, image_input
from tests.loaders import VALUES, photographs

NUMBERS = ModelInput(shape=(VALUES,), low=-4.0, high=4.0)


def loaded(name, model_input=NUMBERS, classes=(), **arguments):
    return LoadedRows(Component(name=f"tests.loaders:{name}", arguments=arguments), model_input, classes)


def manifest_of(rows):
    return Manifest(tuple(each.row for each in rows.rows()), root=__file__, loaded=rows)


def test_images_of_pil_in_columns_of_any_name_come_to_the_models_size():
    rows = loaded("photographs", image_input(32))
    manifest = manifest_of(rows)
    faces = load_dataset(manifest, model_input=image_input(32))
    assert faces.images.shape == (8, 3, 32, 32)
    assert faces.images.dtype == torch.uint8
    assert faces.classes == ("no", "yes")
    assert faces.labels.tolist() == [0, 1] * 4
    assert [row.split for row in manifest.rows] == ["test"] * 2 + ["train"] * 6
    assert [row.identity for row in manifest.rows][::2] == [f"person {number}" for number in range(4)]
    photograph = photographs().dataset[3]["photo"].resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(faces.images[3].numpy(), np.asarray(photograph).transpose(2, 0, 1))


def test_numbers_are_shares_of_the_declared_range():
    faces = load_dataset(manifest_of(loaded("one_row", value=2.0, label=1)), model_input=NUMBERS)
    assert faces.images.dtype == torch.float32
    assert torch.equal(faces.images, torch.tensor([[0.5] * VALUES, [0.75] * VALUES]))
    assert faces.labels.tolist() == [1, 0]  # of ill and well, in the order of their names: a site has its card's


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.arange(12)),
        (torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2), np.arange(12)),
        (torch.full((3, 2, 2), 0.5), [128] * 12),
        (torch.full((3, 2, 2), -1.0, requires_grad=True), [0] * 12),
        (np.full((3, 2, 2), 1.0), [255] * 12),
    ],
    ids=["bytes", "tensor", "half", "least", "most"],
)
def test_pixels_are_kept_as_bytes(given, kept):
    rows = LoadedRows(Component(name="tests.loaders:one_row"), ModelInput(shape=(3, 2, 2), low=-1.0 * (kept[0] != 128)))
    assert np.array_equal(rows._input(0, given).ravel(), kept)


SENTENCES = {
    "tuple": "returned a list; return a PersonDataset",
    "stream": "gives data set by a list_iterator, whose rows have no length or no index; give a map-style data set",
    "names": "gives people by a generator, whose rows have no length or no index",
    "no rows": "has no rows",
    "no people": "names no people; name one for each of its 1 rows",
    "none": "names no people; name one for each of its 1 rows",
    "more people": "names 2 people for 1 rows; name one for each",
    "more splits": "names 2 splits for 1 rows; name one for each",
    "split": "row 0: split: 'holdout' is no split; use train, validation, test or leave it empty",
    "nobody": "row 0: identity: 'nan' means an empty cell",
    "no pair": r"gives a ndarray; give \(input, label\), or a mapping",
    "column": "has no column 'label'; it has image: name the right one as input_name or label_name",
    "row": r"row 0: it cannot be read \(KeyError: 0\)",
    "text": "row 0: the input has the shape .*, and the site takes",
    "label": "row 0: the label is a float; give the index or the name of a class",
    "failing": "failed: RuntimeError: the disk is away",
}


@pytest.mark.parametrize(("what", "sentence"), SENTENCES.items(), ids=SENTENCES)
def test_what_is_no_data_set_with_people_is_told_in_one_sentence(what, sentence):
    with pytest.raises(DataError, match=rf"^The loader 'tests\.loaders:wrong'.*{sentence}.*\.$"):
        list(loaded("wrong", what=what).rows())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"value": 4.5}, "row 1: the value 4.5 is outside the declared range from -4 to 4"),
        ({"value": float("1e38")}, r"row 1: the value 1e\+38 is outside"),
        ({"label": 2}, "row 1: the label 2 is outside the 2 classes"),
        ({"label": -1}, "row 1: the label -1 is outside the 2 classes"),
        ({"label": "sick"}, "row 1: the label 'sick' is outside the classes well, ill"),
        ({"shape": 5}, r"row 1: the input has the shape \(5,\), and the site takes \(6,\)"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(arguments, sentence):
    with pytest.raises(DataError, match=sentence):
        list(loaded("one_row", **arguments).rows())


def test_not_a_number_is_in_no_range():
    with pytest.raises(DataError, match="row 3: the value nan is outside the declared range"):
        loaded("one_row")._input(3, np.array([0, 0, 0, np.nan, 0, 0]))


@pytest.mark.parametrize("name", ["no_such_module_anywhere:load", "tests.loaders:nothing", "tests.loaders:VALUES"])
def test_a_loader_that_cannot_be_imported_is_one_sentence(name):
    with pytest.raises(DataError, match=rf"^The loader '{name}' cannot be imported \(.*\); install its package"):
        LoadedRows(Component(name=name), NUMBERS).open()


def test_arguments_that_a_loader_does_not_take_are_one_sentence():
    with pytest.raises(DataError, match=r"failed: TypeError: .*unexpected keyword argument 'sizes'"):
        loaded("one_row", sizes=3).open()


def test_photographs_need_a_model_of_images():
    with pytest.raises(DataError, match="row 0: it is a grey or RGB image, and the site takes 6 numbers from -4 to 4"):
        list(loaded("photographs").rows())
    with pytest.raises(DataError, match="row 0: the image cannot be used: it is 4 by 4 pixels; the smallest side"):
        list(loaded("photographs", image_input(32), side=4).rows())


def test_two_people_may_have_the_same_numbers_and_not_the_same_photograph():
    numbers = [each.digest for each in loaded("one_row", value=0.0).rows()]
    assert numbers[0] != numbers[1]
    images = loaded("drawn", image_input(8), count=2, side=8, people=2)
    first, second = (each.row for each in images.rows())
    assert digest_of_key(first.image) != digest_of_key(second.image)
    assert digest_of_key("anna/1.png") is None


def test_a_loader_that_gives_something_else_each_time_is_found_out():
    rows = loaded("one_row")
    listed = [each.row for each in rows.rows()]
    with pytest.raises(DataError, match=r"has 1 rows of the site's manifest no more, the first of them row-000001-"):
        list(loaded("one_row", value=1.0).find(listed))
    assert len(list(rows.find(listed))) == 2


def test_classes_are_those_listed_or_the_indices_in_order():
    rows = [each.row for each in loaded("one_row").rows()]
    assert classes_of(rows, ("well", "ill")) == ("well", "ill")
    assert classes_of(rows, ()) == ()
    numbered = [row.__class__(row.image, row.identity, str(number)) for number, row in enumerate(rows * 6)]
    assert classes_of(numbered, ()) == tuple(str(number) for number in range(12))


@given(
    st.lists(st.floats(-4.0, 4.0, width=32), min_size=VALUES, max_size=VALUES),
    st.floats(-1e3, 0.0, width=32),
    st.floats(0.5, 1e3, width=32),
)
def test_every_value_in_the_range_comes_back_from_its_share(values, low, length):
    taken = ModelInput(shape=(VALUES,), low=low, high=low + length)
    inside = np.array(values, np.float32).clip(np.float32(taken.low), np.float32(taken.high))
    kept = LoadedRows(Component(name="tests.loaders:one_row"), taken)._input(0, inside)
    assert kept.dtype == np.float32
    assert (kept.min(), kept.max()) >= (0.0, 0.0)
    assert kept.max() <= 1.0
    assert np.allclose(taken.on_device(kept[None])[0], inside, atol=length * 1e-5)
