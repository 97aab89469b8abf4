"""Masses of Hamiltonian dynamics: momenta p ~ N(0, M), velocities M⁻¹p.

A mass close to the inverse covariance of the target makes it look round to the dynamics.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ebm_core import ConfigurationError, ShapeError
from ebm_core.validation import check_tensor


class Mass(Protocol):
    """What a sampler needs of a mass."""

    def momentum(self, normals: Tensor) -> Tensor:
        """M^½ z for standard normals z, ``(chain, *event)``."""
        ...

    def velocity(self, momentum: Tensor) -> Tensor:
        """M⁻¹ p, ``(chain, *event)``."""
        ...

    def inverse(self, size: int) -> Tensor:
        """M⁻¹ for events of ``size`` elements: ``(1, size)``, a diagonal, or ``(size, size)``."""
        ...

    def root(self, size: int) -> Tensor:
        """The lower Cholesky factor of M, likewise."""
        ...


class UnitMass:
    """M = I."""

    def momentum(self, normals: Tensor) -> Tensor:
        """The normals themselves."""
        return normals

    def velocity(self, momentum: Tensor) -> Tensor:
        """The momentum itself."""
        return momentum

    def inverse(self, size: int) -> Tensor:
        """Ones."""
        return torch.ones(1, size)

    def root(self, size: int) -> Tensor:
        """Ones."""
        return torch.ones(1, size)


class DiagonalMass:
    """M = diag(m).

    Args:
        mass: m, of the event's shape; positive.

    Raises:
        ConfigurationError: If an element is not positive.
    """

    def __init__(self, mass: Tensor) -> None:
        if not (mass > 0).all():
            raise ConfigurationError(
                f"mass has the element {mass.min().item():g}",
                "positive masses",
                "pass inverse variances",
            )
        self._root, self._inverse = mass.sqrt(), mass.reciprocal()

    def momentum(self, normals: Tensor) -> Tensor:
        """M^½ z."""
        return self._root * normals

    def velocity(self, momentum: Tensor) -> Tensor:
        """M⁻¹ p."""
        return self._inverse * momentum

    def inverse(self, size: int) -> Tensor:
        """1/m, ``(1, size)``."""
        return self._inverse.reshape(1, size)

    def root(self, size: int) -> Tensor:
        """√m, ``(1, size)``."""
        return self._root.reshape(1, size)


class DenseMass:
    """M, symmetric and positive definite, on the flattened event.

    Args:
        mass: M, ``(d, d)``.

    Raises:
        ConfigurationError: If it is not symmetric and positive definite.
    """

    def __init__(self, mass: Tensor) -> None:
        wide = mass.double()
        factor, failed = torch.linalg.cholesky_ex(wide)
        if not torch.allclose(wide, wide.mT) or failed:
            raise ConfigurationError(
                "mass is not a symmetric positive definite matrix",
                "one",
                "pass the inverse of a covariance, as (M + M.mT)/2 if rounding spoilt its symmetry",
            )
        self._root = factor.mT.to(mass.dtype)
        self._inverse = torch.cholesky_inverse(factor).to(mass.dtype)

    def momentum(self, normals: Tensor) -> Tensor:
        """L z with M = L Lᵀ."""
        momentum: Tensor = normals.reshape(len(normals), -1) @ self._root
        return momentum.view_as(normals)

    def velocity(self, momentum: Tensor) -> Tensor:
        """M⁻¹ p."""
        velocity: Tensor = momentum.reshape(len(momentum), -1) @ self._inverse
        return velocity.view_as(momentum)

    def inverse(self, size: int) -> Tensor:
        """M⁻¹, ``(size, size)``."""
        return self._inverse

    def root(self, size: int) -> Tensor:
        """L with M = L Lᵀ, ``(size, size)``."""
        root: Tensor = self._root.mT
        return root


def checked_mass(mass: Any, event_shape: torch.Size | None) -> Tensor:
    """An argument ``mass``, checked as far as it can be without states.

    Args:
        mass: A diagonal or a matrix, as in `mass_for`.
        event_shape: The event's shape; None if it is not known. Then a square matrix may be either.

    Returns:
        A copy.

    Raises:
        ShapeError: If it does not fit the event.
        ConfigurationError: If it is not positive (definite).
    """
    values = check_tensor("mass", mass).detach().clone()
    if event_shape is not None:
        mass_for(values, values.new_empty(1, *event_shape))
    elif not (values > 0).all():
        square = values.ndim == 2 and values.shape[0] == values.shape[1]
        DenseMass(values) if square else DiagonalMass(values)
    return values


def mass_for(mass: Tensor | None, x: Tensor) -> Mass:
    """The mass that an argument ``mass`` means for states like ``x``.

    Args:
        mass: None for I, a tensor of the event's shape for a diagonal, ``(d, d)`` for a matrix.
        x: States, ``(chain, *event)``, with d elements each.

    Raises:
        ShapeError: If it has neither shape.
        ConfigurationError: If it is not positive (definite).
    """
    if mass is None:
        return UnitMass()
    event_shape = x.shape[1:]
    size = math.prod(event_shape)
    mass = check_tensor("mass", mass).detach().to(x)
    if mass.shape == event_shape:
        return DiagonalMass(mass)
    if mass.shape == (size, size):
        return DenseMass(mass)
    raise ShapeError(
        f"mass has shape {tuple(mass.shape)}",
        f"{tuple(event_shape)} (a diagonal) or ({size}, {size}) (a matrix)",
        "give the mass the event's shape, or one row and column for each element",
    )


def kernel_mass(mass: Tensor | None, x: Tensor) -> dict[str, Tensor]:
    """M⁻¹ and the Cholesky factor of M for states like ``x``, by names of `FusedEnergy.launch`."""
    if mass is None:
        return {}
    fitted, size = mass_for(mass, x), x[0].numel()
    return {"inverse_mass": fitted.inverse(size), "mass_root": fitted.root(size)}
