"""What is said before the start of what an erasure will be able to show."""

import numpy as np
import pytest

from dlfd_fleet.audit import Estimate, Evidence, Left, Scores, expect
from dlfd_fleet.exceptions import DataError
from tests.unit.audit.reference_world import World, share_of

KNOWN = Estimate(value=0.9, low=0.9, high=0.9, standard_error=0.0)


def original(share=None, auc=None, images=64, unseen=300):
    return Scores(
        test_accuracy=KNOWN if unseen else None,
        balanced_accuracy=KNOWN,
        retain_accuracy=KNOWN,
        forget_accuracy=KNOWN,
        mia_accuracy=KNOWN,
        mia_auc=auc,
        forgetting_score=0.0,
        nomus=0.9,
        control_auc=None,
        majority_baseline=0.5,
        unseen_classes=2,
        forget_images=images,
        unseen_images=unseen,
        member_share=share,
    )


@pytest.mark.parametrize("asked", [4, 16])
def test_by_references_the_chance_foretold_is_how_often_it_is_so(asked):
    foretold, passed, failed = [], [], []
    for seed in range(40):
        world = World(seed, asked=asked, noise=1.5)
        share = share_of(world.sums(world.model(1.0)))
        said = expect(original(share, images=share.images), margin=0.1)
        assert said.evidence is Evidence.REFERENCES
        foretold.append((said.passes, said.fails))
        passed.append(Left.of(share, share_of(world.sums(world.model(0.0)))).is_forgotten)
        failed.append(Left.of(share, share_of(world.sums(world.model(1.0)))).is_remembered)
    passes, fails = np.mean(foretold, axis=0)
    assert np.mean(passed) == pytest.approx(passes, abs=0.2)
    assert np.mean(failed) == pytest.approx(fails, abs=0.2)


def test_without_references_it_is_the_power_beside_unseen_people():
    sure = Estimate(value=0.8, low=0.78, high=0.82, standard_error=0.01)
    said = expect(original(auc=sure), margin=0.1)
    assert said.evidence is Evidence.UNSEEN
    assert said.passes > 0.99
    assert said.fails > 0.99
    assert "job start references" in said.sentence()
    vague = Estimate(value=0.6, low=0.3, high=0.9, standard_error=0.15)
    said = expect(original(auc=vague), margin=0.1)
    assert said.passes == 0.0
    assert "may find nobody" in said.sentence()


def test_where_nobody_is_unseen_only_a_retrained_model_can_tell():
    assert expect(original(unseen=0), margin=0.1).evidence is Evidence.RETRAINED


def test_of_nobody_nothing_is_foretold():
    with pytest.raises(DataError, match="Nobody who asks"):
        expect(original(images=0), margin=0.1)
