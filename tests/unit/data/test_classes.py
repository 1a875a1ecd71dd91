"""Names of classes as people list them on a command line."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dlfd_fleet.data import class_names
from dlfd_fleet.exceptions import ConfigurationError
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
