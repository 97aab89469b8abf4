"""Where an energy is defined: a ``torch.distributions.constraints`` object, plus ``spin``.

``real`` is the default. Spins are -1 or +1, binary states 0 or 1 (``constraints.boolean``),
categories integer labels (``constraints.integer_interval``).
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ebm_core.errors import SupportError


class Spin(Constraint):
    """The constraint to -1 or +1, element by element."""

    is_discrete = True

    def __repr__(self) -> str:
        """Its name."""
        return "spin"

    def check(self, value: Tensor) -> Tensor:
        """True where an element is -1 or +1; the shape of ``value``."""
        return (value == 1) | (value == -1)


spin = Spin()
"""States whose elements are -1 or +1."""


def is_discrete(support: Constraint) -> bool:
    """Whether states are drawn from a discrete set.

    Example:
        >>> is_discrete(spin), is_discrete(constraints.real)
        (True, False)
    """
    return bool(support.is_discrete)


def require_continuous(support: Constraint, user: str) -> None:
    """Refuse a discrete support.

    Args:
        support: The energy's support.
        user: Who needs a continuous one, for the message ("HamiltonianMonteCarlo").

    Raises:
        SupportError: If the support is discrete.
    """
    if is_discrete(support):
        raise SupportError(
            f"{user} was given an energy on the discrete support {support}",
            "a continuous support",
            "use a sampler for discrete states, such as a Gibbs sampler",
        )


def require_discrete(support: Constraint, user: str) -> None:
    """Refuse a continuous support; the reverse of `require_continuous`.

    Raises:
        SupportError: If the support is continuous.
    """
    if not is_discrete(support):
        raise SupportError(
            f"{user} was given an energy on the continuous support {support}",
            "a discrete support",
            "use a gradient sampler, or set the energy's `support` (spin, ...)",
        )


def common_support(first: Constraint, second: Constraint) -> Constraint:
    """The support of a sum of two energies: theirs if equal, else the one that is not ``real``.

    Raises:
        SupportError: If the two cannot be reconciled.
    """
    if same_support(first, second) or _is_real(second):
        return first
    if _is_real(first):
        return second
    raise SupportError(
        f"energies on different supports were combined: {first} and {second}",
        "energies on one support",
        "set `support` of one of them to that of the other",
    )


def same_support(first: Constraint, second: Constraint) -> bool:
    """Whether two constraints are of one kind with equal bounds."""
    if first is second:
        return True
    return type(first) is type(second) and _equal(vars(first), vars(second))


def _is_real(support: Constraint) -> bool:
    """Whether every real state is allowed, be it as scalars, vectors or arrays."""
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    return isinstance(support, type(constraints.real))


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return torch.equal(torch.as_tensor(first), torch.as_tensor(second))
    if isinstance(first, Constraint) and isinstance(second, Constraint):
        return same_support(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    return bool(first == second)
