"""Settings that may change from step to step: a number, or a callable ``step -> number``.

Steps count from 0 with each call of a sampler, transitions of ``burn_in`` included; ``resume`` goes
on counting. Values are computed on the host: by the torch engine each when its step is made (where
steps run as CUDA graphs, for up to 32 of them), by the fused engine for the steps of the next tenth
of a second.
"""

from collections.abc import Callable

from ebm_core.validation import check_number

Schedule = Callable[[int], float]
"""A setting as a function of the step."""


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
