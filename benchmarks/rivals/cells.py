"""What is measured: methods, targets, numbers of chains, and the settings common to all sides.

Standard library only, since every rival's environment imports it. A rival builds the energy of a
target from these numbers in its own manner; start, step sizes and leapfrogs are the same for all.
"""

import math
from dataclasses import dataclass

METHODS = ("ULA", "MALA", "HMC")
CHAINS = (1, 100, 10_000)
LEAPFROGS = 10
CHECK_STEPS = {100: 64, 10_000: 2}
"""Transitions from the common start to the check of a cell's law, by the number of chains. Two are
the sharper check: a tenth more of step size, or a leapfrog less, shows on most targets with 10,000
chains, and after many transitions it does not. The `unit` of a program divides them."""


@dataclass(frozen=True)
class Target:
    """An energy, by its numbers.

    Attributes:
        dim: Elements of a state.
        steps: Step size of each method: h of x' = x - h ∇E + sqrt(2h) ξ, and the leapfrog's ε.
        start: The value of all elements at the start of all chains.
    """

    dim: int
    steps: dict[str, float]
    start: float = 0.5


TARGETS = {
    "double well": Target(2, {"ULA": 0.01, "MALA": 0.03, "HMC": 0.1}),
    "Gaussian .9": Target(2, {"ULA": 0.02, "MALA": 0.05, "HMC": 0.2}),
    "Rosenbrock": Target(2, {"ULA": 2e-5, "MALA": 5e-4, "HMC": 0.02}),
    "mixture of 8": Target(2, {"ULA": 0.01, "MALA": 0.02, "HMC": 0.08}),
    "AR .9, 100-D": Target(100, {"ULA": 0.01, "MALA": 0.01, "HMC": 0.1}),
}

WELL_HEIGHT = 2.0
"""h of E = h Σ (x² - 1)²."""

CORRELATION = 0.9
"""Of the 2-D Gaussian; and r of Σ_ij = r^|i-j| in 100 dimensions, used as a dense matrix."""

VALLEY = (1.0, 100.0)
"""a and b of E = b (y - x²)² + (a - x)²."""

MIXTURE_SPREAD = 0.2
MIXTURE_MEANS = [(2 * math.cos(k * math.pi / 4), 2 * math.sin(k * math.pi / 4)) for k in range(8)]


def autoregressive_covariance() -> list[list[float]]:
    """Σ of the 100-dimensional Gaussian."""
    dim = TARGETS["AR .9, 100-D"].dim
    return [[CORRELATION ** abs(i - j) for j in range(dim)] for i in range(dim)]


@dataclass(frozen=True)
class Cell:
    """A method on a target, with a number of chains."""

    method: str
    target: str
    chains: int

    @property
    def dim(self) -> int:
        """Elements of a state."""
        return TARGETS[self.target].dim

    @property
    def start(self) -> float:
        """The value of all elements at the start."""
        return TARGETS[self.target].start

    @property
    def step(self) -> float:
        """The step size."""
        return TARGETS[self.target].steps[self.method]

    def __str__(self) -> str:
        """The name of the cell in results."""
        return f"{self.method} | {self.target} | {self.chains}"


def cells(
    methods: tuple[str, ...] = METHODS,
    targets: tuple[str, ...] = tuple(TARGETS),
    chains: tuple[int, ...] = CHAINS,
) -> list[Cell]:
    """All cells of these methods, targets and numbers of chains."""
    return [Cell(m, t, n) for t in targets for m in methods for n in chains]
