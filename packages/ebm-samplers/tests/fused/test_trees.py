"""The kernel of NUTS against the torch engine: of the same seed the same trees."""

import functools
import math

import pytest
import torch
from targets import DoubleWell

from ebm_core import as_energy
from ebm_samplers import NUTS
from ebm_samplers.fused import chains as fused_chains
from ebm_samplers.fused import fused_energy

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WELL = DoubleWell().double()
ENGINES = ("torch", "fused")


@functools.cache
def wide():
    return as_energy(lambda x: x.square().sum(1) / 2)


def both(energy, *settings, x=X, **arguments):
    """Results of the two engines."""
    arguments = {"n_steps": 6, "keep": "trajectory", "seed": 2, **arguments}
    samplers = [NUTS(energy, *settings, engine=engine) for engine in ENGINES]
    return [sampler.sample(x, **arguments) for sampler in samplers]


def assert_same(want, have, tolerance=1e-10):
    assert want.stats.keys() == have.stats.keys()
    columns = {"final": (want.final, have.final), "potential": (want.potential, have.potential)}
    columns |= {name: (values, have.stats[name]) for name, values in want.stats.items()}
    if want.trajectory is not None:
        columns["trajectory"] = want.trajectory, have.trajectory
    if want.moments is not None:
        columns["moments"] = want.moments.variance, have.moments.variance
    for name, (a, b) in columns.items():
        exact = not a.dtype.is_floating_point
        bound = 0 if exact else tolerance
        torch.testing.assert_close(b, a, rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


def test_deep_trees():
    """Deeper than the uniforms that are made ahead, to the third block of each kind.

    A step, of which the gradient knows nothing, gives leaves of deep trees different weights.
    """
    two, none = torch.tensor([2.0, 0.0], dtype=torch.float64)
    energy = as_energy(lambda x: (x.square() / 2 + torch.where(x > 0.3, two, none)).sum(1))
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(1)).double()
    want, have = both(energy, 0.007, 9, x=x, n_steps=1)
    assert_same(want, have)
    assert (want.stats["tree_depth"] == 9).sum() > 5
    assert len(want.stats["n_steps"].unique()) > 5
    assert want.stats["acceptance_rate"].mean() < 0.95


@pytest.mark.parametrize("mass", (None, torch.tensor([0.5, 2.0])))
def test_one_chain_of_one_element(mass):
    mass = None if mass is None else mass[:1]
    energy = as_energy(lambda x: x[:, 0] ** 4 / 4 - x[:, 0].square())
    assert_same(*both(energy, 0.3, 4, mass, x=X[:1, :1]))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_weights_that_no_number_holds(dtype):
    """Steps so coarse that H falls by hundreds of nats."""
    energy = as_energy(lambda x: x.square().square().sum(1) / 4)
    x = torch.linspace(7, 12, 60, dtype=dtype)[:, None]
    want, have = both(energy, 0.1, 4, x=x, n_steps=1)
    fell = energy(x) - want.potential[:, 0] > 300
    assert fell.double().mean() > 0.5
    assert_same(want, have, 1e-10 if dtype == torch.float64 else 2e-4)


def test_states_that_diverge_at_10000_chains():
    """exp(-x^1.5) on x > 0, NaN beyond, and a wall of infinite energy."""
    energy = as_energy(lambda x: torch.where(x > 2, math.inf, x**1.5).sum(1))
    x = torch.rand(10_000, 1, generator=torch.Generator().manual_seed(0)).double() + 0.05
    want, have = both(energy, 0.4, 4, x=x, n_steps=4)
    assert_same(want, have)
    assert ((have.trajectory > 0) & (have.trajectory <= 2)).all()
    diverging = have.stats["diverging"].double().mean()
    assert 0.1 < diverging < 0.95


@pytest.mark.parametrize("keep", ("final", "trajectory", "moments"))
def test_where_legs_are_cut_changes_nothing(keep, monkeypatch):
    settings = {"n_steps": 20, "thin": 3, "burn_in": 4, "keep": keep, "beta": [0.5, 1, 1, 2, 1, 1]}
    want, have = both(WELL, 0.15, 4, **settings)
    assert_same(want, have, 1e-8)
    monkeypatch.setattr(fused_chains, "SECONDS", 1e-9)
    assert_same(have, both(WELL, 0.15, 4, **settings)[1], 1e-12)


def test_resume_and_callbacks():
    sampler, calls = NUTS(WELL, 0.15, 4, engine="fused"), []
    settings = {"n_steps": 6, "keep": "trajectory"}
    whole = sampler.sample(X, seed=2, **settings)
    part = sampler.sample(
        X, seed=2, callback=lambda r: calls.append(1) or len(calls) == 2, **settings
    )
    assert part.trajectory.shape[1] == 2
    rest = sampler.sample(resume=part.resume, **{**settings, "n_steps": 4})
    assert torch.equal(rest.final, whole.final)
    for name in ("n_steps", "tree_depth", "acceptance_rate", "energy"):
        parts = torch.cat([part.stats[name], rest.stats[name]], 1)
        assert torch.equal(parts, whole.stats[name])


def test_adapting_steps_and_schedules():
    samplers = [NUTS(WELL, 0.5, 4, target_acceptance=0.8, engine=engine) for engine in ENGINES]
    finals = []
    for sampler in samplers:
        torch.manual_seed(0)
        finals.append(sampler.sample_chain(X, 15))
    torch.testing.assert_close(*finals, rtol=1e-7, atol=1e-7)
    assert samplers[0].step_size == pytest.approx(samplers[1].step_size, rel=1e-9)
    assert_same(*both(WELL, lambda step: 0.2 / (1 + step), 4), 1e-9)


def test_more_leapfrogs_than_a_number_of_32_bits_counts():
    x = X[:2].float()
    fused = fused_energy(wide(), x, "nuts")
    settings = {"n_steps": 5000, "step_size": 0.004, "lengths": 9, "key": 3}
    each = fused.run("nuts", x.numpy(), thin=1, **settings)
    once = fused.run("nuts", x.numpy(), **settings)
    count, above, depth = once.statistics[4:, :, 0].astype(int)
    assert (above > 0).all()
    assert (above * 2**20 + count == each.statistics[4].astype(int).sum(1)).all()
    assert (depth == each.statistics[6].max(1)).all()


def test_a_first_leg_is_short_however_deep_trees_may_become(monkeypatch):
    steps, run = [], fused_chains.FusedEnergy.launch

    def noted(self, *args, **settings):
        steps.append(settings["n_steps"])
        return run(self, *args, **settings)

    sampler = NUTS(DoubleWell(), 0.1, engine="fused")
    sampler.sample(X.float(), n_steps=2, seed=0)
    monkeypatch.setattr(fused_chains.FusedEnergy, "launch", noted)
    sampler.sample(X.float(), n_steps=100_000, seed=0)
    assert 1 <= steps[1] < 1000
    assert max(steps) > 4 * steps[1]
