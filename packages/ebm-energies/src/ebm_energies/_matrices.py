"""Checks and factors of covariance matrices.

Every quadratic form here is written ½ |W (x - μ)|², with a *whitening* matrix W such that WᵀW is
the precision: a sum of squares cannot turn negative by rounding, and costs one matrix product.
Factors are made once, at construction, in float64; a one-dimensional tensor stands for a diagonal
matrix throughout.
"""

from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, ShapeError
from ebm_energies._base import double_tensor, refuse_parameters


def cholesky_factor(name: str, matrix: Tensor, eps: float) -> Tensor:
    """The lower Cholesky factor of symmetric positive-definite matrices ``(..., d, d)`` in float64.

    Args:
        name: The argument's name, for the message.
        matrix: float64 matrices.
        eps: The rounding unit of the dtype in which they were given: how much asymmetry is
            forgiven.

    Raises:
        ShapeError: If the matrices are not square.
        ConfigurationError: If one is not symmetric or not positive definite.
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ShapeError(
            f"{name} has shape {tuple(matrix.shape)}", "square matrices", f"reshape {name}"
        )
    asymmetry = (matrix - matrix.mT).abs().amax()
    if asymmetry > 100 * eps * matrix.abs().amax():
        raise ConfigurationError(
            f"{name} is not symmetric: it differs from its transpose by {asymmetry.item():.3g}",
            "a symmetric matrix",
            f"pass ({name} + {name}.mT) / 2 if the difference is noise",
        )
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex((matrix + matrix.mT) / 2)
    if info.any():
        lowest = torch.linalg.eigvalsh(matrix).amin().item()
        raise ConfigurationError(
            f"{name} is not positive definite: its smallest eigenvalue is {lowest:.3g}",
            "a positive-definite matrix",
            "add a small multiple of the identity, or drop dependent directions",
        )
    return factor


def inverse_lower(factor: Tensor) -> Tensor:
    """The inverse of lower-triangular matrices ``(..., d, d)``."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    return inverse


def whitening_matrix(name: str, value: Any, kind: str, dim: int) -> Tensor:
    """W with WᵀW the precision, in float64: ``(dim, dim)``, or ``(dim,)`` if a diagonal was given.

    Args:
        name: The argument's name, for the message.
        value: A matrix ``(dim, dim)`` or a diagonal ``(dim,)``.
        kind: What it is: "covariance", "precision" or "cholesky" (lower factor of the covariance;
            as a diagonal, the standard deviations).
        dim: The dimension.

    Raises:
        ShapeError: If it has another shape.
        ConfigurationError: If it is a parameter, not finite, not symmetric, not positive definite
            or not triangular.
    """
    refuse_parameters(
        "to learn the shape, set energy.whitening = nn.Parameter(energy.whitening) afterwards",
        **{name: value},
    )
    matrix = double_tensor(name, value)
    eps = torch.finfo(value.dtype if _is_floating(value) else torch.get_default_dtype()).eps
    if matrix.shape == (dim,):
        return whitening_diagonal(name, matrix, kind)
    if matrix.shape != (dim, dim):
        raise ShapeError(
            f"{name} has shape {tuple(matrix.shape)}",
            f"({dim}, {dim}), or ({dim},) for a diagonal",
            f"make {name} fit the mean",
        )
    if kind == "precision":
        return cholesky_factor(name, matrix, eps).mT
    return inverse_lower(
        cholesky_factor(name, matrix, eps) if kind == "covariance" else _check_lower(name, matrix)
    )


def whitening_diagonal(name: str, diagonal: Tensor, kind: str) -> Tensor:
    """The diagonals of W, of diagonal matrices ``(..., d)``; see `whitening_matrix`."""
    if not (diagonal > 0).all():
        raise ConfigurationError(
            f"{name} has the element {diagonal.min().item():g}",
            "positive elements",
            f"check {name}",
        )
    return diagonal ** {"covariance": -0.5, "precision": 0.5, "cholesky": -1.0}[kind]


def log_abs_det(whitening: Tensor) -> Tensor:
    """log |det W| of a whitening matrix, or of a diagonal."""
    if whitening.ndim == 1:
        return whitening.abs().log().sum()
    log_det: Tensor = torch.linalg.slogdet(whitening).logabsdet
    return log_det


def whiten(whitening: Tensor, x: Tensor) -> Tensor:
    """W x for vectors ``(..., d)``."""
    return x * whitening if whitening.ndim == 1 else x @ whitening.mT


def unwhiten(whitening: Tensor, z: Tensor) -> Tensor:
    """W⁻¹ z for vectors ``(n, d)``: standard normals become draws with the precision WᵀW."""
    if whitening.ndim == 1:
        return z / whitening
    draws: Tensor = torch.linalg.solve(whitening, z.mT).mT
    return draws


def covariance_matrix(whitening: Tensor) -> Tensor:
    """(WᵀW)⁻¹, ``(d, d)``."""
    if whitening.ndim == 1:
        return whitening.square().reciprocal().diag()
    inverse: Tensor = torch.linalg.inv(whitening)
    return inverse @ inverse.mT


def _check_lower(name: str, factor: Tensor) -> Tensor:
    if (factor.triu(1) != 0).any() or not (factor.diagonal() > 0).all():
        raise ConfigurationError(
            f"{name} is not lower triangular with a positive diagonal",
            "the lower Cholesky factor of a covariance",
            "pass torch.linalg.cholesky(covariance), or the matrix itself as covariance=",
        )
    return factor


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
