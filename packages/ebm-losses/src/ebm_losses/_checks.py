"""Checks of data and negatives that several objectives share."""

import torch
from torch import Tensor

from ebm_core import ConfigurationError, EnergyFunction, NumericalError, ShapeError


def check_batch(energy: EnergyFunction, x: Tensor) -> int:
    """The number of states in ``x``, after a check that it is one batch of the energy's states.

    Raises:
        ShapeError: If there is not exactly one batch axis, or no state.
    """
    n_states = energy.batch_size(x)
    if n_states == 0:
        raise ShapeError(
            f"x holds no states, shape {tuple(x.shape)}",
            "a batch of at least one",
            "skip empty batches",
        )
    return n_states


def check_floating(x: Tensor, user: str) -> None:
    """Refuse data of an integer or boolean dtype.

    Raises:
        ConfigurationError: If ``x`` is not floating.
    """
    if not x.is_floating_point():
        raise ConfigurationError(
            f"{user} was given data of dtype {x.dtype}",
            "floating data",
            "convert them with x.float()",
        )


def check_finite_states(states: Tensor, *, origin: str, remedy: str) -> Tensor:
    """States of which every element is finite.

    Args:
        states: ``(n, *event)``.
        origin: Where they come from, for the message.
        remedy: What to do about it.

    Raises:
        NumericalError: If not; the message says how many states are not.
    """
    finite = torch.isfinite(states)
    if not finite.all():
        n_bad = int((~finite).reshape(len(states), -1).any(1).sum())
        raise NumericalError(
            f"{n_bad} of {len(states)} negatives {origin} hold NaN or infinity",
            "finite states",
            remedy,
        )
    return states
