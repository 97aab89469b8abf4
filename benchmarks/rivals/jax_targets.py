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


class Density:
    """A log density of states of one dimension."""

    def __init__(self, f: Callable[[Array, Numbers], Array], numbers: Numbers, dim: int) -> None:
        self.f, self.numbers, self.dim = f, numbers, dim

    def __call__(self, x: Array) -> Array:
        """Log p(x) + constant."""
        return self.f(x, self.numbers)


def gaussian(x: Array, n: Numbers) -> Array:
    """A whitening factor, ``(d,)`` or ``(d, d)``."""
    z = x - n["location"]
    z = n["whitening"] * z if n["whitening"].ndim == 1 else n["whitening"] @ z
    return -0.5 * jnp.sum(z * z)


@functools.cache
def log_density(target: str) -> Density:
    """The log density of a target."""
    with np.load(os.environ["BENCHMARK_NUMBERS"]) as archive:
        prefix = f"{target}|"
        found = {k.removeprefix(prefix): archive[k] for k in archive if k.startswith(prefix)}
    dim = int(found.pop("dim"))
    numbers = {name: jnp.asarray(v, jnp.float32) for name, v in found.items()}
    return Density(DENSITIES[target], numbers, dim)


def check(target: str, states: list[list[float]]) -> dict[str, Any]:
    """Log densities and their gradients at states."""
    values, slopes = jax.vmap(jax.value_and_grad(log_density(target)))(jnp.asarray(states))
    return {"values": values.tolist(), "slopes": slopes.tolist()}


DENSITIES: dict[str, Callable[[Array, Numbers], Array]] = {"gaussian": gaussian}
_ = logsumexp
