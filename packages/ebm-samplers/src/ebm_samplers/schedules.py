"""Settings that may change from step to step: a number, or a callable ``step -> number``.

Steps count from 0 with each call of a sampler, transitions of ``burn_in`` included; ``resume`` goes
on counting. Values are computed on the host: by the torch engine each when its step is made (where
steps run as CUDA graphs, for up to 32 of them), by the fused engine for the steps of the next tenth
of a second.
"""

import math
from collections.abc import Callable, Sequence

from ebm_core.validation import check_number

Schedule = Callable[[int], float]
"""A setting as a function of the step."""


class Staircase:
    """A schedule that is constant for so many steps at a time, and then at its last value.

    Kernels take it as a number from one change to the next.

    Args:
        values: One for each stretch.
        n: Steps of each stretch.

    Example:
        >>> [Staircase([3.0, 1.0], n=2)(step) for step in range(5)]
        [3.0, 3.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, values: Sequence[float], n: int) -> None:
        self.values, self.n = tuple(values), n

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return self.values[min(step // self.n, len(self.values) - 1)]

    def steady_until(self, step: int) -> float:
        """The first step after this one whose value is another one."""
        end = (step // self.n + 1) * self.n
        return end if end < len(self.values) * self.n else math.inf


class Setting:
    """A number or a schedule, checked whenever it is evaluated.

    Args:
        name: Its name, for messages.
        value: The number, or the schedule.
        zero: Whether 0 is allowed; negative numbers, infinity and NaN never are.

    Raises:
        ConfigurationError: If a value is not allowed, at once for a number.

    Example:
        >>> Setting("step_size", lambda step: 0.1 / (step + 1)).at(1)
        0.05
    """

    def __init__(self, name: str, value: float | Schedule, *, zero: bool = False) -> None:
        self.name = name
        self.zero = zero
        self.value: float | Schedule = value if callable(value) else self._checked(name, value)

    @property
    def is_constant(self) -> bool:
        """Whether this is a number."""
        return not callable(self.value)

    def steady_until(self, step: int) -> float:
        """A step before which the value is known to stay what it is at ``step``."""
        if not callable(self.value):
            return math.inf
        return self.value.steady_until(step) if isinstance(self.value, Staircase) else step

    def at(self, step: int) -> float:
        """The value at a step."""
        if not callable(self.value):
            return self.value
        return self._checked(f"{self.name}({step})", self.value(step))

    def _checked(self, name: str, value: float) -> float:
        return (
            check_number(name, value, at_least=0)
            if self.zero
            else check_number(name, value, above=0)
        )
