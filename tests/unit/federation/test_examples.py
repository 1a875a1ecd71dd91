"""The examples that the federation's rooms give in their package docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

ROOMS = ["", ".protocol", ".site", ".records", ".rounds", ".release", ".jobs"]


@pytest.mark.parametrize("room", ROOMS)
def test_the_example_of_a_room_is_true_and_its_names_are_there(room):
    package = importlib.import_module(f"dlfd_fleet.federation{room}")
    assert "Examples\n--------" in package.__doc__
    assert doctest.testmod(package, optionflags=doctest.ELLIPSIS).failed == 0
    assert all(getattr(package, name) for name in package.__all__)
