"""Mixtures of Gaussians with given covariances, full or diagonal, and proportions."""

from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, EnergyFunction, ShapeError
from ebm_core.validation import check_tensor
from ebm_energies._base import common_dtype, double_tensor, draw_options, hold, refuse_parameters
from ebm_energies._matrices import cholesky_factor, inverse_lower, whitening_diagonal
from ebm_energies.gaussian import LOG_TWO_PI


class GaussianMixture(EnergyFunction):
    """E(x) = -log Σ_k w_k N(x; μ_k, Σ_k): a normalised density, so that `log_normalizer` is zero.

    Attributes:
        means: μ, ``(K, d)``.
        whitening: W_k = L_k⁻¹ with Σ_k = L_k L_kᵀ, ``(K, d, d)``, or ``(K, d)`` if diagonal.
        weights: w, ``(K,)``.

    Args:
        means: ``(K, d)``; a parameter stays one.
        covariances: ``(K, d, d)``, or ``(K, d)`` variances; None for identities.
        weights: ``(K,)``, positive, of sum 1; None for equal ones.

    Raises:
        ConfigurationError: If a covariance is not finite, symmetric and positive definite, a weight
            is not positive, or the weights do not sum to 1.
        ShapeError: If the shapes do not fit.

    Example:
        >>> energy = GaussianMixture([[-2.0], [2.0]], weights=[0.25, 0.75])
        >>> energy.mean(), energy.covariance()
        (tensor([1.]), tensor([[4.]]))
    """

    means: Tensor
    whitening: Tensor
    weights: Tensor
    log_peaks: Tensor
    event_ndim = 1

    def __init__(self, means: Any, covariances: Any = None, weights: Any = None) -> None:
        super().__init__()
        centres = check_tensor("means", means, (None, None))
        n_components, dim = centres.shape
        dtype = common_dtype((means, covariances, weights))
        if not isinstance(means, Tensor):
            centres = double_tensor("means", means)
        if covariances is None:
            covariances = torch.ones(n_components, dim, dtype=dtype)
        if weights is None:
            weights = torch.full((n_components,), 1.0 / n_components, dtype=torch.float64)
        refuse_parameters(
            "learn the means here, or write the mixture with ebm_core.MixtureEnergy",
            covariances=covariances,
            weights=weights,
        )
        hold(self, "means", centres, dtype)
        whitening = _whitening(covariances, n_components, dim)
        hold(self, "whitening", whitening.to(centres.device), dtype)
        proportions = _check_weights(weights, n_components)
        hold(self, "weights", proportions.to(centres.device), dtype)
        diagonals = whitening if whitening.ndim == 2 else whitening.diagonal(dim1=1, dim2=2)
        # log w_k + log det W_k - d/2 log 2π, the log density of component k at its own mean, times
        # its weight.
        log_peaks = proportions.log() + diagonals.log().sum(1) - 0.5 * dim * LOG_TWO_PI
        hold(self, "log_peaks", log_peaks.to(centres.device), dtype)
        self.event_shape = torch.Size([dim])

    def forward(self, x: Tensor) -> Tensor:
        """-log Σ_k w_k N(x; μ_k, Σ_k): ``(..., d) -> (...)``."""
        deviations = x.unsqueeze(-2) - self.means
        if self.whitening.ndim == 2:
            whitened = deviations * self.whitening
        else:
            whitened = torch.einsum("kij,...kj->...ki", self.whitening, deviations)
        terms = self.log_peaks - 0.5 * whitened.square().sum(-1)
        # torch.logsumexp takes the components' shares in the gradient from its rounded result, so
        # that far out they do not sum to 1; written out like this they do.
        largest = terms.amax(-1, keepdim=True).detach().clamp_min(torch.finfo(terms.dtype).min)
        return -((terms - largest).exp().sum(-1).log() + largest.squeeze(-1))

    def log_normalizer(self) -> Tensor:
        """Zero."""
        return torch.zeros_like(self.log_peaks[0])

    def mean(self) -> Tensor:
        """Σ_k w_k μ_k, ``(d,)``."""
        return self.weights @ self.means

    def covariance(self) -> Tensor:
        """Σ_k w_k (Σ_k + μ_k μ_kᵀ) - μ μᵀ, ``(d, d)``."""
        factors = self._factors()
        deviations = self.means - self.mean()
        within = torch.einsum("k,kij,klj->il", self.weights, factors, factors)
        return within + torch.einsum("k,ki,kj->ij", self.weights, deviations, deviations)

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, d)``."""
        options = draw_options(self, n, seed)
        normals = torch.randn(n, self.means.shape[1], **options)
        labels = torch.multinomial(
            self.weights, n, replacement=True, generator=options["generator"]
        )
        factors = self._factors()
        draws = torch.empty_like(normals)
        for k, (mean, factor) in enumerate(zip(self.means, factors, strict=True)):
            mine = labels == k
            draws[mine] = mean + normals[mine] @ factor.mT
        return draws

    def _factors(self) -> Tensor:
        """L_k, ``(K, d, d)``."""
        if self.whitening.ndim == 2:
            return torch.diag_embed(self.whitening.reciprocal())
        return inverse_lower(self.whitening)


def _whitening(covariances: Any, n_components: int, dim: int) -> Tensor:
    matrices = double_tensor("covariances", covariances)
    if matrices.shape == (n_components, dim):
        return whitening_diagonal("covariances", matrices, "covariance")
    if matrices.shape != (n_components, dim, dim):
        raise ShapeError(
            f"covariances has shape {tuple(matrices.shape)}",
            f"({n_components}, {dim}, {dim}), or ({n_components}, {dim}) variances",
            "give one covariance a component",
        )
    eps = torch.finfo(common_dtype((covariances,))).eps
    return inverse_lower(cholesky_factor("covariances", matrices, eps))


def _check_weights(weights: Any, n_components: int) -> Tensor:
    proportions = double_tensor("weights", weights, (n_components,))
    total = proportions.sum().item()
    if not (proportions > 0).all() or abs(total - 1.0) > 1e-5:
        raise ConfigurationError(
            f"weights sum to {total:g}, the smallest is {proportions.min().item():g}",
            "positive weights of sum 1",
            "divide them by their sum, and leave out components of weight 0",
        )
    return proportions / total
