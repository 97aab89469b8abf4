"""Checks of data and negatives that several objectives share."""

from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, EnergyFunction, NumericalError, ShapeError
from ebm_core.energy import check_energies


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


def floating_energies(energy: EnergyFunction, states: Tensor) -> Tensor:
    """E of ``(n, *event)`` states, ``(n,)``, also where states are integers.

    Raises:
        ShapeError: If the energy does not give one number a state.
        ConfigurationError: If it gives integers.
    """
    energies = check_energies(energy(states), torch.Size([len(states)]))
    return check_floating_energies(energies, states)


def check_floating_energies(energies: Tensor, states: Tensor) -> Tensor:
    """Energies of states, which may be integers themselves.

    Raises:
        ConfigurationError: If they are integers.
    """
    if not energies.is_floating_point():
        raise ConfigurationError(
            f"the energy gave {energies.dtype} for states of {states.dtype}",
            "floating numbers",
            "convert the states in forward, x.float() or x.to(weight.dtype)",
        )
    return energies


def check_states_like(
    value: Any, like: Tensor, n: int | None = None, *, origin: str, remedy: str
) -> Tensor:
    """States of the event shape, dtype and device of ``like``.

    Args:
        value: What was given for them.
        like: States, ``(batch, *event)``.
        n: The number of states wanted; None for any, at least one.
        origin: Where they come from, for the message.
        remedy: What to do about anything else.

    Raises:
        ShapeError: If ``value`` is a tensor of another shape.
        ConfigurationError: If it is no tensor, or one of another dtype or device.
    """
    sizes = ", ".join(map(str, ("n" if n is None else n, *like.shape[1:])))
    wanted = f"a tensor ({sizes}), {like.dtype}, {like.device}"
    if not isinstance(value, Tensor):
        raise ConfigurationError(f"{origin} gave a {type(value).__name__}", wanted, remedy)
    given = f"{origin} gave a tensor {tuple(value.shape)}, {value.dtype}, {value.device}"
    fits = value.ndim == like.ndim and value.shape[1:] == like.shape[1:]
    if not fits or len(value) == 0 or n not in (None, len(value)):
        raise ShapeError(given, wanted, remedy)
    if value.dtype != like.dtype or value.device != like.device:
        raise ConfigurationError(given, wanted, remedy)
    return value


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
