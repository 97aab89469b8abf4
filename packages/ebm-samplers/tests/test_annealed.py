"""Annealed Langevin: exact laws of Gaussian chains on the way down, weights of modes, engines."""

import math

import pytest
import torch

from ebm_core import ConfigurationError
from ebm_core.testing import BaseSamplerConformance
from ebm_samplers import AnnealedLangevin, LangevinDynamics
from ebm_samplers.fused.engine import FusedEnergy

ENGINES = ("torch", "fused")
PRECISION = torch.tensor([1.0, 0.3])
LIMIT = 5.5  # of |z|; some fifty of them are looked at
N = 40_000


def gaussian(x):
    return (PRECISION.to(x.dtype) * x.square()).sum(1) / 2


def smoothed(x, sigma):
    """N(0, 1/PRECISION) seen through noise."""
    return (x.square() / (1 / PRECISION.to(x.dtype) + sigma**2)).sum(1) / 2


def pair(x, sigma):
    """Modes of weights .25 and .75 at -3 and 3, of standard deviation .3, seen through noise."""
    variance = 0.3**2 + sigma**2
    left = math.log(0.25) - (x + 3).square().sum(1) / (2 * variance)
    right = math.log(0.75) - (x - 3).square().sum(1) / (2 * variance)
    return -torch.logaddexp(left, right)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1)
        )

    def forward(self, x, sigma):
        inputs = torch.cat([x, sigma.log().expand(len(x), 1)], 1)
        return (self.layers(inputs) / sigma).squeeze(1) + x.square().sum(1) / 2


class TestTemperatures(BaseSamplerConformance):
    """As any sampler, once it is down."""

    bias = 0.06

    @pytest.fixture(params=ENGINES)
    def make_sampler(self, request):
        return lambda energy: AnnealedLangevin(energy, [1.0], 0.05, engine=request.param)


def law(steps, start):
    """Mean and variance of each coordinate after steps x' = (1 - a) x + sqrt(b) ξ."""
    mean, variance = torch.full((2,), start).double(), torch.zeros(2).double()
    for a, b in steps:
        mean, variance = (1 - a) * mean, (1 - a) ** 2 * variance + b
    return mean, variance


LADDER = [9.0, 3.0, 2.0]
WAYS = {
    "temperature": (
        lambda engine: AnnealedLangevin(gaussian, LADDER, 0.6, steps_per_level=4, engine=engine),
        lambda level: (0.6 / 2 * PRECISION.double(), 2 * 0.6 / 2 * level),
    ),
    "noise": (
        lambda engine: AnnealedLangevin(
            smoothed, LADDER, 0.6, steps_per_level=4, levels="noise", engine=engine
        ),
        lambda level: (
            0.6 * (level / 2) ** 2 / (1 / PRECISION.double() + level**2),
            2 * 0.6 * (level / 2) ** 2,
        ),
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("way", WAYS)
def test_laws_on_the_way_down(way, engine):
    """Chains from one point, after each part of the ladder, by recursion of mean and variance."""
    make, step = WAYS[way]
    draws = (
        make(engine)
        .sample(torch.full((N, 2), 5.0), n_steps=20, keep="trajectory", seed=1)
        .trajectory.double()
    )
    rungs = [LADDER[min(n // 4, 2)] for n in range(20)]
    for n in (1, 4, 5, 8, 9, 20):
        mean, variance = law([step(level) for level in rungs[:n]], 5.0)
        x = draws[:, n - 1]
        assert ((x.mean(0) - mean) / (variance / N).sqrt()).abs().max() < LIMIT
        z = ((x - mean).square().mean(0) / variance - 1) * math.sqrt(N / 2)
        assert z.abs().max() < LIMIT


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_of_modes(engine):
    """Far apart; by plain steps of the last rung, all chains stay where they start."""
    n, ladder = 4000, torch.logspace(1, -1.5, 12)
    sampler = AnnealedLangevin(
        pair, ladder, 0.0005, steps_per_level=40, levels="noise", engine=engine
    )
    x = torch.full((n, 2), -3.0)
    down = sampler.sample(x, n_steps=600, seed=3).final
    assert abs((down[:, 0] > 0).double().mean().item() - 0.75) < 0.025
    near = down.abs() - 3  # around the modes as they are
    assert abs(near.std().item() / 0.3 - 1) < 0.1
    last = torch.tensor(ladder[-1].item())
    plain = LangevinDynamics(lambda x: pair(x, last), 0.0005, engine=engine)
    assert (plain.sample(x, n_steps=600, seed=3).final[:, 0] > 0).double().mean() == 0


def test_temperatures_find_modes():
    """Of a double well at which plain chains turn back."""

    def wells(x):
        return 20 * (x.square() - 1).square().sum(1)

    x = torch.ones(4000, 1)
    sampler = AnnealedLangevin(wells, [20.0, 8.0, 4.0, 2.0, 1.0], 0.002, steps_per_level=300)
    left = (sampler.sample(x, n_steps=1500, seed=1).final < 0).double().mean().item()
    plain = LangevinDynamics(wells, 0.002).sample(x, n_steps=1500, seed=1).final
    assert abs(left - 0.5) < 0.04
    assert (plain < 0).double().mean() < 0.01


SAMPLERS = {
    "temperature": lambda engine: AnnealedLangevin(
        gaussian, [4.0, 2.0, 1.0], 0.3, steps_per_level=5, engine=engine
    ),
    "noise": lambda engine: AnnealedLangevin(
        smoothed, [4.0, 2.0, 1.0], 0.3, steps_per_level=5, levels="noise", engine=engine
    ),
    "network": lambda engine: AnnealedLangevin(
        Network(), [4.0, 2.0, 1.0], 0.1, steps_per_level=5, levels="noise", engine=engine
    ),
}


@pytest.mark.parametrize("thin", (1, 3, 7))
@pytest.mark.parametrize("name", SAMPLERS)
def test_both_engines_go_down_alike(name, thin):
    x = torch.linspace(-2, 2, 10).view(5, 2)
    results = [
        SAMPLERS[name](engine).sample(
            x, n_steps=21, burn_in=2, thin=thin, keep="trajectory", seed=1, beta=[0.5] * 4 + [2.0]
        )
        for engine in ENGINES
    ]
    a, b = results
    for have, want in ((a.trajectory, b.trajectory), (a.potential, b.potential)):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
    assert a.stats.keys() == b.stats.keys()
    for key in a.stats:
        assert torch.equal(a.stats[key], b.stats[key]), key


@pytest.mark.parametrize("engine", ENGINES)
def test_potentials_are_those_of_the_rung(engine):
    sampler = SAMPLERS["noise"](engine)
    x = torch.linspace(-2, 2, 10).view(5, 2)
    result = sampler.sample(x, n_steps=13, keep="trajectory", seed=1)
    for n in range(13):
        sigma = torch.tensor([4.0, 2.0, 1.0][min(n // 5, 2)])
        torch.testing.assert_close(result.potential[:, n], smoothed(result.trajectory[:, n], sigma))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_can_be_cut(name, engine):
    """Within a rung, and between two."""
    x = torch.linspace(-2, 2, 10).view(5, 2)
    whole = SAMPLERS[name](engine).sample(x, n_steps=18, burn_in=1, seed=1, keep="trajectory")
    result = SAMPLERS[name](engine).sample(x, n_steps=2, burn_in=1, seed=1, keep="trajectory")
    parts = [result.trajectory]
    for n_steps in (2, 1, 9, 4):
        result = SAMPLERS[name](engine).sample(
            n_steps=n_steps, resume=result.resume, keep="trajectory"
        )
        parts.append(result.trajectory)
    assert torch.equal(torch.cat(parts, 1), whole.trajectory)
    assert torch.equal(result.final, whole.final)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_callback_may_use_the_sampler(engine):
    """At another rung, whose noise level is another."""
    sampler = SAMPLERS["noise"](engine)
    x = torch.linspace(-2, 2, 10).view(5, 2)
    options = {"n_steps": 16, "seed": 1, "keep": "trajectory"}
    alone = sampler.sample(x, **options)

    def callback(result):
        sampler.sample_chain(x, 11 + result.n_draws)
        sampler.sample(x, n_steps=1, seed=0)

    assert torch.equal(sampler.sample(x, callback=callback, **options).trajectory, alone.trajectory)


def test_doubles_and_floats_in_turn():
    sampler = SAMPLERS["noise"]("fused")
    x = torch.linspace(-2, 2, 10).view(5, 2)
    single = sampler.sample(x, n_steps=16, seed=1).final
    double = sampler.sample(x.double(), n_steps=16, seed=1).final
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
    assert torch.equal(sampler.sample(x, n_steps=16, seed=1).final, single)


@pytest.mark.parametrize("name", SAMPLERS)
def test_kernels_take_a_rung_as_numbers(name, monkeypatch):
    """One launch for each rung of a short run, without an array of settings; one trace in all."""
    sampler, sizes = SAMPLERS[name]("fused"), []
    original = FusedEnergy.launch

    def launch(self, *args, n_steps, step_size, noise_scale=1.0, **rest):
        sizes.append((n_steps, type(step_size), type(noise_scale)))
        options = {"n_steps": n_steps, "step_size": step_size, "noise_scale": noise_scale}
        return original(self, *args, **options, **rest)

    sampler.sample_chain(torch.zeros(5, 2), 30)  # which compiles, and learns the pace
    monkeypatch.setattr(FusedEnergy, "launch", launch)
    sampler.sample_chain(torch.zeros(5, 2), 30)
    assert [n for n, *_ in sizes if n] == [5, 5, 20]
    assert {kind for _, *kinds in sizes for kind in kinds} == {float}


def test_what_it_says_of_itself():
    sampler = AnnealedLangevin(gaussian, torch.tensor([3.0, 1.0]), steps_per_level=7)
    assert sampler.ladder == (3.0, 1.0)
    assert sampler.n_annealing_steps == 7
    assert sampler.explain(torch.zeros(5, 2)).engine == "fused"


def test_chains_that_would_stay_hot_are_refused():
    sampler = AnnealedLangevin(gaussian, [3.0, 1.0], steps_per_level=7)
    with pytest.raises(ConfigurationError, match="7 steps; wanted n_steps of at least 8"):
        sampler.sample_chain(torch.zeros(5, 2), 7)
    sampler.sample_chain(torch.zeros(5, 2), 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"ladder": []}, "ladder"),
        ({"ladder": 3.0}, "ladder"),
        ({"ladder": "31"}, "ladder"),
        ({"ladder": [0.1, 1.0]}, "1/beta"),
        ({"ladder": [1.0, 1.0]}, "descend"),
        ({"ladder": [1.0, 0.0]}, r"ladder\[1\]"),
        ({"ladder": [float("nan"), 0.1]}, r"ladder\[0\]"),
        ({"ladder": [2.0, 1.0], "step_size": -1.0}, "step_size"),
        ({"ladder": [2.0, 1.0], "steps_per_level": 0}, "steps_per_level"),
        ({"ladder": [2.0, 1.0], "levels": "beta"}, "levels"),
    ),
)
def test_ladders_that_make_no_sense(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        AnnealedLangevin(gaussian, **arguments)


def test_an_energy_without_levels_is_no_conditional_one():
    with pytest.raises(TypeError, match="positional argument"):
        AnnealedLangevin(gaussian, [2.0, 1.0], levels="noise").sample_chain(torch.zeros(5, 2), 200)
