"""Wells: the double well, a sum of bistable elements, and the harmonic well."""

import math
from typing import Any

import torch
from torch import Tensor

from ebm_energies._base import VectorEnergy, cartesian_power, draw_options, hold_number
from ebm_energies._quadrature import FAR
from ebm_energies.separable import SeparableEnergy


class DoubleWell(SeparableEnergy):
    """E(x) = h Σ_i (x_i² - b²)²: wells at ±b along each axis, a barrier of h b⁴ nats between.

    Args:
        barrier_height: h > 0.
        b: Where the wells are, b > 0.
        dim: The length of a state; None for any (then what depends on it is not known).

    Example:
        >>> energy = DoubleWell(barrier_height=2.0, b=1.0, dim=1)
        >>> energy(torch.tensor([[0.0], [1.0]])), energy.minima().flatten()
        (tensor([2., 0.]), tensor([-1.,  1.]))
    """

    barrier_height: Tensor
    b: Tensor

    def __init__(self, barrier_height: Any = 2.0, b: Any = 1.0, *, dim: int | None = None) -> None:
        super().__init__(dim)
        hold_number(self, "barrier_height", barrier_height, above=0)
        hold_number(self, "b", b, above=0)

    def profile(self, x: Tensor) -> Tensor:
        """h (x² - b²)², of the shape of ``x``."""
        return self.barrier_height * (x.square() - self.b.square()).square()

    def interval(self) -> tuple[float, float]:
        """Where the profile is below `FAR` nats."""
        reach = math.sqrt(self.b.item() ** 2 + math.sqrt(FAR / self.barrier_height.item()))
        return -reach, reach

    def minima(self) -> Tensor:
        """All minima, ``(2**dim, dim)``, equally deep."""
        return cartesian_power(torch.stack([-self.b, self.b]), self.require_dim())


class Harmonic(VectorEnergy):
    """E(x) = ½ k |x|²: a centred Gaussian of variance 1/k.

    Args:
        stiffness: k > 0.
        dim: The length of a state; None for any.

    Example:
        >>> Harmonic(stiffness=4.0, dim=2).covariance()
        tensor([[0.2500, 0.0000], [0.0000, 0.2500]])
    """

    stiffness: Tensor

    def __init__(self, stiffness: Any = 1.0, *, dim: int | None = None) -> None:
        super().__init__(dim)
        hold_number(self, "stiffness", stiffness, above=0)

    def forward(self, x: Tensor) -> Tensor:
        """½ k |x|²: ``(..., dim) -> (...)``."""
        return 0.5 * self.stiffness * x.square().sum(-1)

    def log_normalizer(self) -> Tensor:
        """dim/2 · log(2π/k)."""
        return 0.5 * self.require_dim() * (2.0 * math.pi / self.stiffness).log()

    def mean(self) -> Tensor:
        """Zero, ``(dim,)``."""
        return torch.zeros_like(self.stiffness).expand(self.require_dim()).clone()

    def covariance(self) -> Tensor:
        """I/k, ``(dim, dim)``."""
        return self.stiffness.reciprocal().expand(self.require_dim()).diag()

    def minima(self) -> Tensor:
        """The origin, ``(1, dim)``."""
        return self.mean()[None]

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, dim)``."""
        normals = torch.randn(n, self.require_dim(), **draw_options(self, n, seed))
        return normals / self.stiffness.sqrt()
