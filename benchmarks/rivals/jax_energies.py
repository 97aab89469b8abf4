"""Energies and gradients in JAX, written out for whole batches of chains.

A 2-D state is two arrays ``(chains,)``: XLA computes an element of a stacked array anew for each
use in a fused loop, twice as often with every step that is written out. The 100-D state is one
array ``(100, chains)``, for one matrix product. Either way chains are adjacent, and XLA vectorises
over them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from rivals import cells

Array = Any
Vector = tuple[Array, ...]
Energy = Callable[[Vector], Array]
Gradient = Callable[[Vector], Vector]


def each(f: Callable[..., Array], *vectors: Vector) -> Vector:
    """Apply a function to the parts of vectors."""
    return tuple(f(*parts) for parts in zip(*vectors, strict=True))


def autoregressive() -> tuple[Energy, Gradient]:
    """The 100-dimensional Gaussian, its precision as a dense matrix."""
    covariance = np.asarray(cells.autoregressive_covariance())
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    return lambda x: 0.5 * (x[0] * (precision @ x[0])).sum(0), lambda x: (precision @ x[0],)


def correlated() -> tuple[Energy, Gradient]:
    """The 2-D Gaussian, written out."""
    r = cells.CORRELATION
    a, b = 1 / (1 - r * r), -r / (1 - r * r)
    return (
        lambda x: 0.5 * a * (x[0] * x[0] + x[1] * x[1]) + b * x[0] * x[1],
        lambda x: (a * x[0] + b * x[1], b * x[0] + a * x[1]),
    )


def double_well() -> tuple[Energy, Gradient]:
    """E = h Σ (x² - 1)²."""
    h = cells.WELL_HEIGHT
    return (
        lambda x: h * ((x[0] * x[0] - 1) ** 2 + (x[1] * x[1] - 1) ** 2),
        lambda x: each(lambda x: 4 * h * x * (x * x - 1), x),
    )


def rosenbrock() -> tuple[Energy, Gradient]:
    """E = b (y - x²)² + (a - x)²."""
    a, b = cells.VALLEY

    def gradient(x: Vector) -> Vector:
        wall = 2 * b * (x[1] - x[0] * x[0])
        return 2 * (x[0] - a) - 2 * x[0] * wall, wall

    return lambda x: b * (x[1] - x[0] * x[0]) ** 2 + (a - x[0]) ** 2, gradient


def mixture() -> tuple[Energy, Gradient]:
    """Eight round Gaussians of equal weight, written out; |μ| is the same for all."""
    variance = cells.MIXTURE_SPREAD**2
    means = cells.MIXTURE_MEANS

    def peaks(x: Vector) -> tuple[list[Array], Array]:
        logits = [(x[0] * m[0] + x[1] * m[1]) / variance for m in means]
        top = functools.reduce(jnp.maximum, logits)
        return [jnp.exp(logit - top) for logit in logits], top

    def energy(x: Vector) -> Array:
        heights, top = peaks(x)
        return (x[0] * x[0] + x[1] * x[1]) / (2 * variance) - top - jnp.log(sum(heights))

    def gradient(x: Vector) -> Vector:
        heights, _ = peaks(x)
        scale = 1 / (variance * sum(heights))
        pulls = [sum(p * m[i] for p, m in zip(heights, means, strict=True)) for i in (0, 1)]
        return each(lambda x, pull: x / variance - pull * scale, x, pulls)

    return energy, gradient


ENERGIES = {
    "double well": double_well,
    "Gaussian .9": correlated,
    "Rosenbrock": rosenbrock,
    "mixture of 8": mixture,
    "AR .9, 100-D": autoregressive,
}
