"""One form of a name: whoever is one person by it is one person everywhere."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.data import canonical

WAYS_TO_WRITE = {
    "NFC": lambda name: unicodedata.normalize("NFC", name),
    "NFD": lambda name: unicodedata.normalize("NFD", name),
    "NFKD": lambda name: unicodedata.normalize("NFKD", name),
    "upper case": str.upper,
    "lower case": str.lower,
    "title case": str.title,
    "case-folded": str.casefold,
    "padded": lambda name: f"\u00a0 {name}\t\u3000",
    "hidden characters": lambda name: f"\ufeff\u200b{name}\u00ad\u2060\ufe0f",
}


@pytest.mark.parametrize("write", WAYS_TO_WRITE.values(), ids=WAYS_TO_WRITE)
@given(name=st.text(max_size=12))
def test_however_a_name_is_written_it_is_one(write, name):
    assert canonical(write(name)) == canonical(name)


@given(st.text(max_size=20))
def test_a_canonical_name_stays_what_it_is(name):
    assert canonical(canonical(name)) == canonical(name)


@pytest.mark.parametrize(
    "spellings",
    [
        ("Zoë  Doe", "zoe\u0308 doe ", "ZOE\u0308\u00a0DOE", "\u200bzoë doe"),
        ("\u0130pek", "ipek", "IPEK", "\u0131pek", "i\u0307pek"),
        ("\uff37\uff41\uff4c\uff54\uff17", "walt7"),
        ("Straße", "STRASSE", "STRA\u1e9eE"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς", "οδυσσευσ"),
        ("e\u200bva", "e\u00adva", "EVA"),
        ("ﬁnn", "FINN"),
    ],
)
def test_spellings_of_one_name(spellings):
    assert len({canonical(name) for name in spellings}) == 1


@pytest.mark.parametrize("pair", [("anna", "ana"), ("jose", "josé"), ("anna b", "annab"), ("person-1", "person-11")])
def test_other_names_stay_apart(pair):
    assert canonical(pair[0]) != canonical(pair[1])


@pytest.mark.parametrize("nothing", ["", " ", "\u00a0\t", "\u200b", "\u00ad \ufeff", "\ud800"])
def test_what_nobody_sees_is_no_name(nothing):
    assert canonical(nothing) == ""
