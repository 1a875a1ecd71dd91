"""The registry of attacks: which can be made on a model, and those that other packages bring."""

import re
from pathlib import Path

import numpy as np
import pytest

from dlfd_fleet.audit import ATTACKS, Attack, Need, Observation, Role, SampleScores, loss_attack, possible_attacks
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.exceptions import ConfigurationError


@pytest.fixture(autouse=True)
def fresh_registry():
    ATTACKS.reload()
    yield
    ATTACKS.reload()


def observation(forgotten=2, features=True):
    """Two images each of so many forgotten people, three test people and one validation person."""
    people = [Role.FORGET] * forgotten + [Role.TEST] * 3 + [Role.VALIDATION]
    role = np.repeat([ROLES.index(one) for one in people], 2).astype(np.uint8)
    person = np.repeat(np.arange(len(people)), 2)
    label = np.zeros(len(role), dtype=np.int64)
    loss = np.linspace(0.1, 1.0, len(role))
    samples = SampleScores(role=role, person=person, label=label, prediction=label, loss=loss)
    return Observation(samples, np.random.default_rng(0).normal(size=(len(role), 3)) if features else None)


def test_an_attack_is_left_out_where_what_it_needs_is_missing():
    def names(model, references):
        return [attack.name for attack in possible_attacks(model, references)]

    assert names(observation(), 2) == ["loss", "rmia", "probe"]
    assert names(observation(), 0) == ["loss", "probe"]
    assert names(observation(forgotten=1), 2) == ["loss", "rmia"]
    assert names(observation(features=False), 2) == ["loss", "rmia"]


@pytest.mark.parametrize("name", ["loss", "rmia", "probe"])
def test_every_attack_scores_forgotten_and_test_images(name):
    model = observation()
    scores = ATTACKS.find(name).score(model, [observation()])
    assert scores.member.tolist() == [True] * 4 + [False] * 6
    assert np.isfinite(scores.score).all()


def test_the_attack_of_the_how_to_page_is_possible_and_scores(install_how_to):
    install_how_to("attack.md")
    (found,) = [attack for attack in possible_attacks(observation(), 0) if attack.name == "confidence"]
    assert found.score(observation(), []).auc() == loss_attack(observation().samples).auc()


def test_the_attack_on_features_of_the_how_to_page_is_possible_and_scores():
    page = Path(__file__).parents[3] / "docs" / "how-to" / "attack.md"
    _, code = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(code, names)
    ATTACKS.register(names["ATTACK"])
    (found,) = [attack for attack in possible_attacks(observation(), 0) if attack.name == "length"]
    scores = found.score(observation(), [])
    assert scores.member.tolist() == [True] * 4 + [False] * 6
    assert not [attack for attack in possible_attacks(observation(features=False), 0) if attack.name == "length"]


def test_a_name_is_given_once():
    with pytest.raises(ConfigurationError, match="The name 'loss' is taken by another attack"):
        ATTACKS.register(Attack("loss", "Loss", "none", ATTACKS["loss"].score))


@pytest.mark.parametrize("needs", [Need.FEATURES, "features", [Need.FEATURES], frozenset({"features"})], ids=str)
def test_needs_that_are_no_set_of_needs_are_refused_at_once(needs):
    with pytest.raises(ConfigurationError, match=r"'mine' has the needs .* write a frozenset of Need, such as frozens"):
        Attack("mine", "Mine", "none", ATTACKS["loss"].score, needs)


def test_a_score_that_cannot_be_called_is_refused_at_once():
    with pytest.raises(ConfigurationError, match=r"'mine' has a score that cannot be called: 0\.5"):
        Attack("mine", "Mine", "none", 0.5)
