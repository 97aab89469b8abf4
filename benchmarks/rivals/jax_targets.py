"""The targets of `benchmarks/ess.py` as log densities of one state in JAX, ``(dim,) -> ()``.

Written as someone would who writes for JAX; their numbers (data, means, weights) come from the file
that the benchmark has written from the torch energies, ``BENCHMARK_NUMBERS``: one archive, entries
named ``target|name``, with ``kind`` the name of the energy's class. `check` gives densities at
states, for comparison with torch.
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


def whitened(z: Array, whitening: Array) -> Array:
    """By a factor of the precision, a matrix or its diagonal."""
    return whitening * z if whitening.ndim == 1 else whitening @ z


def gaussian(x: Array, n: Numbers) -> Array:
    """A Gaussian."""
    return -0.5 * jnp.sum(whitened(x - n["location"], n["whitening"]) ** 2)


def mixture(x: Array, n: Numbers) -> Array:
    """A mixture of Gaussians of diagonal covariances."""
    z = n["whitening"] * (x - n["means"])
    logs = jnp.log(n["weights"]) + jnp.log(jnp.abs(n["whitening"])).sum(1)
    return logsumexp(logs - 0.5 * jnp.sum(z * z, 1))


def funnel(x: Array, n: Numbers) -> Array:
    """Neal's."""
    neck, rest = x[0], x[1:]
    squares = jnp.sum(rest * rest) * jnp.exp(-neck)
    return -0.5 * ((neck / n["scale"]) ** 2 + squares + rest.size * neck)


def banana(x: Array, n: Numbers) -> Array:
    """In two dimensions or more."""
    straight = x[1] + n["curvature"] * (x[0] ** 2 - n["scale"] ** 2)
    return -0.5 * ((x[0] / n["scale"]) ** 2 + straight**2 + jnp.sum(x[2:] ** 2))


def regression(x: Array, n: Numbers) -> Array:
    """Logistic, with a Gaussian prior."""
    margins = n["signed_features"] @ x
    return jnp.sum(jax.nn.log_sigmoid(margins)) - 0.5 * jnp.sum((x / n["prior_scale"]) ** 2)


def perceptron(x: Array, n: Numbers) -> Array:
    """Hidden layers with SiLU, and a Gaussian base."""
    h, i = x, 0
    while f"hidden.{i}.weight" in n:
        h = jax.nn.silu(n[f"hidden.{i}.weight"] @ h + n[f"hidden.{i}.bias"])
        i += 1
    energy = (n["output.weight"] @ h + n["output.bias"])[0]
    return -energy - 0.5 * jnp.sum((x / n["base_scale"]) ** 2)


DENSITIES: dict[str, Callable[[Array, Numbers], Array]] = {
    "Banana": banana,
    "BayesianLogisticRegression": regression,
    "Gaussian": gaussian,
    "GaussianMixture": mixture,
    "IllConditionedGaussian": gaussian,
    "MLPEnergy": perceptron,
    "NealFunnel": funnel,
}


class Density:
    """A log density of states of one dimension."""

    def __init__(self, kind: str, numbers: Numbers, dim: int) -> None:
        self.f, self.numbers, self.dim = DENSITIES[kind], numbers, dim

    def __call__(self, x: Array) -> Array:
        """Log p(x) + constant."""
        return self.f(x, self.numbers)


@functools.cache
def log_density(target: str) -> Density:
    """The log density of a target."""
    with np.load(os.environ["BENCHMARK_NUMBERS"]) as archive:
        prefix = f"{target}|"
        found = {k.removeprefix(prefix): archive[k] for k in archive if k.startswith(prefix)}
    kind, dim = str(found.pop("kind")), int(found.pop("dim"))
    return Density(kind, {name: jnp.asarray(v, jnp.float32) for name, v in found.items()}, dim)


def check(target: str, states: list[list[float]]) -> dict[str, Any]:
    """Log densities and their gradients at states."""
    values, slopes = jax.vmap(jax.value_and_grad(log_density(target)))(jnp.asarray(states))
    return {"values": values.tolist(), "slopes": slopes.tolist()}
