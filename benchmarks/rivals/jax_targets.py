"""The targets of `benchmarks/ess.py` as log densities of one state in JAX, ``(dim,) -> ()``.

Written as someone would who writes for JAX; their numbers (data, means, weights) come from the file
that the benchmark has written from the torch energies, ``BENCHMARK_NUMBERS``: one archive, entries
named ``target|name``. `check` gives densities at states, for comparison with torch.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

Array = Any
Numbers = dict[str, Array]


def hyperprior(mu: Array, log_tau: Array) -> Array:
    """N(0, 5²) of mu, and HalfCauchy(5) of tau by its logarithm."""
    return -(mu**2) / 50 - jnp.log1p(jnp.exp(2 * log_tau) / 25) + log_tau


def eight_schools(x: Array, n: Numbers) -> Array:
    """Not centred."""
    theta = x[0] + jnp.exp(x[1]) * x[2:]
    misfit = (n["effects"] - theta) / n["errors"]
    return hyperprior(x[0], x[1]) - 0.5 * jnp.sum(x[2:] ** 2) - 0.5 * jnp.sum(misfit**2)


def eight_schools_centred(x: Array, n: Numbers) -> Array:
    """Centred."""
    spread = (x[2:] - x[0]) * jnp.exp(-x[1])
    misfit = (n["effects"] - x[2:]) / n["errors"]
    prior = hyperprior(x[0], x[1]) - 0.5 * jnp.sum(spread**2) - 8 * x[1]
    return prior - 0.5 * jnp.sum(misfit**2)


def logistic(x: Array, n: Numbers) -> Array:
    """A regression with a standard normal prior."""
    return jnp.sum(jax.nn.log_sigmoid(n["signed"] @ x)) - 0.5 * jnp.sum(x**2)


def funnel(x: Array, n: Numbers) -> Array:
    """Neal's."""
    squares = jnp.sum(x[1:] ** 2) * jnp.exp(-x[0])
    return -0.5 * (x[0] ** 2 / 9 + squares + (x.size - 1) * x[0])


def banana(x: Array, n: Numbers) -> Array:
    """Haario's."""
    return -(x[0] ** 2) / 200 - 0.5 * (x[1] + 0.03 * (x[0] ** 2 - 100)) ** 2


def gaussian(x: Array, n: Numbers) -> Array:
    """Whitened by a matrix."""
    return -0.5 * jnp.sum((x @ n["whitening"]) ** 2)


def mixture(x: Array, n: Numbers) -> Array:
    """Round Gaussians of equal weight."""
    return logsumexp(-jnp.sum((x - n["centres"]) ** 2, 1) / (2 * 0.2**2))


def perceptron(x: Array, n: Numbers) -> Array:
    """Two hidden layers, and a Gaussian base."""
    hidden = jax.nn.silu(n["w1"] @ x + n["b1"])
    hidden = jax.nn.silu(n["w2"] @ hidden + n["b2"])
    return -(hidden @ n["w3"]) - jnp.sum(x**2) / 32


DENSITIES: dict[str, Callable[[Array, Numbers], Array]] = {
    "eight_schools": eight_schools,
    "eight_schools_centred": eight_schools_centred,
    "logistic": logistic,
    "funnel": funnel,
    "banana": banana,
    "gaussian_100": gaussian,
    "mixture_8": mixture,
    "mlp": perceptron,
}


class Density:
    """A log density of states of one dimension."""

    def __init__(self, target: str, numbers: Numbers, dim: int) -> None:
        self.f, self.numbers, self.dim = DENSITIES[target], numbers, dim

    def __call__(self, x: Array) -> Array:
        """Log p(x) + constant."""
        return self.f(x, self.numbers)


@functools.cache
def log_density(target: str) -> Density:
    """The log density of a target."""
    with np.load(os.environ["BENCHMARK_NUMBERS"]) as archive:
        prefix = f"{target}|"
        found = {k.removeprefix(prefix): archive[k] for k in archive if k.startswith(prefix)}
    dim = int(found.pop("dim"))
    return Density(target, {name: jnp.asarray(v, jnp.float32) for name, v in found.items()}, dim)


def check(target: str, states: list[list[float]]) -> dict[str, Any]:
    """Log densities and their gradients at states."""
    values, slopes = jax.vmap(jax.value_and_grad(log_density(target)))(jnp.asarray(states))
    return {"values": values.tolist(), "slopes": slopes.tolist()}
