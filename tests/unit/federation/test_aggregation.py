from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.protocol.messages import PendingReply
from dlfd_fleet.federation.rounds.aggregation import (
    RunningMean,
    check_update,
    check_weight,
    odd_updates,
    shortened,
)
from dlfd_fleet.federation.rounds.requests import class_weights
from dlfd_fleet.model_input import image_input


@given(
    values=st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.01, 100.0)), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_the_running_mean_is_the_weighted_mean_in_any_order(values, order):
    shuffled = list(values)
    order.shuffle(shuffled)
    mean = RunningMean()
    for value, weight in shuffled:
        mean.add({"w": torch.tensor([value, -value]), "n": torch.tensor(4)}, weight)
    expected = np.average([value for value, _ in values], weights=[weight for _, weight in values])
    result = mean.value()
    assert torch.allclose(result["w"], torch.tensor([expected, -expected], dtype=torch.float32), rtol=1e-5, atol=1e-4)
    assert result["n"] == 4
    assert result["n"].dtype == torch.int64
    assert mean.count == len(values)


REFERENCE = {"w": torch.ones(4), "n": torch.tensor(1)}


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        ({"w": torch.ones(4)}, "other arrays than ours, 'n'"),
        ({"w": torch.ones(5), "n": torch.tensor(1)}, r"'w' as torch.float32 \(5,\)"),
        ({"w": torch.ones(4).double(), "n": torch.tensor(1)}, "'w' as torch.float64"),
        ({"w": torch.tensor([1.0, 1.0, 1.0, float("inf")]), "n": torch.tensor(1)}, "not finite"),
        ({"w": torch.full((4,), 4.0), "n": torch.tensor(1)}, "3.00 times as large as the model, above 2.00"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(update, sentence):
    with pytest.raises(MessageError, match=f"site-a sent .*{sentence}"):
        check_update(update, REFERENCE, "site-a", largest_ratio=2.0)


def test_a_fitting_update_passes_and_its_norm_is_told():
    norm = check_update({"w": torch.full((4,), 2.5), "n": torch.tensor(9)}, REFERENCE, "site-a", largest_ratio=2.0)
    assert norm == pytest.approx((3.0, 3.0))
    check_update({"w": torch.full((4,), 1e6), "n": torch.tensor(9)}, REFERENCE, "site-a")


def test_an_update_counts_by_no_more_images_than_its_site_holds():
    check_weight(7, 7, "site-a")
    with pytest.raises(MessageError, match="counts by 8 images, and it holds 7"):
        check_weight(8, 7, "site-a")


@given(norms=st.lists(st.floats(0.5, 2.0), min_size=3, max_size=9), scale=st.floats(1e-3, 1e3))
def test_an_update_far_above_the_median_is_odd_at_any_scale(norms, scale):
    by_node = {node: norm * scale for node, norm in enumerate(norms)}
    assert odd_updates(by_node, 5.0) == {}
    odd = odd_updates(by_node | {99: 100.0 * scale}, 5.0)
    assert set(odd) == {99}
    assert odd[99] == pytest.approx(100.0 * scale / float(np.median([*by_node.values()])))


@given(share=st.floats(0.0, 1.0), size=st.floats(0.1, 1e3))
def test_a_shortened_update_has_that_share_of_its_length_and_its_direction(share, size):
    before = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}
    after = {"w": before["w"] + size * torch.ones(2, 3), "n": torch.tensor(9)}
    shorter = shortened(after, before, share)
    assert torch.allclose(shorter["w"] - before["w"], share * (after["w"] - before["w"]), rtol=1e-3, atol=1e-4)
    assert shorter["n"] == 9


def test_of_two_updates_nobody_can_tell_the_odd_one():
    assert odd_updates({1: 1.0, 2: 1e9}, 5.0) == {}


def test_rare_classes_weigh_more_over_the_whole_fleet():
    def reply(*counts):
        return PendingReply(
            site="0a1b2c3d",
            requests=(),
            dates={},
            forget_images=0,
            class_images=counts,
            classes=("a", "b"),
            input=image_input(64),
        )

    weights = class_weights({1: reply(30, 10), 2: reply(30, 10)})
    assert weights == pytest.approx((80 / 120, 80 / 40))
    assert class_weights({1: reply(5, 0)}) == pytest.approx((1.0, 1.0))  # who is nowhere cannot weigh more


def test_both_values_of_a_label_weigh_the_same_over_the_whole_fleet():
    def reply(images, *applies):
        return PendingReply(
            site="0a1b2c3d",
            requests=(),
            dates={},
            forget_images=0,
            class_images=applies,
            labelled_images=images,
            classes=("hat", "glasses", "scarf"),
            input=image_input(64),
        )

    weights = class_weights({1: reply(10, 1, 5, 0), 2: reply(10, 1, 5, 0)})
    assert weights == pytest.approx((20 / 36, 20 / 4, 1.0, 1.0, 1.0, 1.0))


def test_negative_variances_are_refused():
    model = {"norm.running_var": torch.tensor([1.0, 2.0])}
    with pytest.raises(MessageError, match=r"negative variances in 'norm.running_var'"):
        check_update({"norm.running_var": torch.tensor([1.0, -1e-9])}, model, "site-1")


def test_statistics_of_batch_norm_count_for_the_whole_and_not_for_what_is_trained():
    model = {"w": torch.ones(4), "norm.running_mean": torch.zeros(1), "norm.running_var": torch.ones(1)}
    update = {"w": torch.full((4,), 2.5), "norm.running_mean": torch.tensor([4.0]), "norm.running_var": torch.ones(1)}
    assert check_update(update, model, "site-a") == pytest.approx((3.0, 5.0))
    with pytest.raises(MessageError, match="times as large as the model"):
        check_update(update, model, "site-a", largest_ratio=2.0)
    with pytest.raises(MessageError, match=r"'norm\.running_mean' with values that are not finite"):
        check_update(update | {"norm.running_mean": torch.tensor([float("nan")])}, model, "site-a")
