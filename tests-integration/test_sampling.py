"""Samplers on energies whose moments are known: many chains, final states, z-scores."""

import pytest
import torch

from ebm_core import SupportError, as_energy, spin
from ebm_energies import (
    BayesianLogisticRegression,
    Gaussian,
    GaussianMixture,
    Harmonic,
    IllConditionedGaussian,
    StudentT,
)
from ebm_samplers import MALA, HamiltonianMonteCarlo, LangevinDynamics

N_CHAINS = 4000
Z_LIMIT = 5.0  # a hundred comparisons: false alarm 6e-5

CORRELATED = Gaussian(torch.tensor([1.0, -1.0]), covariance=torch.tensor([[1.0, 0.9], [0.9, 1.0]]))
ENERGIES = {
    "correlated": CORRELATED,
    "ill-conditioned": IllConditionedGaussian(3, condition_number=20.0, rotation_seed=0),
    "stiff": Harmonic(25.0, dim=2),
    "mixture": GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), weights=[0.3, 0.7]),
    "tempered": CORRELATED.tempered(2.0),
}


def exact_moments(name):
    """Mean and covariance; a Gaussian at temperature T has T times the covariance."""
    if name == "tempered":
        return CORRELATED.mean(), 2.0 * CORRELATED.covariance()
    return ENERGIES[name].mean(), ENERGIES[name].covariance()


def largest_z_score(x, mean, covariance):
    """Of the means of x and of all products of two elements, against exact values."""
    centred = (x - mean).double()
    products = (centred[:, :, None] * centred[:, None, :]).flatten(1)
    statistics = torch.cat((centred, products), dim=1)
    exact = torch.cat((torch.zeros_like(mean), covariance.flatten())).double()
    error = statistics.mean(0) - exact
    return (error / (statistics.std(0) / len(x) ** 0.5)).abs().max().item()


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize(
    ("sampler", "n_steps"),
    (
        (lambda e, h: HamiltonianMonteCarlo(e, step_size=1.0 * h, n_leapfrog_steps=8), 30),
        (lambda e, h: MALA(e, step_size=0.5 * h**2), 300),
    ),
    ids=("HMC", "MALA"),
)
def test_adjusted_samplers_reach_the_exact_moments(name, sampler, n_steps):
    energy = ENERGIES[name]
    mean, covariance = exact_moments(name)
    smallest_scale = torch.linalg.eigvalsh(covariance).min().sqrt().item()
    result = sampler(energy, smallest_scale).sample(n_samples=N_CHAINS, n_steps=n_steps, seed=1)
    assert largest_z_score(result.final, mean, covariance) < Z_LIMIT
    assert not result.stats["diverging"].any()


def test_the_comparison_sees_the_bias_of_unadjusted_steps():
    energy = ENERGIES["stiff"]
    result = LangevinDynamics(energy, step_size=0.02).sample(
        n_samples=N_CHAINS, n_steps=100, seed=1
    )
    mean, covariance = exact_moments("stiff")
    assert largest_z_score(result.final, mean, covariance) > Z_LIMIT
    biased = covariance / (1 - 0.02 * 25.0 / 2)  # its exact stationary law
    assert largest_z_score(result.final, mean, biased) < Z_LIMIT


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_draws_have_the_dtype_of_the_energy(dtype):
    energy = Gaussian(torch.zeros(2, dtype=dtype))
    result = MALA(energy, step_size=0.1).sample(n_samples=3, n_steps=2, seed=0)
    assert result.final.dtype == result.potential.dtype == dtype


def test_exact_draws_stay_exact():
    energy = StudentT(5.0, torch.zeros(2))
    start = energy.exact_sample(N_CHAINS, seed=3)
    moved = HamiltonianMonteCarlo(energy, step_size=0.5, n_leapfrog_steps=5).sample(
        start, n_steps=5, seed=4
    )
    change = moved.final.abs().clamp(max=10).mean(1) - start.abs().clamp(max=10).mean(1)
    z_score = change.mean() / (change.std() / N_CHAINS**0.5)
    assert z_score.abs() < Z_LIMIT


def test_a_posterior_is_sampled_like_any_other_energy():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 3, generator=generator)
    labels = (features[:, 0] + 0.5 * torch.randn(200, generator=generator) > 0).float()
    energy = BayesianLogisticRegression(features, labels)
    result = HamiltonianMonteCarlo(energy, step_size=0.1, n_leapfrog_steps=10).sample(
        n_samples=200, n_steps=100, seed=0
    )
    mean = result.final.mean(0)
    assert mean[0] > 4 * mean[1:].abs().max()


@pytest.mark.parametrize("sampler", (LangevinDynamics, MALA, HamiltonianMonteCarlo))
def test_gradient_samplers_refuse_discrete_supports(sampler):
    energy = as_energy(lambda x: x.sum(1), support=spin)
    options = {"n_leapfrog_steps": 2} if sampler is HamiltonianMonteCarlo else {}
    with pytest.raises(SupportError, match="Gibbs"):
        sampler(energy, step_size=0.1, **options)
