"""Entropic optimal transport between two batches of features, with the exact gradient of its value.

Sinkhorn's iterations in the log domain give the potentials (Peyre & Cuturi, Computational Optimal Transport, 2019,
section 4.4), so no kernel entry underflows at a small epsilon. They run without gradients: by the envelope theorem the
gradient of the optimal value by the cost is the plan itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def cosine_cost(first: Tensor, second: Tensor) -> Tensor:
    """Return ``1 - cos`` between the rows of ``(N, F)`` and ``(M, F)``, as ``(N, M)`` in [0, 2]."""
    return 1.0 - functional.normalize(first, dim=1) @ functional.normalize(second, dim=1).T


def transport_distance(cost: Tensor, epsilon: float, iterations: int, tolerance: float = 1e-5) -> Tensor:
    """Return the entropic transport value of a cost between two uniform distributions.

    ``min_P <P, C> + epsilon KL(P | a b^T)`` over plans ``P`` with uniform marginals ``a`` and ``b``.

    Parameters
    ----------
    cost
        Finite costs, ``(N, M)``.
    epsilon
        Regularisation, in units of the cost.
    iterations
        Most Sinkhorn iterations.
    tolerance
        Iterations end when the sum of absolute differences of the row marginals from uniform is below this.

    Returns
    -------
    Tensor
        A scalar whose gradient by ``cost`` is the optimal plan ``(N, M)``.
    """
    plan, value = _sinkhorn(cost.detach(), epsilon, iterations, tolerance)
    return (plan * cost).sum() + (value - (plan * cost.detach()).sum())


@torch.no_grad()
def _sinkhorn(cost: Tensor, epsilon: float, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    # Double precision costs nothing at these sizes and keeps small epsilons exact. On the CPU, wherever the cost comes
    # from: a GPU would wait for each of these small steps, and for every reading of the error.
    scaled = -cost.double().cpu() / epsilon
    log_a, log_b = -math.log(cost.shape[0]), -math.log(cost.shape[1])
    row = torch.zeros(cost.shape[0], 1, dtype=scaled.dtype)
    column = torch.zeros(1, cost.shape[1], dtype=scaled.dtype)
    for _ in range(iterations):
        # The column step makes the column marginals exact, so the row marginals tell how far the plan is from feasible.
        column = -torch.logsumexp(scaled + row + log_a, dim=0, keepdim=True)
        log_rows = torch.logsumexp(scaled + column + log_b, dim=1, keepdim=True)
        error = ((row + log_rows).exp() - 1.0).abs().mean()
        row = -log_rows
        if error < tolerance:
            break
    plan = (scaled + row + column + log_a + log_b).exp()
    # The dual value: potentials averaged over the marginals, in units of the cost.
    value = epsilon * (row.mean() + column.mean())
    return plan.to(cost), value.to(cost)
