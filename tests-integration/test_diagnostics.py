"""Every sampler's runs are understood by the diagnostics, and end when these say so."""

import inspect

import pytest
import torch

import ebm_samplers
from ebm_energies import Gaussian
from ebm_models import BernoulliRBM
from ebm_samplers import (
    MALA,
    NUTS,
    AnnealedLangevin,
    BlockGibbs,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    MarkovSampler,
    UnderdampedLangevin,
)
from ebm_utils import StopWhen, ess, rhat, summary, to_arviz

ENERGY = Gaussian(torch.zeros(2), covariance=torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
STATES = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


def machine():
    """Two visible units and one hidden unit that ties them, with biases that even both out."""
    rbm = BernoulliRBM(2, 1)
    with torch.no_grad():
        rbm.weight.copy_(torch.tensor([[2.0, -1.0]]))
    return rbm.requires_grad_(False)


MACHINE = machine()
SAMPLERS = {
    LangevinDynamics: lambda **o: LangevinDynamics(ENERGY, step_size=0.1, **o),
    UnderdampedLangevin: lambda **o: UnderdampedLangevin(ENERGY, step_size=0.5, friction=1.0, **o),
    MALA: lambda **o: MALA(ENERGY, step_size=0.5, **o),
    HamiltonianMonteCarlo: lambda **o: HamiltonianMonteCarlo(
        ENERGY, step_size=0.5, n_leapfrog_steps=4, **o
    ),
    NUTS: lambda **o: NUTS(ENERGY, step_size=0.5, **o),
    AnnealedLangevin: lambda **o: AnnealedLangevin(ENERGY, [1.0], step_size=0.1, **o),
    BlockGibbs: lambda **o: BlockGibbs(MACHINE, **o),
}


def exact_mean(sampler):
    """Of the sampler's energy, ``(2,)``."""
    if sampler is BlockGibbs:
        return (-MACHINE(STATES)).softmax(0) @ STATES
    return torch.zeros(2)


def test_every_sampler_is_here():
    public = (getattr(ebm_samplers, name) for name in ebm_samplers.__all__)
    samplers = {c for c in public if inspect.isclass(c) and issubclass(c, MarkovSampler)} - {
        MarkovSampler
    }
    assert samplers == set(SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda c: c.__name__)
def test_runs_end_when_they_are_long_enough(sampler):
    stop = StopWhen(ess=1000, rhat=1.05, min_draws=20)
    run = SAMPLERS[sampler]()
    options = {"n_samples": 64, "burn_in": 20, "keep": "trajectory", "seed": 0}
    result = run.sample(n_steps=1000, callback=stop, **options)
    assert stop.stopped
    assert 20 <= result.n_draws == stop.checks[-1].n_draws < 1000
    assert ess(result).min() >= 1000
    assert rhat(result).max() < 1.05
    whole = run.sample(n_steps=result.n_draws, **options)
    torch.testing.assert_close(result.trajectory, whole.trajectory)
    assert run.sample(n_steps=1, resume=result.resume).final.isfinite().all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda c: c.__name__)
def test_runs_end_on_moments(sampler):
    stop = StopWhen(ess=1000, rhat=1.05, min_draws=20)
    result = SAMPLERS[sampler]().sample(
        n_samples=64, n_steps=1000, burn_in=20, keep="moments", seed=0, callback=stop
    )
    assert stop.stopped
    assert result.moments.count == stop.checks[-1].n_draws < 1000


@pytest.mark.parametrize("keep", ("trajectory", "moments", "final"))
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda c: c.__name__)
def test_summaries(sampler, keep):
    """Means within their errors: 60 comparisons, of which one is beyond 4 in 260 runs."""
    result = SAMPLERS[sampler]().sample(n_samples=64, n_steps=40, burn_in=20, keep=keep, seed=0)
    found = summary(result)
    assert found.kept == keep
    distance = found.table["mean"] - exact_mean(sampler)
    assert (distance / found.table["mcse_mean"]).abs().max() < 4
    has_bfmi = "energy" in result.stats and keep == "trajectory"
    assert ("bfmi" in found.totals) == has_bfmi
    assert "step_size" in found.totals
    assert ("n_diverging" in found.totals) == ("diverging" in result.stats)
    assert found.totals.get("n_diverging", 0) == 0
    if keep == "trajectory":
        assert set(to_arviz(result).sample_stats) == {"lp", *result.stats}


def test_chains_that_never_move_are_counted():
    """From 20 a step on x⁴/4 overshoots to -780, and is refused for ever."""
    start = torch.zeros(1000, 1)
    start[:12] = 20.0
    sampler = MALA(lambda x: x.pow(4).sum(1) / 4, step_size=0.1)
    found = summary(sampler.sample(start, n_steps=30, keep="trajectory", seed=0))
    assert "12 of 1000 chains never moved: lower step_size" in found.warnings
    found = summary(sampler.sample(start, n_steps=30, keep="moments", seed=0))
    assert "12 of 1000 chains never moved: lower step_size" in found.warnings
    found = summary(sampler.sample(start, n_steps=30, seed=0))
    assert found.warnings[0].startswith("12 of 1000 chains accepted less than 1% of their")
