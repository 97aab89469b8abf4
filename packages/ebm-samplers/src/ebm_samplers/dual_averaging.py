"""A step size that is found once: dual averaging on pooled acceptance rates.

Hoffman & Gelman (2014, JMLR 15, section 3.2): log h of the next launch is pushed away from where it
began by the sum of all past errors of the acceptance rate, at a rate that falls; the step to keep
is an average over launches that weighs late ones most. An error here is the mean over the chains
and transitions of a launch, with far less noise than that of one transition of one chain. Their
gain of 1/0.05 makes the step swing between too large and too small when there is no noise; 1/0.15
does not (a rate that falls by .5 when h doubles is followed without overshooting), and ten launches
still move h by a factor of ten.

A training run, whose target never stops moving, wants `ebm_samplers.adaptation` instead.
"""

import math
from dataclasses import dataclass, field

GAMMA = 0.15
"""Shrinks log h towards its beginning: Hoffman & Gelman's γ."""
DELAY = 5.0
"""Makes the first launches count less: their t₀."""
DECAY = 0.75
"""Of the weights of launches in the average, t^-0.75: their κ."""


@dataclass
class DualAveraging:
    """The state of the rule.

    Attributes:
        target: The acceptance rate to reach.
        origin: h at the beginning.
        step_size: h of the next launch.
        averaged: The step to keep.
    """

    target: float
    origin: float
    step_size: float = field(init=False)
    averaged: float = field(init=False)
    _launches: int = field(default=0, init=False)
    _error: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.step_size = self.averaged = self.origin

    def update(self, acceptance: float) -> float:
        """Take the acceptance rate of a launch, made with ``step_size``.

        Returns:
            h of the next launch.

        Example:
            >>> rule = DualAveraging(target=0.8, origin=1.0)
            >>> for _ in range(30):  # a sampler that accepts exp(-h)
            ...     step_size = rule.update(math.exp(-rule.step_size))
            >>> round(math.exp(-rule.step_size), 1)
            0.8
        """
        self._launches = t = self._launches + 1
        self._error += self.target - acceptance
        log_step = math.log(self.origin) - math.sqrt(t) / GAMMA / (t + DELAY) * self._error
        weight = t**-DECAY
        averaged = weight * log_step + (1 - weight) * math.log(self.averaged)
        self.step_size, self.averaged = math.exp(log_step), math.exp(averaged)
        return self.step_size
