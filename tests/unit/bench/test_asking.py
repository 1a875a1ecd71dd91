"""Who asks to be forgotten in a comparison of fleets."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dlfd_fleet.bench.fleets.asking import Asking
from dlfd_fleet.bench.fleets.methods import choose_federated
from dlfd_fleet.data import Manifest, Row
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.settings import Settings


@pytest.fixture
def dealt():
    """Four sites of five people each, and one whom all hold."""
    people = [
        Row(f"{site}-{person}.png", f"person-{site}-{person}", "a" if person % 2 else "b", f"site-{site}", "train")
        for site in range(1, 5)
        for person in range(5)
    ]
    return Manifest((*people, Row("t.png", "unseen", "a", "", "test")), Path())


@pytest.mark.parametrize(("text", "sites", "people"), [("1@1", 1, 1), ("8@4", 4, 8), ("4@2", 2, 4), ("50%", None, 10)])
def test_so_many_people_ask_at_so_many_sites(dealt, text, sites, people):
    asking = Asking(text)
    chosen = asking.choose(dealt, seed=3)
    assert asking.choose(dealt, seed=3) == chosen
    asked = [person for each in chosen.values() for person in each]
    assert len(set(asked)) == len(asked) == people
    assert sites is None or len(chosen) == sites
    assert all(person.split("-")[1] == site.split("-")[1] for site, each in chosen.items() for person in each)


def test_somebody_is_left_at_each_site_and_somebody_asks(dealt):
    everybody = Asking("99%").choose(dealt, seed=0)
    assert {site: len(people) for site, people in everybody.items()} == dict.fromkeys(everybody, 4)
    assert sum(map(len, Asking("0.1%").choose(dealt, seed=0).values())) == 1


def test_people_cannot_ask_at_more_sites_than_there_are(dealt):
    with pytest.raises(ConfigurationError, match="has 10@5, and the fleet has 4 sites"):
        Asking("10@5").choose(dealt, seed=0)


@pytest.mark.parametrize("text", ["8", "3@2", "0@1", "0%", "100%", "five", "1@0", ""])
def test_what_says_nothing_of_the_kind_is_refused(text):
    with pytest.raises(ValidationError, match="requests"):
        Settings(bench={"requests": text})


def test_several_ways_to_ask_are_words_separated_by_commas():
    assert Settings(bench={"requests": "1@1, 8@4,5%"}).bench.requests == ("1@1", "8@4", "5%")
    assert (Asking("1@1").words, Asking("8@4").words) == ("1 person asks at 1 site", "8 people ask at 4 sites")
    assert Asking("5%").words == "5% of the people ask"


def test_methods_are_chosen_by_name_and_those_with_references_need_some():
    without = Settings(references={"models": 0})
    assert "dlfd+references" in choose_federated("all", Settings())
    assert not [name for name in choose_federated("all", without) if name.endswith("+references")]
    assert choose_federated("NoT, dlfd,NoT", without) == ("NoT", "dlfd")
    with pytest.raises(ConfigurationError, match=r"references\.models is 0"):
        choose_federated("dlfd+references", without)
    with pytest.raises(ConfigurationError, match="There is no method 'sgd' here; choose among dlfd,"):
        choose_federated("sgd", without)
