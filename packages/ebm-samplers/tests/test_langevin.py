"""Langevin samplers against closed forms; invariance with checks that the test could fail."""

import math

import numpy as np
import pytest
import torch

from ebm_core import ConfigurationError
from ebm_core.testing import QuadraticEnergy
from ebm_samplers import MALA, LangevinDynamics, langevin, metropolis

pytestmark = pytest.mark.usefixtures("torch_engine")


def gaussian(*precisions: float, dtype=torch.float64) -> QuadraticEnergy:
    return QuadraticEnergy(
        torch.zeros(len(precisions), dtype=dtype), torch.tensor(precisions, dtype=dtype)
    )


def variance_z(x: torch.Tensor, variance: torch.Tensor) -> float:
    """The largest z-score of the mean squares of independent draws, ``(n, d)``, of mean 0."""
    return ((x.square().mean(0) / variance - 1).abs().max() * math.sqrt(len(x) / 2)).item()


@pytest.mark.parametrize("noise_scale", (1.0, 0.5))
def test_unadjusted_has_its_own_variance(noise_scale):
    h, precision = 0.3, torch.tensor([1.0, 4.0], dtype=torch.float64)
    sampler = LangevinDynamics(gaussian(1.0, 4.0), h, noise_scale)
    x = sampler.sample(n_samples=40_000, n_steps=50, seed=1).final
    variance = noise_scale**2 / (precision * (1 - h * precision / 2))
    assert variance_z(x, variance) < 4.5
    assert variance_z(x, noise_scale**2 / precision) > 10


def test_a_step_is_the_formula():
    energy, x = gaussian(1.0, 4.0), torch.randn(3, 2, dtype=torch.float64)
    sampler = LangevinDynamics(energy, 0.1, noise_scale=0.0)
    expected = x - 0.1 * torch.tensor([1.0, 4.0]) * x
    torch.testing.assert_close(sampler.sample_chain(x, 1), expected)


def test_schedules_restart_with_each_call_and_are_checked():
    seen = []
    sampler = LangevinDynamics(
        gaussian(1.0), lambda step: seen.append(step) or 0.1 / (step + 1), lambda step: 0.0
    )
    x = torch.ones(1, 1, dtype=torch.float64)
    assert math.isclose(sampler.sample_chain(x, 3).item(), 0.9 * 0.95 * (1 - 0.1 / 3))
    sampler.sample_chain(x, 100)
    assert sorted(set(seen)) == list(range(100))
    result = sampler.sample(x, n_steps=4, burn_in=1, seed=0)
    assert math.isclose(result.stats["step_size"].item(), 0.1 / 5)
    for bad in (0.0, math.nan, -1.0):
        with pytest.raises(ConfigurationError, match="step_size"):
            LangevinDynamics(gaussian(1.0), lambda step, bad=bad: bad).sample_chain(x, 1)


@pytest.mark.parametrize("make", (lambda e: LangevinDynamics(e, 0.004), lambda e: MALA(e, 0.3)))
def test_beta_per_chain(make):
    beta = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).repeat_interleave(10_000)
    x = torch.randn(30_000, 2, dtype=torch.float64) / beta.sqrt()[:, None]
    sampler = make(gaussian(1.0, 1.0))
    x = sampler.sample_chain(x, 12, beta=beta)
    for b, chains in zip((0.5, 1.0, 2.0), x.view(3, 10_000, 2), strict=True):
        assert variance_z(chains, torch.full((2,), 1 / b)) < 4.5
    result = sampler.sample(x, n_steps=1, beta=beta, seed=0)
    torch.testing.assert_close(result.potential[:, 0], sampler.energy(result.final))


def test_correlated_gaussian():
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64)
    precision = covariance.inverse()
    sampler = MALA(lambda x: ((x @ precision) * x).sum(1) / 2, 0.08)
    root = torch.linalg.cholesky(covariance)
    x = torch.randn(20_000, 2, dtype=torch.float64) @ root.T
    x = sampler.sample(x, n_steps=40, seed=3).final @ torch.linalg.inv(root).T
    assert variance_z(x, torch.ones(2)) < 4.5
    assert abs((x[:, 0] * x[:, 1]).mean()) < 4.5 / math.sqrt(len(x))


GRID = np.linspace(-4, 4, 20_001)


def double_well(x):
    return (x**4 / 2 - 2 * x**2).sum(1)


def cdf() -> np.ndarray:
    density = np.exp(-(GRID**4 / 2 - 2 * GRID**2))
    total = np.cumsum((density[1:] + density[:-1]) / 2)
    return np.concatenate([[0], total / total[-1]])


def deviation_after_one_step(sampler, n: int = 100_000) -> float:
    """sup |F_n - F| over both coordinates after a transition from exact draws."""
    rng = np.random.default_rng(5)
    x = np.interp(rng.random((n, 2)), cdf(), GRID)
    final = sampler.sample(torch.from_numpy(x), n_steps=1, seed=7).final.numpy()
    ranks = np.sort(np.interp(final, GRID, cdf()), axis=0)
    return np.abs(ranks - (np.arange(n) + 0.5)[:, None] / n).max()


BOUND = math.sqrt(math.log(2 / 1e-7) / (2 * 100_000))  # Dvoretzky–Kiefer–Wolfowitz (Massart)


@pytest.mark.parametrize("h", (0.05, 0.2))
def test_mala_leaves_the_target_invariant(h):
    assert deviation_after_one_step(MALA(double_well, h)) < BOUND


def test_the_invariance_test_has_power(monkeypatch):
    assert deviation_after_one_step(LangevinDynamics(double_well, 0.2)) > BOUND
    monkeypatch.setattr(langevin, "metropolis", lambda delta, u: metropolis(-delta, u))
    assert deviation_after_one_step(MALA(double_well, 0.2)) > BOUND


def test_chains_that_diverge_stay_so_and_are_flagged():
    sampler = LangevinDynamics(lambda x: x.pow(4).sum(1), 0.1)
    x = torch.tensor([[0.1], [50.0]], dtype=torch.float64)
    result = sampler.sample(x, n_steps=20, seed=0, keep="trajectory")
    assert result.final.isfinite().flatten().tolist() == [True, False]
    assert not result.stats["diverging"][0].any()
    first = int(result.stats["diverging"][1].int().argmax())
    assert result.stats["diverging"][1, first:].all()
    assert "acceptance_rate" not in result.stats


def test_ten_thousand_chains_never_accept_a_state_that_is_not_finite():
    energy = lambda x: torch.where(x > 0, x.abs().sqrt() * x, float("nan")).sum(1)  # noqa: E731
    result = MALA(energy, 0.4).sample(torch.rand(10_000, 1) + 0.1, n_steps=30, seed=0)
    assert result.final.isfinite().all()
    assert (result.final > 0).all()
    assert result.stats["diverging"].float().mean() > 0.5


def test_one_gradient_a_step():
    calls = []

    def energy(x):
        calls.append(len(x))
        return x.square().sum(1)

    for sampler in (MALA(energy, 0.1), LangevinDynamics(energy, 0.1)):
        calls.clear()
        sampler.sample_chain(torch.zeros(2, 2), 7)
        assert len(calls) == 8


def test_the_noise_scale_can_be_set():
    x = torch.zeros(3, 2)
    sampler = LangevinDynamics(lambda x: x.square().sum(1), 0.1)
    sampler.noise_scale = 0.5
    assert sampler.noise_scale == 0.5
    expected = LangevinDynamics(sampler.energy, 0.1, noise_scale=0.5)
    runs = [s.sample(x, n_steps=3, seed=0).final for s in (sampler, expected)]
    assert torch.equal(*runs)
    with pytest.raises(ConfigurationError, match="noise_scale"):
        sampler.noise_scale = -1.0
