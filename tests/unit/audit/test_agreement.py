"""Sites that say other things than most of people whom all of them hold: found, and never believed."""

from __future__ import annotations

import numpy as np
import pytest

from dlfd_fleet.audit import Role, SampleScores, agreed
from dlfd_fleet.audit.samples import ROLES
from dlfd_fleet.exceptions import DataError

IMAGES = 40


def said(seed, noise=0.0, loss=None, prediction=None):
    """What a site says of the same forty images, in an order and with numbers of people of its own."""
    same, own = np.random.default_rng(0), np.random.default_rng(seed)
    label, true_loss = same.integers(0, 2, IMAGES), same.exponential(1.0, IMAGES)
    person, right = np.arange(IMAGES) // 4, true_loss < 0.7
    losses = true_loss * (1.0 + noise * own.standard_normal(IMAGES)) if loss is None else np.full(IMAGES, loss)
    order, numbers = own.permutation(IMAGES), own.permutation(IMAGES // 4)
    return SampleScores(
        role=np.full(IMAGES, ROLES.index(Role.TEST), dtype=np.uint8),
        person=numbers[person][order],
        label=label[order],
        prediction=(np.where(right, label, 1 - label) if prediction is None else label)[order],
        loss=losses[order],
    )


def test_honest_sites_agree_though_their_processors_round_differently():
    everybody, liars = agreed({f"site-{seed}": said(seed, 1e-3) for seed in range(4)})
    assert (len(everybody), liars) == (IMAGES, frozenset())


@pytest.mark.parametrize(
    "lie",
    [said(9, loss=0.01, prediction="right"), said(9, loss=5.0), said(9).rows(slice(30)), said(9, noise=0.3)],
    ids=["all is well", "all is lost", "fewer people", "something else"],
)
def test_one_that_lies_is_named_and_what_it_says_does_not_count(lie):
    honest = {"site-1": said(1), "site-3": said(3)}
    everybody, liars = agreed(honest | {"site-2": lie})
    assert liars == {"site-2"}
    assert np.allclose(np.sort(everybody.loss), np.sort(honest["site-1"].loss))


def test_a_site_that_leaves_out_who_asked_is_no_liar_and_no_witness_where_most_do_not():
    fewer = said(2).rows(slice(30))
    everybody, liars = agreed({"site-1": said(1), "site-2": fewer}, {"site-2"})
    assert (len(everybody), liars) == (IMAGES, frozenset())
    everybody, liars = agreed({"site-1": said(1), "site-2": fewer, "site-3": said(3)}, {"site-2"})
    assert (len(everybody), liars) == (IMAGES, frozenset())


def test_what_most_sites_leave_out_counts_for_nobody():
    known, others = said(2).person < 8, {"site-2", "site-3"}
    fewer = {name: said(2).rows(known) for name in others}
    everybody, liars = agreed(fewer | {"site-1": said(1)}, others)
    assert (len(everybody), liars) == (int(known.sum()), {"site-1"})
    everybody, liars = agreed(fewer, others)
    assert (len(everybody), liars) == (int(known.sum()), frozenset())


def test_a_site_that_leaves_nobody_out_cannot_be_outvoted_by_one_that_lies_about_it():
    everybody, _ = agreed({"site-1": said(1).rows(slice(3)), "site-2": said(2)}, {"site-1"})
    assert len(everybody) == IMAGES


def test_of_two_that_differ_nobody_can_tell_who_lies():
    with pytest.raises(DataError, match="site-1, site-2 report different answers"):
        agreed({"site-1": said(1), "site-2": said(2, loss=0.01)})
    nobody = said(2).rows(slice(0))
    everybody, liars = agreed({"site-1": said(1), "site-2": nobody})  # who holds none of these people is no witness
    assert (len(everybody), liars) == (IMAGES, frozenset())
    assert len(agreed({"site-1": nobody, "site-2": nobody})[0]) == 0
