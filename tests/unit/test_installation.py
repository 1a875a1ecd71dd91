"""What pyproject.toml asks for lets itself be installed beside what a Flower user has already."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CLIENT = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["client"])]

# The dependencies of Flower's examples/quickstart-pytorch, in its versions 1.1.1 and 1.1.13.
QUICKSTARTS = [
    ("flwr[simulation]>=1.28.0", "flwr-datasets[vision]>=0.6.0", "torch==2.8.0", "torchvision==0.23.0"),
    ("flwr[simulation]>=1.36", "flwr-datasets[vision]>=0.6.1", "torch==2.10.0", "torchvision==0.25.0"),
]


def common_version(first: Requirement, second: Requirement) -> bool:
    """Whether one of the versions that two requirements of one package name satisfies both.

    Ours are ``>=`` and ``<``, the example's ``>=`` and ``==``: if any version satisfies both, a named one does.
    """
    named = [part.version for part in (*first.specifier, *second.specifier)]
    return any(version in first.specifier and version in second.specifier for version in named)


@pytest.mark.parametrize("pins", QUICKSTARTS, ids=lambda pins: pins[2])
def test_the_client_extra_installs_beside_the_pins_of_flowers_quickstart(pins):
    pinned = {requirement.name: requirement for requirement in map(Requirement, pins)}
    shared = [ours for ours in CLIENT if ours.name in pinned]
    assert {ours.name for ours in shared} == {"flwr", "torch", "torchvision"}
    for ours in shared:
        assert common_version(ours, pinned[ours.name]), f"{ours} refuses {pinned[ours.name]}"


def test_one_package_has_one_lower_bound_but_where_a_device_may_be_older():
    extras = PROJECT["optional-dependencies"]
    bounds: dict[str, set[str]] = {}
    for text in (*PROJECT["dependencies"], *extras["client"], *extras["server"], *extras["all"]):
        requirement = Requirement(text)
        if requirement.specifier:
            bounds.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert {name for name, written in bounds.items() if len(written) > 1} == set()
    device = {requirement.name: requirement for requirement in map(Requirement, extras["device"])}
    apart = {name for name, one in device.items() if name in bounds and {str(one.specifier)} != bounds[name]}
    assert apart == {"uvicorn"}
