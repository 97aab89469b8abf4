"""Geweke's joint test (2004, "Getting it right", JASA): one model of each family, all samplers.

Parameters and data drawn together have a law that is known. Transitions on the posterior leave that
law as it is if prior, likelihood, Jacobian and sampler fit together; chains that begin at the
parameters of their own data need no time to get there. So thousands of simulated data sets, a chain
each, are compared after some transitions with as many fresh ones: the largest distance of two
distribution functions obeys, by the bound of Dvoretzky, Kiefer and Wolfowitz in its form for two
samples (Wei & Dudley 2012), P(D > ε) < 2 exp(-n ε²).

A state is parameters and data side by side, so that every chain has data of its own. Where there is
a mass, that of the data is so large that they stay; where there is none, they move, too.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from ebm_core import EnergyFunction
from ebm_samplers import MALA, NUTS, HamiltonianMonteCarlo

N = 20_000
BOUND = math.sqrt(math.log(2 / 1e-6) / N)  # false alarm 1e-6 a statistic: 0.027
HELD = 1e12


class Model(EnergyFunction):
    """-log p(x, data), with a standard normal prior but for its scales."""

    prior_scale = 1.0  # by which the sampler is wrong

    def __init__(self):
        super().__init__()
        self.event_shape = torch.Size([self.dim + self.n_data])

    def forward(self, state):
        x, data = state[:, : self.dim], state[:, self.dim :]
        return self.prior_energy(x) - self.log_likelihood(x, data)

    def prior_energy(self, x):
        return (x / (self.scales * self.prior_scale)).square().sum(1) / 2

    def draw(self, seed):
        """Parameters and data."""
        generator = torch.Generator().manual_seed(seed)
        x = self.prior_draw(generator)
        return torch.cat([x, self.simulate(x, generator)], 1)

    def prior_draw(self, generator):
        return self.scales * torch.randn(N, self.dim, generator=generator)

    def observed(self, state):
        """Functions of parameters and data, ``(n, k)``."""
        x, data = state[:, : self.dim], state[:, self.dim :]
        fit = self.log_likelihood(x, data)
        return torch.cat([x, x * data.mean(1, keepdim=True), fit[:, None]], 1).numpy()


class Regression(Model):
    """Logistic: two coefficients, twelve labels."""

    dim, n_data, step = 2, 12, 0.7
    scales = torch.tensor([1.5, 1.0])
    design = torch.stack([torch.linspace(-2, 2, 12), torch.cos(torch.arange(12.0))])

    def log_likelihood(self, x, data):
        return functional.logsigmoid(data * (x @ self.design)).sum(1)

    def simulate(self, x, generator):
        p = torch.sigmoid(x @ self.design)
        return 2.0 * (torch.rand(p.shape, generator=generator) < p) - 1


class Hierarchy(Model):
    """Group means around a common one, by how much they differ from it in units of e^x₁."""

    dim, n_data, step = 5, 3, 0.5
    scales = torch.tensor([2.0, 0.7, 1.0, 1.0, 1.0])
    errors = torch.tensor([0.7, 1.0, 1.3])

    def means(self, x):
        return x[:, :1] + torch.exp(x[:, 1:2]) * x[:, 2:]

    def log_likelihood(self, x, data):
        return -((data - self.means(x)) / self.errors).square().sum(1) / 2

    def simulate(self, x, generator):
        means = self.means(x)
        return means + self.errors * torch.randn(means.shape, generator=generator)


class Counts(Model):
    """Poisson counts, whose rate grows with time."""

    dim, n_data, step = 2, 6, 0.6
    scales = torch.tensor([0.8, 0.5])
    times = torch.linspace(-1, 1, 6)

    def log_rates(self, x):
        return x[:, :1] + x[:, 1:] * self.times

    def log_likelihood(self, x, data):
        rates = self.log_rates(x)
        return (data * rates - rates.exp()).sum(1)

    def simulate(self, x, generator):
        return torch.poisson(self.log_rates(x).exp(), generator=generator)


class Spread(Model):
    """A scale with an exponential prior, sampled by its logarithm: a Jacobian."""

    dim, n_data, step = 1, 2, 0.5
    jacobian = True

    def prior_energy(self, x):
        return x[:, 0].exp() - (x[:, 0] if self.jacobian else 0)

    def log_likelihood(self, x, data):
        return -(data * (-x).exp()).square().sum(1) / 2 - self.n_data * x[:, 0]

    def prior_draw(self, generator):
        return torch.empty(N, 1).exponential_(generator=generator).log()

    def simulate(self, x, generator):
        return x.exp() * torch.randn(N, self.n_data, generator=generator)


MODELS = (Regression, Hierarchy, Counts, Spread)


def mass(model):
    return torch.cat([torch.ones(model.dim), torch.full((model.n_data,), HELD)])


SAMPLERS = {
    "MALA": lambda e, engine: MALA(e, e.step**2 / 4, engine=engine),
    "HMC": lambda e, engine: HamiltonianMonteCarlo(e, e.step, 4, mass=mass(e), engine=engine),
    "NUTS": lambda e, engine: NUTS(e, e.step, max_tree_depth=3, mass=mass(e), engine=engine),
}
CASES = [
    (kind, name)
    for kind in MODELS
    for name in SAMPLERS
    if name != "MALA" or kind in (Hierarchy, Spread)  # whose data are not whole numbers
]


def distance(a, b):
    """The largest of two samples' distribution functions, of all columns."""
    found = []
    for u, v in zip(a.T, b.T, strict=True):
        at = np.sort(np.concatenate([u, v]))
        ranks = (np.searchsorted(np.sort(w), at, "right") / len(w) for w in (u, v))
        found.append(np.abs(np.subtract(*ranks)).max())
    return max(found)


def deviation(model, make, engine="torch", n_steps=5):
    """From the law of fresh parameters and data, after some transitions."""
    start = model.draw(seed=1)
    end = make(model, engine).sample(start, n_steps=n_steps, seed=3).final
    first = torch.stack([start[:, 0], end[:, 0]])
    assert torch.corrcoef(first)[0, 1] < 0.97  # it moves
    if make is not SAMPLERS["MALA"]:
        data, held = start[:, model.dim :], end[:, model.dim :]
        assert (held - data).abs().max() < 1e-3 * (1 + data.abs().max())
        held.copy_(data)  # whole numbers are so again
    return distance(model.observed(end), model.observed(model.draw(seed=2)))


@pytest.mark.parametrize("engine", ("torch", "auto"))
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_joint_law_stays(kind, name, engine):
    assert deviation(kind(), SAMPLERS[name], engine) < BOUND


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_wrong_prior_shows(name):
    model = Hierarchy()
    model.prior_scale = 1.3
    assert deviation(model, SAMPLERS[name], n_steps=10) > 2 * BOUND


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_forgotten_jacobian_shows(name):
    model = Spread()
    model.jacobian = False
    assert deviation(model, SAMPLERS[name], n_steps=10) > 2 * BOUND
