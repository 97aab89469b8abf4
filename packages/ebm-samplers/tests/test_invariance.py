"""Exact draws in, transitions, exact draws out; and samplers broken on purpose, which must fail.

The target has two wells and more, is skew, and its second coordinate is Gaussian given the first,
so that the distribution functions of several projections are integrals over one variable. From
exact draws an adjusted sampler gives exact draws, chains independent: the largest distance of each
projection's empirical distribution function from the exact one obeys the bound of Dvoretzky, Kiefer
and Wolfowitz with Massart's constant (1990).
"""

import functools
import inspect
import math
import re
import textwrap

import numpy as np
import pytest
import torch
from scipy.special import erf, ndtr, ndtri

from ebm_core import as_energy
from ebm_samplers import MALA, HamiltonianMonteCarlo
from ebm_samplers.fused import codegen
from ebm_samplers.noise import Noise

ENGINES = ("torch", "fused")
N = 100_000
BOUND = math.sqrt(math.log(2 / 1e-6) / (2 * N))  # false alarm 1e-6 a projection: 0.0085
GRID = np.linspace(-14, 14, 3001)


def well(x):
    return x * x / 6 + 1.5 * np.cos(2 * x + 0.5)


def bent_wells(x):
    """well(x₀) + (x₁ - sin 2x₀)²/2."""
    a, b = x[:, 0], x[:, 1]
    return a.square() / 6 + 1.5 * torch.cos(2 * a + 0.5) + (b - torch.sin(2 * a)).square() / 2


class Law:
    """The density ∝ exp(-beta E): exact draws, and distribution functions of projections."""

    def __init__(self, beta):
        self.root = math.sqrt(beta)
        density = np.exp(-beta * well(GRID))
        weights = density / density.sum()
        self.first = np.cumsum((density + np.roll(density, 1)) / 2)
        self.first /= self.first[-1]
        self.heights = np.linspace(-14, 14, 1001)
        self.second = ndtr(self.root * (self.heights[:, None] - np.sin(2 * GRID))) @ weights
        self.energies = well(GRID).min() + np.linspace(0, math.sqrt(40 / beta), 1001) ** 2
        above = np.maximum(self.energies[:, None] - well(GRID), 0)
        self.energy = erf(self.root * np.sqrt(above)) @ weights

    def draw(self, n, rng):
        x = np.interp(rng.random(n), self.first, GRID)
        return np.stack([x, np.sin(2 * x) + rng.standard_normal(n) / self.root], 1)

    def ranks(self, x, energy):
        """What is uniform in (0, 1) if the draws are exact, ``(projection, n)``."""
        first = np.interp(x[:, 0], GRID, self.first)
        z = self.root * (x[:, 1] - np.sin(2 * x[:, 0]))
        radius = -np.expm1(-(ndtri(first) ** 2 + z**2) / 2)
        second = np.interp(x[:, 1], self.heights, self.second)
        return np.stack(
            [first, second, ndtr(z), radius, np.interp(energy, self.energies, self.energy)]
        )


law = functools.cache(Law)
ONE, THREE = np.ones(N), np.resize([0.5, 1.0, 2.0], N)  # beta of each chain


def exact_draws(beta, seed=0):
    x, rng = np.empty((N, 2)), np.random.default_rng(seed)
    for b in np.unique(beta):
        x[beta == b] = law(b).draw((beta == b).sum(), rng)
    return torch.from_numpy(x).float()


def distance(x, energy, beta):
    """sup |F_n - F|, the largest of all projections."""
    ranks = np.empty((5, N))
    for b in np.unique(beta):
        ranks[:, beta == b] = law(b).ranks(x[beta == b], energy[beta == b])
    ranks.sort(axis=1)
    steps = np.arange(N + 1) / N
    return max((ranks - steps[:-1]).max(), (steps[1:] - ranks).max())


def deviation(sampler, beta=ONE):
    """The distance after one transition; if that is within the bound, the larger after 50."""
    x, found = exact_draws(beta), []
    for n_steps in (1, 50):
        per_chain = None if beta is ONE else torch.from_numpy(beta).float()
        result = sampler.sample(x, n_steps=n_steps, seed=7, beta=per_chain)
        assert result.stats["acceptance_rate"].mean() > 0.2
        states, energy = (t.double().numpy() for t in (result.final, result.potential[:, 0]))
        found.append(distance(states, energy, beta))
        if found[-1] > BOUND:
            break
    return max(found)


def mala(energy, engine):
    return MALA(energy, 0.35, engine=engine)


def hmc(energy, engine, mass=None, jitter=1.0):
    return HamiltonianMonteCarlo(energy, 0.6, 3, mass, jitter=jitter, engine=engine)


DIAGONAL = torch.tensor([1.5, 0.8])
CASES = {
    "MALA": (mala, ONE),
    "MALA, beta per chain": (mala, THREE),
    "HMC, fixed length": (functools.partial(hmc, jitter=0), ONE),
    "HMC, diagonal mass, beta per chain": (functools.partial(hmc, mass=DIAGONAL), THREE),
}
ENERGY = as_energy(bent_wells, event_shape=2)


@pytest.mark.parametrize("beta", (ONE, THREE), ids=("beta 1", "beta per chain"))
def test_exact_draws_are_exact(beta):
    x = exact_draws(beta)
    assert distance(x.double().numpy(), bent_wells(x.double()).numpy(), beta) < BOUND


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_leaves_the_target_invariant(name, engine):
    make, beta = CASES[name]
    assert deviation(make(ENERGY, engine), beta) < BOUND


# What is wrong: a pattern and its replacement in a method of the torch engine; those in the text
# of kernels, which differ little from one another (and take seconds to compile each).
UNTESTED = ("transition", r"metropolis\(delta", "metropolis(0 * delta")
OLD_UNIFORMS = (Noise, "uniforms", r"self\.first_chain, self\.first_step", "self.first_chain, 0")
OLD_NORMALS = (Noise, "normals", r"self\.first_step \* self\.size", "0")
BROKEN = {
    "MALA without its test": (
        mala,
        (MALA, *UNTESTED),
        ((r"d = w\[delta", "d = real(0) * w[delta"),),
    ),
    "HMC without its test": (hmc, (HamiltonianMonteCarlo, *UNTESTED), ()),
    "MALA, a wrong sign": (mala, (MALA, "transition", r"w / 2 - noise", "w / 2 + noise"), ()),
    "HMC, a wrong sign": (
        hmc,
        (HamiltonianMonteCarlo, "transition", r"after - before", "before - after"),
        ((r"\(after - before\)", "(before - after)"),),
    ),
    "MALA, old uniforms": (mala, OLD_UNIFORMS, ()),
    "HMC, old uniforms": (
        hmc,
        OLD_UNIFORMS,
        (
            (r"\baccept_block, count,", "0, count,"),
            (r"\(step & 3\) \* UNIFORM_PLANE \+ \(\(step >> 2\) - accept_block\) \* L", "0"),
        ),
    ),
    "MALA, old noise": (
        mala,
        OLD_NORMALS,
        (
            (r"\bblock, count,", "0, count,"),
            (r"step \* D - 4 \* block", "0"),
        ),
    ),
    "HMC, old momenta": (hmc, OLD_NORMALS, ()),
}


def break_method(patch, owner, name, pattern, replacement):
    method = getattr(owner, name)
    text, n = re.subn(pattern, replacement, textwrap.dedent(inspect.getsource(method)))
    assert n == 1, f"{owner.__name__}.{name} has changed: adapt the pattern {pattern}"
    namespace = dict(method.__globals__)
    exec(text, namespace)
    patch.setattr(owner, name, namespace[name])


def break_kernels(patch, *edits):
    """Kernels generated from now on; returns the patterns found in their texts."""
    right, found = codegen.compiled_text, set()

    def wrong(kernel):
        text = right(kernel)
        for pattern, replacement in edits:
            text, n = re.subn(pattern, replacement, text)
            found.update([pattern] * n)
        return text

    patch.setattr(codegen, "compiled_text", wrong)
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_broken_samplers_fail(name, monkeypatch):
    make, in_torch, _ = BROKEN[name]
    break_method(monkeypatch, *in_torch)
    assert deviation(make(ENERGY, "torch")) > 2 * BOUND


@pytest.mark.parametrize("name", [name for name, (*_, in_kernels) in BROKEN.items() if in_kernels])
def test_broken_kernels_fail(name, monkeypatch):
    make, _, in_kernels = BROKEN[name]
    found = break_kernels(monkeypatch, *in_kernels)
    unknown = as_energy(bent_wells, event_shape=2)  # for which no kernel is remembered
    assert deviation(make(unknown, "fused")) > 2 * BOUND
    assert found == {pattern for pattern, _ in in_kernels}
