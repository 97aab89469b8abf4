"""A target of which everything is known, and how far samplers take exact draws away from it.

The target has two wells and more, is skew, and its second coordinate is Gaussian given the first,
so that the distribution functions of several projections are integrals over one variable. From
exact draws an adjusted sampler gives exact draws, chains independent: the largest distance of each
projection's empirical distribution function from the exact one obeys the bound of Dvoretzky, Kiefer
and Wolfowitz with Massart's constant (1990).
"""

import functools
import math

import numpy as np
import torch
from scipy.special import erf, ndtr, ndtri

from ebm_core import as_energy

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


def deviation(sampler, beta=ONE, lengths=(1, 50)):
    """The distance after one transition; if that is within the bound, the larger after 50."""
    x, found = exact_draws(beta), []
    for n_steps in lengths:
        per_chain = None if beta is ONE else torch.from_numpy(beta).float()
        result = sampler.sample(x, n_steps=n_steps, seed=7, beta=per_chain)
        assert result.stats["acceptance_rate"].mean() > 0.2
        states, energy = (t.double().numpy() for t in (result.final, result.potential[:, 0]))
        found.append(distance(states, energy, beta))
        if found[-1] > BOUND:
            break
    return max(found)


DIAGONAL = torch.tensor([1.5, 0.8])
ENERGY = as_energy(bent_wells, event_shape=2)
