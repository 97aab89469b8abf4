"""HMC: dynamics, invariance, lengths, masses; and failures that it must not repeat."""

import math

import numpy as np
import pytest
import torch

from ebm_core import ConfigurationError, ShapeError
from ebm_core.testing import QuadraticEnergy
from ebm_samplers import HamiltonianMonteCarlo, Stream, hamiltonian, metropolis
from ebm_samplers.chains import Position, TorchChains

pytestmark = pytest.mark.usefixtures("torch_engine")

GRID = np.linspace(-4, 4, 20_001)
BOUND = math.sqrt(math.log(2 / 1e-7) / (2 * 100_000))  # Dvoretzky–Kiefer–Wolfowitz (Massart)


def double_well(x):
    return (x**4 / 2 - 2 * x**2).sum(1)


def deviation_after_one_step(sampler, n: int = 100_000) -> float:
    density = np.exp(-(GRID**4 / 2 - 2 * GRID**2))
    cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    cdf /= cdf[-1]
    x = np.interp(np.random.default_rng(5).random((n, 2)), cdf, GRID)
    final = sampler.sample(torch.from_numpy(x), n_steps=1, seed=7).final.numpy()
    ranks = np.sort(np.interp(final, GRID, cdf), axis=0)
    return np.abs(ranks - (np.arange(n) + 0.5)[:, None] / n).max()


@pytest.mark.parametrize("jitter", (0, 1))
@pytest.mark.parametrize("mass", (None, torch.tensor([0.5, 2.0])))
def test_leaves_the_target_invariant(jitter, mass):
    sampler = HamiltonianMonteCarlo(double_well, 0.35, 4, mass, jitter=jitter)
    assert deviation_after_one_step(sampler) < BOUND


def test_the_invariance_test_has_power(monkeypatch):
    sampler = HamiltonianMonteCarlo(double_well, 0.35, 4, jitter=0)
    monkeypatch.setattr(hamiltonian, "metropolis", lambda delta, u: metropolis(-delta, u))
    assert deviation_after_one_step(sampler) > BOUND
    monkeypatch.setattr(hamiltonian, "metropolis", lambda delta, u: metropolis(0 * delta, u))
    assert deviation_after_one_step(sampler) > BOUND


def dynamics(step_size, mass=None):
    sampler = HamiltonianMonteCarlo(double_well, step_size, mass=mass)
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chains = TorchChains(sampler, Position(x, key=0))
    return sampler, chains.state, chains.context.normals(Stream.MOMENTUM), chains.context


@pytest.mark.parametrize("mass", (None, torch.tensor([[1.0, 0.3], [0.3, 0.5]])))
def test_leapfrog_is_reversible(mass):
    sampler, state, momentum, context = dynamics(0.2, mass)
    end, p = sampler.leapfrog(state, momentum, 9, context)
    back, p = sampler.leapfrog(end, -p, 9, context)
    torch.testing.assert_close(back.x, state.x, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(p, -momentum, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mass", (None, torch.tensor([[1.0, 0.3], [0.3, 0.5]])))
def test_leapfrog_preserves_volume(mass):
    """The Jacobian of some steps, by central differences in each chain, has determinant 1."""
    sampler, state, momentum, context = dynamics(0.2, mass)
    columns = []
    for direction in 1e-5 * torch.eye(4, dtype=torch.float64):
        ends = []
        for moved in (direction, -direction):
            at = sampler.evaluate(state.x + moved[:2])
            end, p = sampler.leapfrog(at, momentum + moved[2:], 4, context)
            ends.append(torch.cat([end.x, p], 1))
        columns.append((ends[0] - ends[1]) / 2e-5)
    determinants = torch.linalg.det(torch.stack(columns, 2))
    torch.testing.assert_close(determinants, torch.ones(50).double(), rtol=0, atol=1e-4)
    assert torch.stack(columns, 2).sub(torch.eye(4)).abs().amax() > 0.5  # and is no identity


def test_leapfrog_conserves_the_hamiltonian_to_second_order():
    errors = []
    for n in (40, 80):
        sampler, state, momentum, context = dynamics(1 / n)
        end, p = sampler.leapfrog(state, momentum, n, context)
        change = end.energy - state.energy + (p.square() - momentum.square()).sum(1) / 2
        errors.append(change.abs().mean().item())
    assert 3.7 < errors[0] / errors[1] < 4.3


def test_lengths():
    class Uniform:
        def __init__(self, value):
            self.value = value

        def shared_uniform(self, stream):
            return self.value

    for length, jitter, low, high in (
        (10, 1.0, 1, 19),
        (10, 0.0, 10, 10),
        (10, 0.5, 6, 14),
        (1, 1.0, 1, 1),
    ):
        sampler = HamiltonianMonteCarlo(double_well, 0.1, length, jitter=jitter)
        drawn = [sampler.length(Uniform((i + 0.5) / 1900)) for i in range(1900)]
        assert (min(drawn), max(drawn), np.mean(drawn)) == (low, high, length) or jitter == 0.5
        assert abs(np.mean(drawn) - length) < 0.01
    short = HamiltonianMonteCarlo(double_well, 0.1, 10)
    steps = short.sample(n_samples=1, dim=2, n_steps=200, seed=0, keep="trajectory").stats[
        "n_steps"
    ]
    assert set(steps[0].tolist()) == set(range(1, 20))


def test_random_lengths_do_not_resonate():
    step_size = 2 * math.sin(math.pi / 10)  # ten leapfrogs are exactly one period
    x = 0.1 * torch.randn(4000, 1, dtype=torch.float64)
    normal = QuadraticEnergy(torch.zeros(1).double(), torch.ones(1).double())
    fixed = HamiltonianMonteCarlo(normal, step_size, 10, jitter=0).sample(x, n_steps=12, seed=0)
    assert fixed.final.square().mean() < 0.02
    moved = HamiltonianMonteCarlo(normal, step_size, 10).sample(x, n_steps=12, seed=0)
    assert abs(moved.final.square().mean() - 1) < 4.5 * math.sqrt(2 / 4000)


@pytest.mark.parametrize("kind", ("unit", "diagonal", "dense"))
def test_correlated_gaussian_with_masses(kind):
    covariance = torch.tensor([[1.0, 1.2], [1.2, 4.0]], dtype=torch.float64)
    precision = covariance.inverse()
    mass = {"unit": None, "diagonal": 1 / covariance.diag(), "dense": precision}[kind]
    sampler = HamiltonianMonteCarlo(lambda x: ((x @ precision) * x).sum(1) / 2, 0.25, 8, mass)
    result = sampler.sample(torch.zeros(20_000, 2).double(), n_steps=30, seed=2)
    root = torch.linalg.cholesky(covariance)
    white = result.final @ torch.linalg.inv(root).T
    moments = white.T @ white / len(white) - torch.eye(2)
    assert moments.abs().max() < 5 * math.sqrt(2 / len(white))
    hamiltonian_mean = result.stats["energy"].mean()  # H ~ chi-squared(4)/2
    assert abs(hamiltonian_mean - 2) < 5 * math.sqrt(2 / len(white))


def test_events_of_any_shape_and_beta():
    precision = torch.linspace(0.5, 2, 12, dtype=torch.float64).view(3, 4)
    energy = QuadraticEnergy(torch.zeros(3, 4).double(), precision)
    beta = torch.tensor([0.5, 2.0], dtype=torch.float64).repeat_interleave(5000)
    for mass in (None, precision, torch.diag(precision.flatten())):
        sampler = HamiltonianMonteCarlo(energy, 0.3, 5, mass)
        x = energy.exact_sample(10_000, seed=1) / beta.sqrt()[:, None, None]
        x = sampler.sample(x, n_steps=8, seed=1, beta=beta).final
        ratio = (x.square() * precision).view(2, 5000, 12).mean(1) * torch.tensor([[0.5], [2.0]])
        assert (ratio - 1).abs().max() < 5 * math.sqrt(2 / 5000)


def test_a_force_that_is_nan_is_never_a_state():
    """exp(-x^1.5), x > 0: with NaN forces turned into zeros, 78 % of the draws are exactly 0."""
    sampler = HamiltonianMonteCarlo(lambda x: x.pow(1.5).sum(1), 0.2, 6)
    result = sampler.sample(torch.rand(10_000, 1).double() + 0.2, n_steps=60, seed=4)
    assert (result.final > 0).all()
    assert result.stats["diverging"].any()
    mean, square = (math.gamma(k / 1.5) / math.gamma(1 / 1.5) for k in (2, 3))
    z = (result.final.mean() - mean) / math.sqrt((square - mean**2) / 10_000)
    assert abs(z) < 4.5


def test_large_errors_are_flagged():
    sampler = HamiltonianMonteCarlo(lambda x: 1e4 * x.square().sum(1), 0.1, 5, jitter=0)
    x = torch.full((10, 1), 0.01)
    result = sampler.sample(x, n_steps=3, seed=0)
    assert result.stats["diverging"].all()
    assert torch.equal(result.final, x)
    assert (result.stats["acceptance_rate"] == 0).all()


def test_gradients_of_a_transition():
    calls = []

    def energy(x):
        calls.append(1)
        return x.square().sum(1)

    HamiltonianMonteCarlo(energy, 0.1, 6, jitter=0).sample_chain(torch.zeros(2, 2), 3)
    assert len(calls) == 3 * 6 + 1


def test_masses_are_checked_at_construction():
    known = QuadraticEnergy(torch.zeros(3), torch.ones(3))
    not_definite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    for energy, mass, error in (
        (double_well, torch.tensor([1.0, -1.0]), ConfigurationError),
        (double_well, torch.zeros(2, 3), ConfigurationError),
        (double_well, -torch.eye(2), ConfigurationError),
        (double_well, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), ConfigurationError),
        (known, torch.ones(2), ShapeError),
        (known, torch.ones(3, 3), ConfigurationError),
        (QuadraticEnergy(torch.zeros(2), torch.ones(2)), not_definite, ConfigurationError),
    ):
        with pytest.raises(error, match="mass"):
            HamiltonianMonteCarlo(energy, mass=mass)
    HamiltonianMonteCarlo(double_well, mass=torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))
    HamiltonianMonteCarlo(double_well, mass=not_definite)  # a diagonal, if events are (2, 2)


def test_nested_runs_have_their_own_mass():
    mass = torch.tensor([[2.0, 0.5], [0.5, 1.0]])  # a matrix for events (2,), else a diagonal
    sampler = HamiltonianMonteCarlo(lambda x: x.square().flatten(1).sum(1), mass=mass)

    def other_events(result):
        sampler.sample_chain(torch.zeros(2, 2), 1)

    x = torch.zeros(2, 2, 2)
    nested = sampler.sample(x, n_steps=5, seed=0, callback=other_events)
    assert torch.equal(nested.final, sampler.sample(x, n_steps=5, seed=0).final)


def test_wrong_settings_are_refused():
    for wrong in (
        {"step_size": 0},
        {"step_size": math.nan},
        {"n_leapfrog_steps": 0},
        {"n_leapfrog_steps": 2.5},
        {"jitter": 1.5},
        {"mass": torch.tensor([1.0, math.inf])},
        {"engine": "gpu"},
    ):
        with pytest.raises(ConfigurationError):
            HamiltonianMonteCarlo(double_well, **wrong)
    sampler = HamiltonianMonteCarlo(double_well, mass=torch.ones(3))
    with pytest.raises(ShapeError, match="mass"):
        sampler.sample_chain(torch.zeros(1, 2), 1)
