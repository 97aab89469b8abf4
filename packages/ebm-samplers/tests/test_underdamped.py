"""Underdamped Langevin: exact laws on Gaussians, reversibility, volume; on both engines."""

import math

import pytest
import torch

from ebm_core import ConfigurationError
from ebm_samplers import Stream, UnderdampedLangevin, fill_normals

ENGINES = ("torch", "fused")
PRECISION = torch.tensor([1.0, 0.3])
LIMIT = 5.5  # of |z|; some twenty of them are looked at


def gaussian(x):
    return (PRECISION.to(x.dtype) * x.square()).sum(1) / 2


def wells(x):
    return (x.square() - 1).square().sum(1)


def turned(result):
    """A position with all momenta reversed."""
    carried = {"momentum": -result.resume["carried"]["momentum"]}
    return result.resume | {"carried": carried}


@pytest.mark.parametrize("engine", ENGINES)
def test_variances_on_gaussians(engine):
    """Of positions exact at any step; of momenta 1 - h²λ/4 (what a wrong splitting would shift)."""
    h, n = 1.2, 100_000
    sampler = UnderdampedLangevin(gaussian, h, 0.8, engine=engine)
    x = fill_normals(torch.empty(n, 2), 9, 0) / PRECISION.sqrt()
    result = sampler.sample(x, n_steps=40, seed=1)
    for values, variance in (
        (result.final, 1 / PRECISION),
        (result.resume["carried"]["momentum"], 1 - h**2 * PRECISION / 4),
    ):
        z = (values.double().square().mean(0) / variance - 1) * math.sqrt(n / 2)
        assert z.abs().max() < LIMIT
        assert (values.double().mean(0) / (variance / n).sqrt()).abs().max() < LIMIT
    moved = (result.final * x).double().mean(0) * PRECISION
    assert moved.abs().max() < 0.03  # nothing is left of the start


@pytest.mark.parametrize("engine", ENGINES)
def test_temperatures(engine):
    n = 50_000
    beta = torch.cat([torch.full((n,), 0.5), torch.full((n,), 2.0)])
    sampler = UnderdampedLangevin(gaussian, 0.5, 1.0, engine=engine)
    x = fill_normals(torch.empty(2 * n, 2), 9, 0) / (PRECISION.sqrt() * beta.sqrt()[:, None])
    final = sampler.sample(x, n_steps=40, beta=beta, seed=1).final.double()
    for part, b in ((final[:n], 0.5), (final[n:], 2.0)):
        z = (part.square().mean(0) * PRECISION * b - 1) * math.sqrt(n / 2)
        assert z.abs().max() < LIMIT


@pytest.mark.parametrize("engine", ENGINES)
def test_the_way_back_without_friction(engine):
    x = torch.linspace(-1, 1, 20, dtype=torch.float64).view(10, 2)
    sampler = UnderdampedLangevin(wells, 0.1, 0.0, engine=engine)
    there = sampler.sample(x, n_steps=25, seed=1)
    back = sampler.sample(n_steps=25, resume=turned(there))
    momentum = fill_normals(torch.empty(10, 2, dtype=torch.float64), 1, Stream.MOMENTUM)
    torch.testing.assert_close(back.final, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(back.resume["carried"]["momentum"], -momentum, rtol=0, atol=1e-12)
    assert (there.final - x).abs().min() > 1e-3


@pytest.mark.parametrize("friction", (0.0, 0.7))
@pytest.mark.parametrize("engine", ENGINES)
def test_volume(engine, friction):
    """A step shrinks the volume of phase space by exp(-γh) for each element, and else keeps it."""
    n_steps, h, width = 5, 0.2, 1e-4
    sampler = UnderdampedLangevin(wells, h, friction, engine=engine)
    place = torch.tensor([0.3, -0.8, 0.5, 0.9], dtype=torch.float64)  # x and momentum
    places = place + width * torch.cat([torch.eye(4), -torch.eye(4)]).double()
    # all chains with the noise of the first
    ends = []
    for at in places:
        start = sampler.sample(at[None, :2], n_steps=1, seed=1)
        resume = start.resume | {"x": at[None, :2], "carried": {"momentum": at[None, 2:]}}
        end = sampler.sample(n_steps=n_steps, resume=resume)
        ends.append(torch.cat([end.final[0], end.resume["carried"]["momentum"][0]]))
    jacobian = (torch.stack(ends[:4]) - torch.stack(ends[4:])) / (2 * width)
    want = math.exp(-2 * friction * h * n_steps)
    assert abs(torch.linalg.det(jacobian).item() / want - 1) < 1e-5


def test_both_engines_follow_schedules():
    x = torch.linspace(-1, 1, 10).view(5, 2)
    finals = [
        UnderdampedLangevin(
            wells, lambda n: 0.2 / (1 + 0.1 * n), lambda n: 0.1 * n, engine=engine
        ).sample(x, n_steps=20, thin=3, keep="trajectory", seed=1)
        for engine in ENGINES
    ]
    for name in ("trajectory", "final", "potential"):
        torch.testing.assert_close(*(getattr(r, name) for r in finals), rtol=1e-4, atol=1e-5)
    assert finals[0].stats.keys() == finals[1].stats.keys()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_can_be_cut(engine):
    x = torch.linspace(-1, 1, 10).view(5, 2)
    sampler = UnderdampedLangevin(wells, 0.1, 0.5, engine=engine)
    whole = sampler.sample(x, n_steps=20, seed=1)
    part = sampler.sample(x, n_steps=7, seed=1)
    assert torch.equal(sampler.sample(n_steps=13, resume=part.resume).final, whole.final)


@pytest.mark.parametrize("engine", ENGINES)
def test_chains_that_leave(engine):
    x = torch.tensor([[0.5, 0.5], [60.0, 0.0]])
    result = UnderdampedLangevin(wells, 0.2, 1.0, engine=engine).sample(x, n_steps=50, seed=1)
    assert result.stats["diverging"][:, 0].tolist() == [False, True]
    assert result.final[0].isfinite().all()


def test_calls_go_on_in_the_stream():
    sampler = UnderdampedLangevin(wells, 0.1)
    x = torch.zeros(5, 2)
    assert not torch.equal(sampler.sample_chain(x, 3), sampler.sample_chain(x, 3))


@pytest.mark.parametrize("friction", (-1.0, float("nan"), "much"))
def test_frictions_that_make_no_sense(friction):
    with pytest.raises(ConfigurationError, match="friction"):
        UnderdampedLangevin(wells, 0.1, friction)
