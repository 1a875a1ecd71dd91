"""Optimal transport: exact against POT, in value and in gradient, at every regularisation."""

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
