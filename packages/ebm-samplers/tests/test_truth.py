"""Moments against exact values, on both engines: many chains, time averages, z-scores.

Chains are independent, so the standard error of a mean over chains of their time averages follows
from how these differ. Chains start from exact draws; that they move enough to lose what they were
given is shown by an unadjusted chain of the same step, whose bias the same comparison sees.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from ebm_core import as_energy
from ebm_samplers import (
    MALA,
    NUTS,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    UnderdampedLangevin,
)

ENGINES = ("torch", "fused")
N_CHAINS = 4000


def z_limit(n_statistics):
    """What the largest of so many |z| exceeds with a probability of at most 1e-6."""
    return ndtri(1 - 1e-6 / (2 * n_statistics))


def z_scores(values, exact):
    """Of statistics ``(chain, draw, k)`` with these expectations, from averages over draws."""
    means = values.double().mean(1)
    return (means.mean(0) - exact) / (means.std(0) / math.sqrt(len(means)))


@dataclass(frozen=True, eq=False)
class Target:
    """An energy about which everything is known.

    Attributes:
        energy: E.
        draw: Exact draws, ``n -> (n, d)``.
        observe: Statistics of states, ``(..., d) -> (..., k)``.
        expected: Their exact expectations, and that of E, ``(k + 1,)``.
        steps: Step sizes of MALA and HMC, and the mean number of leapfrogs.
    """

    energy: object
    draw: object
    observe: object
    expected: torch.Tensor
    steps: tuple[float, float, int]


def normals(n, d):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gaussian(covariance, steps):
    """Elements, squares, products of neighbours: of the states, and along the principal axes."""
    precision, root = covariance.inverse().float(), torch.linalg.cholesky(covariance)
    d, axes = len(covariance), torch.linalg.eigh(covariance)[1]

    def observe(x):
        y = x @ axes
        return torch.cat([x, x * x, x[..., 1:] * x[..., :-1], y * y, y[..., 1:] * y[..., :-1]], -1)

    # a quadratic statistic's mean is that over the 2d states at ± sqrt(d) times root's columns
    columns = math.sqrt(d) * root.T
    expected = observe(torch.cat([columns, -columns])).mean(0)
    return Target(
        as_energy(lambda x: ((x @ precision) * x).sum(1) / 2, event_shape=d),
        lambda n: normals(n, d) @ root.T,
        observe,
        torch.cat([expected, torch.tensor([d / 2])]),
        steps,
    )


def correlated():
    return torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64)


def autoregressive(d=100, rho=0.9):
    i = torch.arange(d, dtype=torch.float64)
    return rho ** (i[:, None] - i).abs()


def by_quadrature(energy, observe, low, high, n=401):
    """Expectations of statistics and of E, in two dimensions."""
    axis = torch.linspace(low, high, n, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    energies = energy(x)
    weights = torch.softmax(-energies, 0)
    return weights @ torch.cat([observe(x), energies[:, None]], 1)


def double_well():
    """Independent tilted double wells."""

    def energy(x):
        return (2 * (x * x - 1).square() + 0.3 * x).sum(1)

    def observe(x):
        a, b = x.unbind(-1)
        return torch.cat([x, x**2, x**3, x**4, (a * b)[..., None], (a * b).sign()[..., None]], -1)

    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    weights = torch.softmax(-energy(grid[:, None]), 0)
    cdf = (weights.cumsum(0) - weights / 2).numpy()

    def draw(n):
        uniforms = np.random.default_rng(0).random((n, 2))
        return torch.from_numpy(np.interp(uniforms, cdf, grid.numpy()))

    expected = by_quadrature(energy, observe, -4, 4)
    return Target(as_energy(energy, event_shape=2), draw, observe, expected, (0.03, 0.2, 5))


def mixture():
    """Three Gaussians of different weights and widths."""
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    centres = torch.tensor([[-1.5, 0.0], [1.5, 0.5], [0.0, 2.0]], dtype=torch.float64)
    widths = torch.tensor([0.6, 0.8, 0.5], dtype=torch.float64)
    logs, mu, precision = (weights / widths**2).log().float(), centres.float(), widths.float() ** -2

    def energy(x):
        squares = (x[:, None] - mu).square().sum(-1)
        return -torch.logsumexp(logs - squares * precision / 2, 1)

    def observe(x):
        return torch.cat([x, x**2, x.prod(-1, keepdim=True)], -1)

    def draw(n):
        k = torch.from_numpy(np.random.default_rng(0).choice(3, n, p=weights.numpy()))
        return centres[k] + widths[k, None] * normals(n, 2)

    square = torch.einsum("k,ki,kj->ij", weights, centres, centres)
    square += (weights @ widths**2) * torch.eye(2)
    exact = torch.cat([weights @ centres, square.diag(), square[:1, 1]])
    expected = by_quadrature(energy, observe, -8, 8)
    assert (expected[:-1] - exact).abs().max() < 1e-6
    return Target(as_energy(energy, event_shape=2), draw, observe, expected, (0.15, 0.5, 3))


TARGETS = {
    "correlated": cache(lambda: gaussian(correlated(), (0.04, 0.25, 6))),
    "100-D": cache(lambda: gaussian(autoregressive(), (0.012, 0.2, 8))),
    "double well": cache(double_well),
    "mixture": cache(mixture),
}


def mala(target, engine):
    return MALA(target.energy, target.steps[0], engine=engine)


def hmc(target, engine):
    return HamiltonianMonteCarlo(target.energy, *target.steps[1:], engine=engine)


def nuts(target, engine):
    engine = "auto" if engine == "fused" else engine
    return NUTS(target.energy, target.steps[1], max_tree_depth=4, engine=engine)


def z_of_run(target, sampler, n_steps=40, n_chains=N_CHAINS):
    """The largest |z| of the statistics and the energies of a run, and its result."""
    x = target.draw(n_chains).float()
    result = sampler.sample(x, n_steps=n_steps, thin=4, keep="trajectory", seed=3)
    values = target.observe(result.trajectory.double())
    values = torch.cat([values, result.potential.double()[..., None]], -1)
    return z_scores(values, target.expected).abs().max(), result


@pytest.mark.parametrize("name", TARGETS)
def test_exact_draws_have_the_exact_moments(name):
    target = TARGETS[name]()
    x = target.draw(20_000)
    values = torch.cat([target.observe(x), target.energy(x.float())[:, None]], 1)[:, None]
    assert z_scores(values, target.expected).abs().max() < z_limit(len(target.expected))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", (mala, hmc))
@pytest.mark.parametrize("name", TARGETS)
def test_moments_are_exact(name, make, engine):
    target = TARGETS[name]()
    z, result = z_of_run(target, make(target, engine))
    assert z < z_limit(len(target.expected))
    assert 0.4 < result.stats["acceptance_rate"].mean() < 0.95


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TARGETS)
def test_moments_of_trees_are_exact(name, engine):
    """Of fewer chains and steps, each of which goes further."""
    target = TARGETS[name]()
    z, result = z_of_run(target, nuts(target, engine), n_steps=8, n_chains=2000)
    assert z < z_limit(len(target.expected))
    assert result.stats["tree_depth"].double().mean() > 1


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", TARGETS)
def test_moments_of_underdamped_chains(name, engine):
    """Exact on Gaussians; elsewhere the bias, of fourth order in the step, is out of sight."""
    target = TARGETS[name]()
    step = target.steps[1] if name in ("correlated", "100-D") else target.steps[1] / 2
    sampler = UnderdampedLangevin(target.energy, step, 2.0, engine=engine)
    z, _ = z_of_run(target, sampler)
    assert z < z_limit(len(target.expected))


@pytest.mark.parametrize("name", TARGETS)
def test_the_comparison_sees_the_bias_of_unadjusted_steps(name):
    target = TARGETS[name]()
    z, _ = z_of_run(target, LangevinDynamics(target.energy, target.steps[0], engine="torch"))
    assert z > 2 * z_limit(len(target.expected))


def stationary(covariance, h, noise_scale=1.0):
    """The law of unadjusted steps: variance noise_scale²/(λ(1 - hλ/2)) along each eigenvector."""
    eigenvalues, axes = torch.linalg.eigh(covariance.inverse())
    return noise_scale**2 / (eigenvalues * (1 - h * eigenvalues / 2)), axes


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("noise_scale", (1.0, 0.7))
def test_unadjusted_variance_is_its_closed_form(noise_scale, engine):
    h, covariance = 0.09, correlated()
    variance, axes = stationary(covariance, h, noise_scale)
    x = (normals(20_000, 2) * variance.sqrt()) @ axes.T
    sampler = LangevinDynamics(TARGETS["correlated"]().energy, h, noise_scale, engine=engine)
    result = sampler.sample(x.float(), n_steps=600, thin=6, keep="trajectory", seed=3)
    values = torch.einsum("cti,ij->ctj", result.trajectory.double(), axes).square()
    assert z_scores(values, variance).abs().max() < z_limit(2)
    unbiased = noise_scale**2 * torch.linalg.eigvalsh(covariance).flip(0)
    assert z_scores(values, unbiased).abs().min() > 10


@pytest.mark.parametrize("engine", ENGINES)
def test_unadjusted_variance_in_100_dimensions(engine):
    h, covariance = 0.05, autoregressive()
    variance, axes = stationary(covariance, h)
    x = (normals(N_CHAINS, 100) * variance.sqrt()) @ axes.T
    sampler = LangevinDynamics(TARGETS["100-D"]().energy, h, engine=engine)
    result = sampler.sample(x.float(), n_steps=40, thin=4, keep="trajectory", seed=3)
    values = (result.trajectory.double() @ axes).square()
    assert z_scores(values, variance).abs().max() < z_limit(100)
    unbiased = torch.linalg.eigvalsh(covariance).flip(0)
    assert (z_scores(values, unbiased).abs() > 10).sum() > 50
