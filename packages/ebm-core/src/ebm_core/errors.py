"""The errors of every component: what was given, what was wanted, what to do.

One family, so that ``except EBMError`` catches whatever the library refuses. Each member also
derives from the built-in exception that Python programmers expect (``ValueError`` or
``ArithmeticError``).
"""

from typing import Any


class EBMError(Exception):
    """Something the library refuses to go on with.

    Args:
        given: What was given or found, with its value ("step_size is -0.1").
        wanted: What is accepted instead ("a positive, finite number").
        remedy: What the reader can do about it, an imperative sentence without its full stop.

    Attributes:
        result: What had been computed when a long run stopped (a partial ``SampleResult``), or
            None.

    Example:
        >>> raise ShapeError("x has shape (2,)", "(batch, 2)", "add the batch axis with x[None]")
        Traceback (most recent call last):
        ...
        ebm_core.errors.ShapeError: x has shape (2,); wanted (batch, 2). To go on: add the batch
        axis with x[None].
    """

    def __init__(self, given: str, wanted: str, remedy: str) -> None:
        super().__init__(given, wanted, remedy)
        self.given = given
        self.wanted = wanted
        self.remedy = remedy
        self.result: Any = None

    def __str__(self) -> str:
        """The message: given; wanted. To go on: remedy."""
        return f"{self.given}; wanted {self.wanted}. To go on: {self.remedy}."


class ShapeError(EBMError, ValueError):
    """A tensor has the wrong shape."""


class ConfigurationError(EBMError, ValueError):
    """An argument, or a combination of arguments, makes no sense."""


class SupportError(EBMError, ValueError):
    """States or samplers do not fit the set on which an energy is defined."""


class NumericalError(EBMError, ArithmeticError):
    """A computation gave NaN or infinity, or lost all its digits."""
