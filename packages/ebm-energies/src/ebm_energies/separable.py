"""Energies that are a sum of one profile over the elements of a state.

The density is then a product, and everything about it follows from one integral over the line.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from ebm_core import state_options
from ebm_energies._base import VectorEnergy, draw_options
from ebm_energies._quadrature import Line, tabulate


class SeparableEnergy(VectorEnergy):
    """E(x) = Σ_i profile(x_i); normaliser, moments and draws from the integral of exp(-profile).

    Subclasses give `profile` and `interval`.

    Args:
        dim: The length of a state; None for any.
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__(dim)

    @abstractmethod
    def profile(self, x: Tensor) -> Tensor:
        """The energy of single elements, of the shape of ``x``."""

    @abstractmethod
    def interval(self) -> tuple[float, float]:
        """An interval outside which exp(-profile) is nothing beside its largest value."""

    def forward(self, x: Tensor) -> Tensor:
        """Σ_i profile(x_i): ``(..., dim) -> (...)``."""
        return self.profile(x).sum(-1)

    def log_normalizer(self) -> Tensor:
        """dim · log ∫ exp(-profile(u)) du, by the trapezoidal rule; with its graph."""
        return (self.require_dim() * self._line().log_integral()).to(state_options(self)[1])

    def mean(self) -> Tensor:
        """E[x], ``(dim,)``, by the same rule."""
        dim, line = self.require_dim(), self._line()
        return line.expectation(line.nodes).to(state_options(self)[1]).expand(dim).clone()

    def covariance(self) -> Tensor:
        """Cov[x], ``(dim, dim)``, a multiple of the identity, by the same rule."""
        dim, line = self.require_dim(), self._line()
        variance = line.expectation((line.nodes - line.expectation(line.nodes)).square())
        return variance.to(state_options(self)[1]).expand(dim).diag()

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, dim)``, each element by inversion."""
        options = draw_options(self, n, seed)
        draws = self._line().sample((n, self.require_dim()), options["generator"])
        return draws.to(options["dtype"])

    def _line(self) -> Line:
        return tabulate(self.profile, *self.interval(), device=state_options(self)[0])
