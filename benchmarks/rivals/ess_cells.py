"""What `benchmarks/ess.py` measures: sides, methods, targets, chains, draws. Standard library only.

A job is a method on a target with a number of chains: warm up, then draw. All sides start chains
from N(0, I) and are given the same numbers of transitions of warm-up and of draws.
"""

from dataclasses import dataclass

DRAWS = {1: 2000, 16: 1000, 1024: 200}
"""Draws of each chain, by the number of chains; each is one transition."""

WARM_UP = 500
"""Transitions that methods adapt in."""

BURN_IN = 100
"""Transitions that chains which do not adapt make from their starts, with the settings that others
have adapted to: as many adapting chains would only take longer. A rival's NUTS and HMC adapt one
chain, ChEES all."""

LEARNERS = 64
"""Of so many chains at most our settings are learned."""

BLOCK = {1: 200, 16: 100, 1024: 5}
"""Draws between two looks at the clock."""

METHODS = {
    "ours": ("NUTS", "HMC"),
    "blackjax": ("NUTS", "HMC", "ChEES"),
    "numpyro": ("NUTS",),
}
"""By side."""

LEAPFROGS = (5, 20)
"""Of BlackJAX's HMC, which has no rule for them: both are tried, and the better counts."""


@dataclass(frozen=True)
class Job:
    """A method on a target, with a number of chains.

    Attributes:
        method: One of the side's `METHODS`.
        target: Name of a target.
        chains: Number of chains.
    """

    method: str
    target: str
    chains: int

    @property
    def draws(self) -> int:
        """Draws of each chain."""
        return DRAWS[self.chains]

    @property
    def block(self) -> int:
        """Draws between two looks at the clock."""
        return BLOCK[self.chains]


def offered(side: str, method: str, chains: int) -> bool:
    """Whether a method is for so many chains: ChEES learns from differences between chains."""
    return method != "ChEES" or chains > 1
