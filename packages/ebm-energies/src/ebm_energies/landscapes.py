"""Test functions of optimisation and chemistry, as energies.

Their minima are known to the last digit, their normalisers seldom; see `Rosenbrock` for the one
that yields to a chain of integrals. `tempered` (of every energy) scales them: as they stand, many
have barriers that no chain crosses.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ebm_core import EnergyFunction
from ebm_energies._base import VectorEnergy, cartesian_power, hold_number
from ebm_energies._quadrature import FAR
from ebm_energies.separable import SeparableEnergy


class Rastrigin(SeparableEnergy):
    """E(x) = Σ_i x_i² + a (1 - cos 2π x_i): a bowl with a well near every lattice point.

    Args:
        a: Depth of the wells, a > 0; 10 is customary.
        dim: The length of a state; None for any.

    Example:
        >>> Rastrigin()(torch.tensor([[0.0, 0.5]]))
        tensor([20.2500])
    """

    a: Tensor

    def __init__(self, a: Any = 10.0, *, dim: int | None = None) -> None:
        super().__init__(dim)
        hold_number(self, "a", a, above=0)

    def profile(self, x: Tensor) -> Tensor:
        """x² + 2a sin²(πx), which equals x² + a (1 - cos 2πx) without its cancellation."""
        return x.square() + 2.0 * self.a * torch.sin(math.pi * x).square()

    def interval(self) -> tuple[float, float]:
        """Where x² is below `FAR` nats."""
        return -math.sqrt(FAR), math.sqrt(FAR)

    def minima(self) -> Tensor:
        """The global minimum, the origin, ``(1, dim)``."""
        return torch.zeros_like(self.a).expand(1, self.require_dim()).clone()


class StyblinskiTang(SeparableEnergy):
    """E(x) = scale · ½ Σ_i (x_i⁴ - 16 x_i² + 5 x_i) (Styblinski & Tang, Neural Networks 3, 1990).

    Args:
        scale: A positive factor.
        dim: The length of a state; None for any.

    Example:
        >>> energy = StyblinskiTang(dim=1)
        >>> energy(energy.minima())
        tensor([-39.1662, -25.0294])
    """

    scale: Tensor

    def __init__(self, scale: Any = 1.0, *, dim: int | None = None) -> None:
        super().__init__(dim)
        hold_number(self, "scale", scale, above=0)

    def profile(self, x: Tensor) -> Tensor:
        """½ scale x (x³ - 16 x + 5), of the shape of ``x``."""
        return 0.5 * self.scale * (x * (x * (x * x - 16.0) + 5.0))

    def interval(self) -> tuple[float, float]:
        """Where the profile is within `FAR` nats of its minimum."""
        reach = math.sqrt(8.0 + math.sqrt(100.0 + 2.0 * FAR / self.scale.item()))
        return -reach, reach

    def minima(self) -> Tensor:
        """All minima, ``(2**dim, dim)``, roots of 4x³ - 32x + 5 combined, the deepest first."""
        roots = torch.tensor([-2.903534027771177, 2.746802770990837], dtype=torch.float64)
        points = cartesian_power(roots.to(self.scale), self.require_dim())
        return points[torch.argsort((points > 0).sum(-1), stable=True)]


class Ackley(VectorEnergy):
    """E(x) = a (1 - exp(-b r)) + e - exp(mean_i cos c x_i) with r² = mean_i x_i² (Ackley 1987).

    It is bounded, by a + e, so that exp(-E) has no integral: there is no distribution behind it,
    and no moment to compare a sampler with. At its minimum it has a kink; the gradient there is
    given as zero.

    Args:
        a: Depth of the funnel, a > 0.
        b: Steepness of the funnel, b > 0.
        c: Wave number of the ripples.
        dim: The length of a state; None for any.

    Example:
        >>> Ackley()(torch.zeros(1, 3)).abs() < 1e-5
        tensor([True])
    """

    a: Tensor
    b: Tensor
    c: Tensor

    def __init__(
        self, a: Any = 20.0, b: Any = 0.2, c: Any = 2.0 * math.pi, *, dim: int | None = None
    ) -> None:
        super().__init__(dim)
        hold_number(self, "a", a, above=0)
        hold_number(self, "b", b, above=0)
        hold_number(self, "c", c)

    def forward(self, x: Tensor) -> Tensor:
        """The energy, at least 0: ``(..., dim) -> (...)``."""
        # The bound keeps the derivative of the root finite at the origin; it is far below rounding.
        radius = x.square().mean(-1).clamp_min(1e-36).sqrt()
        funnel = -self.a * torch.expm1(-self.b * radius)
        return funnel + math.e - (self.c * x).cos().mean(-1).exp()

    def minima(self) -> Tensor:
        """The global minimum, the origin, ``(1, dim)``."""
        return torch.zeros_like(self.a).expand(1, self.require_dim()).clone()


class Himmelblau(EnergyFunction):
    """E(x, y) = scale · ((x² + y - 11)² + (x + y² - 7)²), with four equal minima.

    Args:
        scale: A positive factor.

    Example:
        >>> Himmelblau()(torch.tensor([[3.0, 2.0], [0.0, 0.0]]))
        tensor([  0., 170.])
    """

    scale: Tensor
    event_shape = torch.Size([2])
    event_ndim = 1

    def __init__(self, scale: Any = 1.0) -> None:
        super().__init__()
        hold_number(self, "scale", scale, above=0)

    def forward(self, x: Tensor) -> Tensor:
        """The energy: ``(..., 2) -> (...)``."""
        u, v = x[..., 0], x[..., 1]
        return self.scale * ((u * u + v - 11.0).square() + (u + v * v - 7.0).square())

    def minima(self) -> Tensor:
        """All four minima, ``(4, 2)``."""
        return _points(
            self.scale,
            (3.0, 2.0),
            (-2.805118086952745, 3.131312518250573),
            (-3.7793102533777465, -3.2831859912861696),
            (3.5844283403304917, -1.8481265269644036),
        )


class MullerBrown(EnergyFunction):
    """The surface of a model reaction (Müller & Brown, Theoretica Chimica Acta 53, 1979).

    E(x, y) = scale · Σ_k A_k exp(a_k (x - x_k)² + b_k (x - x_k)(y - y_k) + c_k (y - y_k)²), with
    the constants of the paper; the minima lie at -146.70, -108.17 and -80.77 times the scale.

    Args:
        scale: A positive factor (1 / k_B T); 0.05 makes barriers of a few nats.

    Example:
        >>> energy = MullerBrown()
        >>> energy(energy.minima())
        tensor([-146.6995, -108.1667,  -80.7678])
    """

    # (A, a, b, c, x, y): numbers of the surface, not parameters, so exact in every dtype.
    terms = (
        (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
        (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
        (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
        (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
    )
    scale: Tensor
    event_shape = torch.Size([2])
    event_ndim = 1

    def __init__(self, scale: Any = 1.0) -> None:
        super().__init__()
        hold_number(self, "scale", scale, above=0)

    def forward(self, x: Tensor) -> Tensor:
        """The energy: ``(..., 2) -> (...)``."""
        total = torch.zeros_like(x[..., 0])
        for height, a, b, c, x0, y0 in self.terms:
            u, v = x[..., 0] - x0, x[..., 1] - y0
            # With the square completed, both terms have one sign: they overflow to ±infinity, not
            # to NaN.
            sheared = u + (0.5 * b / a) * v
            exponent = a * sheared.square() + (c - 0.25 * b * b / a) * v.square()
            total = total + height * exponent.exp()
        return self.scale * total

    def minima(self) -> Tensor:
        """The three minima, ``(3, 2)``, the deepest first."""
        return _points(
            self.scale,
            (-0.5582236346330243, 1.4417258418046686),
            (0.6234994049308765, 0.02803775852868567),
            (-0.05001082299820608, 0.4666941048719721),
        )


def _points(like: Tensor, *points: tuple[float, float]) -> Tensor:
    return torch.tensor(points, dtype=torch.float64).to(like)
