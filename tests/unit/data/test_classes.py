"""Names of classes as people list them on a command line."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dlfd_fleet.data import class_names, labels_in, listed
from dlfd_fleet.exceptions import ConfigurationError, DataError
from dlfd_fleet.ledger.site import SiteCard
from dlfd_fleet.model_input import image_input


@pytest.mark.parametrize(
    ("lists", "names"),
    [
        (None, None),
        ([], None),
        (["glasses,no glasses"], ("glasses", "no glasses")),
        ([" glasses , no glasses "], ("glasses", "no glasses")),
        (['"hat, red",none'], ("hat, red", "none")),
        (['none, "hat, ""red"""'], ("none", 'hat, "red"')),
        (["glasses", "hat,none"], ("glasses", "hat", "none")),
    ],
)
def test_names_are_separated_by_commas_and_quoted_where_they_hold_one(lists, names):
    assert class_names(lists) == names


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "Class 1 of 1 has no name"),
        ("glasses,,none", "Class 2 of 3 has no name"),
        ("glasses,none,", "Class 3 of 3 has no name"),
        ("glasses, ", "Class 2 of 2 has no name"),
        ("none,none", "'none' and 'none' are one name"),
        ("none, NONE ", "'none' and 'NONE' are one name"),
        ('"hat\nred",none', "Class 1 of 2 holds a control character"),
        ('"hat, red,none', "close each quotation mark"),
    ],
)
def test_empty_repeated_and_unreadable_names_are_refused(text, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        class_names([text])


@pytest.mark.parametrize("classes", [["yes", "yes"], ["yes", " "], ["yes", ""]])
def test_a_site_has_no_two_classes_of_one_name(classes):
    with pytest.raises(ValidationError, match="name"):
        SiteCard(name="clinic", input=image_input(32), classes=classes)


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("hat", ("hat",)),
        ("hat;glasses", ("hat", "glasses")),
        (" hat ; Glasses", ("hat", "Glasses")),
        ("none", ()),
        (" NONE ", ()),
        ("no hat, no glasses", ("no hat, no glasses",)),
    ],
)
def test_a_cell_names_any_number_of_labels(cell, names):
    assert labels_in(cell, multi_label=True) == names
    assert labels_in(cell, multi_label=False) == (cell,)


@pytest.mark.parametrize("cell", ["hat;", ";hat", "hat;;glasses", ";", "none;hat", "hat; None"])
def test_a_cell_that_is_no_list_of_labels_is_one_sentence(cell):
    with pytest.raises(DataError, match=f"The cell '{cell}' is no list of labels: write one ';' between two of them"):
        labels_in(cell, multi_label=True)


@pytest.mark.parametrize("name", ["none", "None", "hat;glasses", "hat\uff1bglasses"])
def test_no_label_is_called_what_cells_of_labels_mean_otherwise(name):
    assert class_names([f"{name},sun"]) == (name, "sun")
    with pytest.raises(ConfigurationError, match=f"No label can be called '{name}'"):
        class_names([f"{name},sun"], multi_label=True)
    with pytest.raises(ValidationError, match="No label can be called"):
        SiteCard(name="clinic", input=image_input(32), classes=(name, "sun"), multi_label=True)


def test_one_class_is_no_question_and_one_label_is():
    assert SiteCard(name="clinic", input=image_input(32), classes=("hat",), multi_label=True).classes == ("hat",)
    with pytest.raises(ValidationError, match="two classes or more, or one label, and there are 1"):
        SiteCard(name="clinic", input=image_input(32), classes=("hat",))


def test_a_sentence_names_ten_classes_of_a_thousand():
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(number) for number in range(1000)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 990 more"
