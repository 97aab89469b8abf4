"""What draws of a launch say of the target: its scales, and how long trajectories should be."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ebm_samplers.mass import Mass

MassKind = Literal["auto", "diagonal", "dense"]

LARGEST_DENSE = 200
"""Elements of a state above which "auto" takes no dense mass: a leapfrog costs their square."""
DRAWS_FOR_DENSE = 10
"""Draws for each element that a dense mass needs: fewer spoil the axes of small variance."""
CORRELATED = 10.0
"""Ratio of the variances along the axes, elements scaled alike, above which a dense mass pays.

Trajectories are longer by the root of it; with ten draws an element chance makes it 4."""


def pooled_covariance(draws: Tensor, *, dense: bool) -> Tensor:
    """The covariance within and between chains, regularised as in Stan.

    That of n draws in all is shrunk to n/(n + 5)·Σ + 5/(n + 5)·D, with D = 0.001·I as in Stan's
    warm-up. Of elements with a variance below 0.001, D has that variance; of those above 1, in
    whole matrices, which fewer draws than elements leave singular, 0.001 times it.

    Args:
        draws: ``(chain, draw, d)``; two or more in all.
        dense: Whether the whole matrix is wanted.

    Returns:
        float64: ``(d, d)``, or ``(d,)``, the diagonal.
    """
    flat = draws.reshape(-1, draws.shape[2]).double()
    n = len(flat)
    centred = flat - flat.mean(0)
    variance = centred.square().sum(0) / (n - 1)
    floor = torch.where(variance > 0, variance, 1.0).clamp(max=1e-3) * 5 / (n + 5)
    if not dense:
        return variance * (n / (n + 5)) + floor
    floor = floor * variance.clamp(min=1.0)
    covariance = centred.mT @ centred / (n - 1) * (n / (n + 5))
    return covariance + floor.diag()


def pays_dense(draws: Tensor) -> bool:
    """Whether a dense mass would pay, as far as these draws ``(chain, draw, d)`` can tell."""
    n, d = draws.shape[0] * draws.shape[1], draws.shape[2]
    if d == 1 or d > LARGEST_DENSE or n < DRAWS_FOR_DENSE * d:
        return False
    covariance = pooled_covariance(draws, dense=True)
    scale = covariance.diagonal().rsqrt()
    axes = torch.linalg.eigvalsh(scale[:, None] * covariance * scale)
    return bool(axes[-1] > CORRELATED * axes[0])


def learned_mass(draws: Tensor, kind: MassKind) -> Tensor:
    """The inverse of the pooled covariance of draws ``(chain, draw, *event)``.

    Returns:
        A diagonal of the event's shape, or ``(d, d)``, in the draws' dtype.
    """
    flat = draws.flatten(2) if draws.ndim > 2 else draws[..., None]
    if kind == "dense" or (kind == "auto" and pays_dense(flat)):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(pooled_covariance(flat, dense=True)))
        return ((inverse + inverse.mT) / 2).to(draws.dtype)
    variance = pooled_covariance(flat, dense=False)
    return variance.reciprocal().to(draws.dtype).reshape(draws.shape[2:])


def largest_scale(draws: Tensor) -> float:
    """The largest standard deviation of any direction, or, of many elements, of any element."""
    flat = draws.flatten(2) if draws.ndim > 2 else draws[..., None]
    if flat.shape[2] <= LARGEST_DENSE:
        covariance = pooled_covariance(flat, dense=True)
        return math.sqrt(torch.linalg.eigvalsh(covariance)[-1].item())
    return math.sqrt(pooled_covariance(flat, dense=False).max().item())


def chees(states: Sequence[Tensor], mass: Mass) -> float:
    """Change in the estimator of the expected square (Hoffman, Radul & Sountsov 2021).

    A quarter of the mean of (|x' - m|² - |x - m|²)² over transitions x → x', m the mean: large
    where a trajectory takes |x - m|², a slow statistic of many targets, far. Distances are those of
    the momentum's mass, so that units do not matter. The paper weighs proposals by their acceptance
    probability; successive states, rejected ones among them, are that on average, and cost no
    gradients.

    Args:
        states: Successive states, each ``(chain, *event)``.
        mass: The mass M of |v|² = v·Mv.
    """
    x = torch.stack(list(states))
    centred = x - x.mean((0, 1))
    size = math.prod(x.shape[2:])
    flat, inverse = centred.reshape(*x.shape[:2], size), mass.inverse(size).to(x)
    if inverse.shape == (size, size) and size > 1:
        root = mass.root(size).to(x)
        square = (flat @ root).double().square().sum(2)
    else:
        square = (flat.double().square() / inverse.reshape(-1)).sum(2)
    return (square[1:] - square[:-1]).square().mean().item() / 4
