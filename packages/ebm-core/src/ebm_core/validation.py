"""Checks of arguments, shared by all components, so that the same mistake gives the same message.

Each check returns its value in the type the caller wants, or raises an `EBMError` that names the
argument, what was given, what was wanted and what to do.
"""

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from ebm_core.errors import ConfigurationError, NumericalError, ShapeError


def check_number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
) -> float:
    """A finite number within bounds, as a float.

    Args:
        name: The argument's name, for the message.
        value: A Python or NumPy number or a tensor of one element.
        above: The number must be greater than this.
        at_least: The number must be at least this.
        at_most: The number must be at most this.
        below: The number must be less than this.

    Raises:
        ConfigurationError: If it is no number, not finite, or out of bounds.

    Example:
        >>> check_number("step_size", 1, above=0)
        1.0
    """
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (
            ("greater than", above),
            ("at least", at_least),
            ("at most", at_most),
            ("less than", below),
        )
        if math.isfinite(bound)
    ]
    wanted = "a finite number" + "".join(f", {b}" for b in bounds)
    number = _as_float(value)
    if (
        number is None
        or not math.isfinite(number)
        or not (above < number < below and at_least <= number <= at_most)
    ):
        raise ConfigurationError(f"{name} is {value!r}", wanted, f"pass another {name}")
    return number


def check_positive(name: str, value: Any) -> float:
    """A finite number greater than 0; see `check_number`."""
    return check_number(name, value, above=0)


def check_integer(name: str, value: Any, *, at_least: int = 0) -> int:
    """An integer (no bool, no float) of at least ``at_least``.

    Raises:
        ConfigurationError: If it is not.

    Example:
        >>> check_integer("n_steps", 10, at_least=1)
        10
    """
    if type(value) is int and value >= at_least:
        return value  # what is asked at each call of a sampler
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ConfigurationError(
            f"{name} is {value!r}", f"an integer, at least {at_least}", f"pass another {name}"
        )
    return int(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of the given words.

    Raises:
        ConfigurationError: If it is none of them.
    """
    if value not in choices:
        words = ", ".join(repr(c) for c in choices)
        raise ConfigurationError(
            f"{name} is {value!r}", f"one of {words}", f"pass one of these as {name}"
        )
    return str(value)


def check_tensor(name: str, value: Any, shape: tuple[int | None, ...] | None = None) -> Tensor:
    """Finite numbers as a floating tensor of the wanted shape.

    Args:
        name: The argument's name, for the message.
        value: A tensor, array, number or nested list of numbers; integers become the default dtype.
        shape: The wanted shape, None for an axis of any length; None for any shape.

    Raises:
        ShapeError: If the shape is not the wanted one.
        ConfigurationError: If it is no tensor of numbers or holds NaN or infinity.
    """
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"{name} is {value!r}",
            "a tensor or (nested) list of numbers",
            f"pass {name} as a tensor",
        ) from error
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if shape is not None and (
        tensor.ndim != len(shape)
        or any(want not in (None, have) for want, have in zip(shape, tensor.shape, strict=True))
    ):
        want = ", ".join("any" if s is None else str(s) for s in shape)
        raise ShapeError(f"{name} has shape {tuple(tensor.shape)}", f"({want})", f"reshape {name}")
    if not torch.isfinite(tensor).all():
        raise ConfigurationError(
            f"{name} holds NaN or infinity", "finite numbers", f"check where {name} comes from"
        )
    return tensor


def check_event_shape(name: str, value: Any) -> torch.Size:
    """An event shape from an int or a sequence of ints, each at least 1; ``()`` is a scalar state.

    Raises:
        ConfigurationError: If it is neither.

    Example:
        >>> check_event_shape("dim", 3)
        torch.Size([3])
    """
    sizes = (value,) if isinstance(value, numbers.Integral) else value
    if not isinstance(sizes, tuple | list):
        raise ConfigurationError(
            f"{name} is {value!r}", "an integer or a tuple of integers", f"pass another {name}"
        )
    return torch.Size(check_integer(name, size, at_least=1) for size in sizes)


def check_finite_loss(loss: Tensor, *, remedy: str) -> Tensor:
    """A loss that is one finite number.

    Raises:
        ShapeError: If it has more than one element.
        NumericalError: If it is NaN or infinite.
    """
    if loss.ndim != 0:
        raise ShapeError(
            f"the loss has shape {tuple(loss.shape)}",
            "a scalar, shape ()",
            "reduce it with .mean()",
        )
    if not math.isfinite(value := loss.item()):
        raise NumericalError(f"the loss is {value}", "a finite loss", remedy)
    return loss


def _as_float(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value.detach())
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    return None
