"""Heavy tails: the Student-t law, whose moments run out as its degrees of freedom fall."""

import math
from typing import Any

import torch
from scipy.special import gammaincinv
from torch import Tensor

from ebm_core import ConfigurationError, EnergyFunction
from ebm_core.validation import check_tensor
from ebm_energies._base import common_dtype, double_tensor, draw_options, hold, hold_number
from ebm_energies._matrices import (
    covariance_matrix,
    log_abs_det,
    unwhiten,
    whiten,
    whitening_matrix,
)


class StudentT(EnergyFunction):
    """The multivariate Student-t law (Kotz & Nadarajah 2004).

    E(x) = ½ (ν + d) log(1 + (x - μ)ᵀ S⁻¹ (x - μ) / ν).

    Attributes:
        df: ν.
        location: μ, ``(d,)``.
        whitening: W with WᵀW = S⁻¹, ``(d, d)``, or ``(d,)`` if diagonal.

    Args:
        df: Degrees of freedom ν > 0; 1 is the Cauchy law, infinity would be the Gaussian.
        location: μ, ``(d,)``; a parameter stays one.
        scale_matrix: S, ``(d, d)``, or ``(d,)`` for a diagonal; None for the identity. The
            covariance is ν/(ν - 2) times it.

    Raises:
        ConfigurationError: If ν is not positive, or S is not finite, symmetric and positive
            definite.
        ShapeError: If the shapes do not fit.

    Example:
        >>> StudentT(4.0, torch.zeros(1)).covariance()
        tensor([[2.]])
    """

    df: Tensor
    location: Tensor
    whitening: Tensor
    event_ndim = 1

    def __init__(self, df: Any, location: Any, scale_matrix: Any = None) -> None:
        super().__init__()
        centre = check_tensor("location", location, (None,))
        if scale_matrix is None:
            scale_matrix = torch.ones_like(centre.detach())
        whitening = whitening_matrix("scale_matrix", scale_matrix, "covariance", len(centre))
        dtype = common_dtype((location, scale_matrix))
        if not isinstance(location, Tensor):
            centre = double_tensor("location", location)
        hold(self, "location", centre, dtype)
        hold(self, "whitening", whitening.to(centre.device), dtype)
        hold_number(self, "df", df, dtype=dtype, above=0)
        self.event_shape = centre.shape

    def forward(self, x: Tensor) -> Tensor:
        """The energy: ``(..., d) -> (...)``."""
        distance = whiten(self.whitening, x - self.location).square().sum(-1)
        return 0.5 * (self.df + len(self.location)) * torch.log1p(distance / self.df)

    def log_normalizer(self) -> Tensor:
        """log Γ(ν/2) - log Γ((ν+d)/2) + d/2 log νπ + ½ log det S."""
        dim, df = len(self.location), self.df.double()  # large terms that cancel
        gammas = torch.lgamma(0.5 * df) - torch.lgamma(0.5 * (df + dim))
        scaled = gammas + 0.5 * dim * (math.pi * df).log()
        return scaled.to(self.df.dtype) - log_abs_det(self.whitening)

    def mean(self) -> Tensor:
        """μ, ``(d,)``.

        Raises:
            ConfigurationError: If ν ≤ 1: there is no mean.
        """
        self._require_df(1, "mean")
        return self.location.clone()

    def covariance(self) -> Tensor:
        """ν/(ν - 2) S, ``(d, d)``.

        Raises:
            ConfigurationError: If ν ≤ 2: there is no covariance.
        """
        self._require_df(2, "covariance")
        return self.df / (self.df - 2.0) * covariance_matrix(self.whitening)

    def minima(self) -> Tensor:
        """μ, ``(1, d)``."""
        return self.location[None].clone()

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, d)``; the chi-square in them by inversion, on the host."""
        options = draw_options(self, n, seed)
        normals = torch.randn(n, len(self.location), **options)
        uniforms = 1.0 - torch.rand(n, 1, **{**options, "dtype": torch.float64})
        df = self.df.item()
        chi_square = 2.0 * torch.as_tensor(gammaincinv(0.5 * df, uniforms.cpu().numpy()))
        stretch = (df / chi_square).sqrt().to(normals)
        return self.location + unwhiten(self.whitening, normals * stretch)

    def _require_df(self, least: int, what: str) -> None:
        if self.df.item() <= least:
            raise ConfigurationError(
                f"df is {self.df.item():g}",
                f"more than {least} degrees of freedom, without which there is no {what}",
                "raise df, or compare quantiles instead of moments",
            )
