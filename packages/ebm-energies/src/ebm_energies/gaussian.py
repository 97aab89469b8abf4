"""Gaussian energies, of which everything is known: dense, diagonal, low-rank, ill-conditioned.

Each is ½ |W (x - μ)|² with a whitening factor made once (see `_matrices`), without the normalising
constant, which `log_normalizer` gives.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, EnergyFunction, make_generator
from ebm_core.validation import check_integer, check_number, check_tensor
from ebm_energies._base import common_dtype, double_tensor, draw_options, hold, refuse_parameters
from ebm_energies._matrices import (
    covariance_matrix,
    log_abs_det,
    unwhiten,
    whiten,
    whitening_matrix,
)

LOG_TWO_PI = math.log(2.0 * math.pi)


class Gaussian(EnergyFunction):
    """E(x) = ½ (x - μ)ᵀ Σ⁻¹ (x - μ).

    Exactly one of the three matrices is given; with none of them Σ is the identity. A
    one-dimensional tensor is a
    diagonal: variances, precisions or (as ``cholesky``) standard deviations.

    Attributes:
        location: μ, ``(d,)``.
        whitening: W with WᵀW = Σ⁻¹, ``(d, d)``, or ``(d,)`` if diagonal. Everything is computed
            from it; set it to ``nn.Parameter(energy.whitening)`` to learn it.

    Args:
        mean: μ, ``(d,)``; a parameter stays one.
        covariance: Σ, ``(d, d)`` or ``(d,)``.
        precision: Σ⁻¹, ``(d, d)`` or ``(d,)``.
        cholesky: The lower Cholesky factor of Σ, ``(d, d)`` or ``(d,)``.

    Raises:
        ConfigurationError: If more than one matrix is given, or one is not finite, symmetric and
            positive definite (a factor: lower triangular with a positive diagonal).
        ShapeError: If the shapes do not fit.

    Example:
        >>> energy = Gaussian(torch.zeros(2), covariance=[[1.0, 0.5], [0.5, 1.0]])
        >>> energy(torch.tensor([[1.0, 1.0]])), energy.covariance()
        (tensor([0.6667]), tensor([[1.0000, 0.5000], [0.5000, 1.0000]]))
    """

    location: Tensor
    whitening: Tensor
    event_ndim = 1

    def __init__(
        self,
        mean: Any,
        covariance: Any = None,
        *,
        precision: Any = None,
        cholesky: Any = None,
    ) -> None:
        super().__init__()
        location = check_tensor("mean", mean, (None,))
        given = {
            kind: value
            for kind, value in (
                ("covariance", covariance),
                ("precision", precision),
                ("cholesky", cholesky),
            )
            if value is not None
        }
        if len(given) > 1:
            raise ConfigurationError(
                f"{' and '.join(given)} were given",
                "one of covariance, precision and cholesky",
                "drop the others",
            )
        kind, matrix = next(iter(given.items()), ("covariance", torch.ones_like(location.detach())))
        whitening = whitening_matrix(kind, matrix, kind, len(location))
        dtype = common_dtype((mean, matrix))
        if not isinstance(mean, Tensor):
            location = double_tensor("mean", mean)
        hold(self, "location", location, dtype)
        hold(self, "whitening", whitening.to(location.device), dtype)
        self.event_shape = location.shape

    def forward(self, x: Tensor) -> Tensor:
        """½ |W (x - μ)|²: ``(..., d) -> (...)``."""
        return 0.5 * whiten(self.whitening, x - self.location).square().sum(-1)

    def log_normalizer(self) -> Tensor:
        """d/2 log 2π + ½ log det Σ."""
        return 0.5 * len(self.location) * LOG_TWO_PI - log_abs_det(self.whitening)

    def mean(self) -> Tensor:
        """μ, ``(d,)``."""
        return self.location.clone()

    def covariance(self) -> Tensor:
        """Σ, ``(d, d)``."""
        return covariance_matrix(self.whitening)

    def minima(self) -> Tensor:
        """μ, ``(1, d)``."""
        return self.location[None].clone()

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, d)``."""
        normals = torch.randn(n, len(self.location), **draw_options(self, n, seed))
        return self.location + unwhiten(self.whitening, normals)


class IllConditionedGaussian(Gaussian):
    """A centred Gaussian with variances from 1/condition_number to 1, even on a log scale.

    Args:
        dim: d, at least 2.
        condition_number: Largest variance over smallest, at least 1.
        rotation_seed: Rotate the axes by a random orthogonal matrix (Haar measure) of this seed;
            None leaves them.

    Example:
        >>> IllConditionedGaussian(3, condition_number=100.0).covariance().diagonal()
        tensor([0.0100, 0.1000, 1.0000])
    """

    def __init__(
        self, dim: int, condition_number: float = 1000.0, *, rotation_seed: int | None = None
    ) -> None:
        check_integer("dim", dim, at_least=2)
        exponent = math.log10(check_number("condition_number", condition_number, at_least=1))
        zeros = torch.zeros(dim, dtype=torch.float64)
        super().__init__(zeros, torch.logspace(-exponent, 0, dim, dtype=torch.float64))
        whitening = self.whitening
        if rotation_seed is not None:
            normals = torch.randn(
                dim, dim, dtype=torch.float64, generator=make_generator(rotation_seed)
            )
            rotation, upper = torch.linalg.qr(normals)
            # With the signs of R's diagonal fixed, Q is Haar distributed (Mezzadri, Notices AMS 54,
            # 2007).
            whitening = whitening[:, None] * (rotation * upper.diagonal().sign()).mT
        hold(self, "location", zeros, torch.get_default_dtype())
        hold(self, "whitening", whitening, torch.get_default_dtype())


class LowRankGaussian(EnergyFunction):
    """E(x) = ½ (x - μ)ᵀ Σ⁻¹ (x - μ) with Σ = F Fᵀ + diag(D), in O(d r) operations.

    With D^{-1/2} F = U S Vᵀ the whitening factor is W = (I - U (1 - (1 + S²)^{-1/2}) Uᵀ) D^{-1/2}:
    Woodbury's identity in the form of a symmetric square root, so that the energy stays a sum of
    squares.

    Attributes:
        location: μ, ``(d,)``.
        inverse_std: D^{-1/2}, ``(d,)``.
        directions: U, ``(d, r)``.
        stretch: (1 + S²)^{1/2}, ``(r,)``.

    Args:
        mean: μ, ``(d,)``; a parameter stays one.
        factor: F, ``(d, r)``.
        diagonal: D, ``(d,)``, positive variances.

    Raises:
        ConfigurationError: If an element is not finite, one of ``diagonal`` is not positive, or
            ``factor`` or ``diagonal`` is a parameter.
        ShapeError: If the shapes do not fit.

    Example:
        >>> energy = LowRankGaussian(torch.zeros(3), torch.ones(3, 1), diagonal=torch.ones(3))
        >>> energy.covariance()[0]
        tensor([2.0000, 1.0000, 1.0000])
    """

    location: Tensor
    inverse_std: Tensor
    directions: Tensor
    stretch: Tensor
    event_ndim = 1

    def __init__(self, mean: Any, factor: Any, diagonal: Any) -> None:
        super().__init__()
        location = check_tensor("mean", mean, (None,))
        dim = len(location)
        refuse_parameters(
            "to learn the shape, make energy.inverse_std, directions and stretch parameters"
            " afterwards",
            factor=factor,
            diagonal=diagonal,
        )
        columns = double_tensor("factor", factor, (dim, None)).to(location.device)
        variances = double_tensor("diagonal", diagonal, (dim,)).to(location.device)
        inverse_std = whitening_matrix("diagonal", variances, "covariance", dim)
        directions, singular, _ = torch.linalg.svd(
            inverse_std[:, None] * columns, full_matrices=False
        )
        dtype = common_dtype((mean, factor, diagonal))
        if not isinstance(mean, Tensor):
            location = double_tensor("mean", mean)
        hold(self, "location", location, dtype)
        hold(self, "inverse_std", inverse_std, dtype)
        hold(self, "directions", directions, dtype)
        hold(self, "stretch", (1.0 + singular.square()).sqrt(), dtype)
        self.event_shape = location.shape

    def forward(self, x: Tensor) -> Tensor:
        """½ |W (x - μ)|²: ``(..., d) -> (...)``."""
        scaled = (x - self.location) * self.inverse_std
        shrunk = (scaled @ self.directions) * (1.0 - 1.0 / self.stretch)
        return 0.5 * (scaled - shrunk @ self.directions.mT).square().sum(-1)

    def log_normalizer(self) -> Tensor:
        """d/2 log 2π + ½ log det Σ."""
        half_log_det = self.stretch.log().sum() - self.inverse_std.log().sum()
        return 0.5 * len(self.location) * LOG_TWO_PI + half_log_det

    def mean(self) -> Tensor:
        """μ, ``(d,)``."""
        return self.location.clone()

    def covariance(self) -> Tensor:
        """Σ, ``(d, d)``."""
        factor = self.directions / self.inverse_std[:, None]
        low_rank = (factor * (self.stretch.square() - 1.0)) @ factor.mT
        return low_rank + self.inverse_std.square().reciprocal().diag()

    def minima(self) -> Tensor:
        """μ, ``(1, d)``."""
        return self.location[None].clone()

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, d)``."""
        normals = torch.randn(n, len(self.location), **draw_options(self, n, seed))
        stretched = (normals @ self.directions) * (self.stretch - 1.0)
        return self.location + (normals + stretched @ self.directions.mT) / self.inverse_std
