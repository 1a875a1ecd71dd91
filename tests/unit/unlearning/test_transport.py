"""Optimal transport: exact against POT, in value and in gradient, at every regularisation."""

import math

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlfd_fleet.unlearning import cosine_cost, transport_distance


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.05, 0.005])
@pytest.mark.parametrize("shape", [(7, 5), (32, 20), (1, 4), (3, 1)])
def test_value_and_gradient_agree_with_pot(epsilon, shape):
    cost = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    value = transport_distance(cost, epsilon, iterations=20_000, tolerance=1e-11)
    value.backward()
    oracle = ot.solve(cost.detach().numpy(), reg=epsilon, reg_type="KL", max_iter=100_000, tol=1e-12)
    assert value.item() == pytest.approx(float(oracle.value), abs=1e-7)
    assert cost.grad.numpy() == pytest.approx(oracle.plan, abs=1e-7)


def test_gradient_through_features_agrees_with_finite_differences():
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    second = torch.randn(3, 6, dtype=torch.float64, generator=generator)

    def distance(features):
        return transport_distance(cosine_cost(features, second), 0.05, iterations=5_000, tolerance=1e-12)

    assert torch.autograd.gradcheck(distance, (first,), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_extreme_costs_stay_finite(scale):
    cost = (torch.rand(8, 9, generator=torch.Generator().manual_seed(3)) * scale).requires_grad_()
    value = transport_distance(cost, 1e-3, iterations=500)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(cost.grad).all()
    assert cost.grad.sum().item() == pytest.approx(1.0, abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000))
def test_plan_has_uniform_marginals_and_cost_stays_in_range(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(rows, 5, generator=generator), torch.randn(columns, 5, generator=generator)
    cost = cosine_cost(first, second)
    assert cost.min() >= -1e-6
    assert cost.max() <= 2 + 1e-6
    cost = cost.detach().requires_grad_()
    transport_distance(cost, 0.05, iterations=5_000).backward()
    assert torch.allclose(cost.grad.sum(0), torch.full((columns,), 1 / columns), atol=1e-3)
    assert torch.allclose(cost.grad.sum(1), torch.full((rows,), 1 / rows), atol=1e-3)


def exact(first, second, epsilon=0.1):
    """The transport distance of two clouds, converged."""
    return transport_distance(cosine_cost(first, second), epsilon, iterations=2_000, tolerance=1e-7).item()


def cloud(points, seed):
    return torch.randn(points, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 10), st.integers(1, 10), st.integers(0, 10_000))
def test_a_distance_is_never_negative_and_needs_no_order(first, second, seed):
    one, other = cloud(first, seed), cloud(second, seed + 1)
    value = exact(one, other)
    assert value >= -1e-6
    generator = torch.Generator().manual_seed(seed)
    mixed = exact(one[torch.randperm(first, generator=generator)], other[torch.randperm(second, generator=generator)])
    assert mixed == pytest.approx(value, abs=1e-5)
    assert exact(other, one) == pytest.approx(value, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 10), st.integers(0, 10_000))
def test_identical_clouds_are_at_no_distance_but_the_entropy_of_a_plan(points, seed):
    """An exact plan would cost nothing; the entropic value lies under ``epsilon log N``, and goes to 0 with epsilon."""
    one = cloud(points, seed)
    shuffled = one[torch.randperm(points, generator=torch.Generator().manual_seed(seed))]
    for epsilon in (0.1, 0.02):
        assert -1e-6 <= exact(one, shuffled, epsilon) <= epsilon * math.log(points) + 1e-6


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 10_000))
def test_a_cloud_that_turns_away_is_farther_at_every_step(first, second, seed):
    """Both begin around one direction; one of them turns from it in a plane that is their own."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.05 * torch.randn(first + second, 3, dtype=torch.float64, generator=generator)
    angles = torch.linspace(0.0, math.pi, 7, dtype=torch.float64)
    fixed = torch.cat([torch.tensor([[1.0, 0.0]]).double().expand(second, 2), noise[first:]], dim=1)
    values = []
    for angle in angles:
        towards = torch.stack([angle.cos(), angle.sin()]).expand(first, 2)
        values.append(exact(torch.cat([towards, noise[:first]], dim=1), fixed))
    assert values == sorted(values)


@pytest.mark.parametrize("epsilon", [1e-3, 1e-4])
def test_a_small_epsilon_gives_the_value_of_exact_transport(epsilon):
    cost = torch.rand(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 100.0
    value = transport_distance(cost, epsilon * 100.0, iterations=50_000, tolerance=1e-10).item()
    uniform = [torch.full((count,), 1.0 / count, dtype=torch.float64).numpy() for count in (9, 7)]
    least = float(ot.emd2(*uniform, cost.numpy()))
    assert least <= value <= least + epsilon * 100.0 * math.log(63)
