"""Curved and funnel-shaped densities with everything known: Neal's funnel, the banana, the ring."""

import math
from typing import Any

import torch
from torch import Tensor

from ebm_core import EnergyFunction
from ebm_core.validation import check_integer
from ebm_energies._base import draw_options, hold_number
from ebm_energies.gaussian import LOG_TWO_PI


class NealFunnel(EnergyFunction):
    """v = x_0 ~ N(0, s²) and x_i | v ~ N(0, e^v) (Neal, Annals of Statistics 31, 2003).

    E(x) = v²/2s² + ½ e^{-v} Σ x_i² + ½ (d-1) v.

    The variance of x_i is exp(s²/2), 90 for s = 3, carried by rare draws: judge a sampler by x_0
    and x_i e^{-x_0/2}.

    Args:
        dim: d ≥ 2; Neal's has ten elements.
        scale: s > 0.

    Example:
        >>> NealFunnel(dim=3, scale=3.0)(torch.tensor([[0.0, 1.0, 1.0]]))
        tensor([1.])
    """

    scale: Tensor
    event_ndim = 1

    def __init__(self, dim: int = 10, scale: Any = 3.0) -> None:
        super().__init__()
        self.event_shape = torch.Size([check_integer("dim", dim, at_least=2)])
        hold_number(self, "scale", scale, above=0)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """The energy: ``(..., d) -> (...)``."""
        neck, rest = x[..., 0], x[..., 1:]
        # e^{-v/2} x as two factors e^{-v/4}, bounded below overflow: 0 · inf cannot arise, and a
        # non-zero x beyond the bound has an energy that no float of the dtype holds.
        limit = 0.9 * math.log(torch.finfo(x.dtype).max)
        quarter = (-0.25 * neck).clamp_max(limit).exp().unsqueeze(-1)
        squares = (rest * quarter * quarter).square().sum(-1)
        return 0.5 * ((neck / self.scale).square() + squares + (self.dim - 1) * neck)

    def log_normalizer(self) -> Tensor:
        """d/2 log 2π + log s."""
        return 0.5 * self.dim * LOG_TWO_PI + self.scale.log()

    def mean(self) -> Tensor:
        """Zero, ``(d,)``."""
        return torch.zeros_like(self.scale).expand(self.dim).clone()

    def covariance(self) -> Tensor:
        """diag(s², e^{s²/2}, ...), ``(d, d)``."""
        variance = self.scale.square()
        rest = (0.5 * variance).exp().expand(self.dim - 1)
        return torch.cat([variance[None], rest]).diag()

    def minima(self) -> Tensor:
        """The only minimum, far down the neck: v = -(d-1) s²/2, all else 0, ``(1, d)``."""
        neck = -0.5 * (self.dim - 1) * self.scale.square()
        return torch.cat([neck[None], neck.new_zeros(self.dim - 1)])[None]

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, d)``."""
        normals = torch.randn(n, self.dim, **draw_options(self, n, seed))
        neck = self.scale * normals[:, :1]
        return torch.cat([neck, (0.5 * neck).exp() * normals[:, 1:]], dim=1)


class Banana(EnergyFunction):
    """A bent Gaussian (Haario, Saksman & Tamminen, Computational Statistics 14, 1999).

    x_1 ~ N(0, s²), x_2 + c (x_1² - s²) ~ N(0, 1), and all other elements N(0, 1).

    Args:
        curvature: c; the paper's are 0.03 and 0.1.
        scale: s > 0; the paper's is 10.
        dim: d ≥ 2.

    Example:
        >>> Banana(curvature=0.5, scale=2.0).covariance()
        tensor([[4., 0.], [0., 9.]])
    """

    curvature: Tensor
    scale: Tensor
    event_ndim = 1

    def __init__(self, curvature: Any = 0.03, scale: Any = 10.0, *, dim: int = 2) -> None:
        super().__init__()
        hold_number(self, "curvature", curvature)
        hold_number(self, "scale", scale, above=0)
        self.event_shape = torch.Size([check_integer("dim", dim, at_least=2)])
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """The energy: ``(..., d) -> (...)``."""
        first, second = x[..., 0], x[..., 1]
        straight = second + self.curvature * (first.square() - self.scale.square())
        energy = 0.5 * ((first / self.scale).square() + straight.square())
        return energy if self.dim == 2 else energy + 0.5 * x[..., 2:].square().sum(-1)

    def log_normalizer(self) -> Tensor:
        """d/2 log 2π + log s: the bend preserves volume."""
        return 0.5 * self.dim * LOG_TWO_PI + self.scale.log()

    def mean(self) -> Tensor:
        """Zero, ``(d,)``."""
        return torch.zeros_like(self.scale).expand(self.dim).clone()

    def covariance(self) -> Tensor:
        """diag(s², 1 + 2 c² s⁴, 1, ...), ``(d, d)``."""
        variance = self.scale.square()
        second = 1.0 + 2.0 * (self.curvature * variance).square()
        return torch.cat([torch.stack([variance, second]), variance.new_ones(self.dim - 2)]).diag()

    def minima(self) -> Tensor:
        """The only minimum, (0, c s², 0, ...), ``(1, d)``."""
        second = self.curvature * self.scale.square()
        return torch.cat([second.new_zeros(1), second[None], second.new_zeros(self.dim - 2)])[None]

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, d)``."""
        normals = torch.randn(n, self.dim, **draw_options(self, n, seed))
        first = self.scale * normals[:, :1]
        second = normals[:, 1:2] - self.curvature * (first.square() - self.scale.square())
        return torch.cat([first, second, normals[:, 2:]], dim=1)


class Ring(EnergyFunction):
    """E(x) = (|x| - R)² / 2w² in the plane: a ring without a preferred place on it.

    At the origin the energy has a kink; the gradient there is given as zero.

    Args:
        radius: R > 0.
        width: w > 0.

    Example:
        >>> Ring(radius=2.0, width=0.5)(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        tensor([0., 8.])
    """

    radius: Tensor
    width: Tensor
    event_shape = torch.Size([2])
    event_ndim = 1

    def __init__(self, radius: Any = 2.0, width: Any = 0.2) -> None:
        super().__init__()
        hold_number(self, "radius", radius, above=0)
        hold_number(self, "width", width, above=0)

    def forward(self, x: Tensor) -> Tensor:
        """The energy: ``(..., 2) -> (...)``."""
        # The bound keeps the derivative of the root finite at the origin; it is far below rounding.
        distance = x.square().sum(-1).clamp_min(1e-36).sqrt()
        return 0.5 * ((distance - self.radius) / self.width).square()

    def log_normalizer(self) -> Tensor:
        """log 2π ∫ r exp(-(r - R)²/2w²) dr, in closed form."""
        return LOG_TWO_PI + self._radial_moments()[1].log()

    def mean(self) -> Tensor:
        """Zero, ``(2,)``."""
        return torch.zeros_like(self.radius).expand(2).clone()

    def covariance(self) -> Tensor:
        """½ E[r²] I, ``(2, 2)``."""
        moments = self._radial_moments()
        return (0.5 * moments[3] / moments[1]).expand(2).diag()

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, 2)``."""
        options = draw_options(self, n, seed)
        angle = 2.0 * math.pi * torch.rand(n, **options)
        radius = torch.cat(list(self._radii(n, options)))[:n]
        return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)

    def _radial_moments(self) -> list[Tensor]:
        """I_k = ∫ r^k exp(-(r - R)²/2w²) dr over r > 0, for k = 0 … 3.

        Integration by parts gives I_k = R I_{k-1} + (k-1) w² I_{k-2}.
        """
        radius, variance = self.radius, self.width.square()
        ratio = radius / (math.sqrt(2.0) * self.width)
        zeroth = math.sqrt(0.5 * math.pi) * self.width * torch.erfc(-ratio)
        moments = [zeroth, radius * zeroth + variance * (-ratio.square()).exp()]
        for k in (2, 3):
            moments.append(radius * moments[-1] + (k - 1) * variance * moments[-2])
        return moments

    def _radii(self, n: int, options: dict[str, Any]) -> Any:
        """Batches of draws from r exp(-(r - R)²/2w²), ``n`` or more altogether.

        Rejection under (R + |r - R|) exp(-(r - R)²/2w²), which is a normal density plus a two-sided
        Rayleigh density of weight 2w² against R w √(2π).
        """
        normal_weight = self.radius * self.width * math.sqrt(2.0 * math.pi)
        normal_share = normal_weight / (normal_weight + 2.0 * self.width.square())
        drawn = 0
        while drawn < n:
            choice, sign, accept, level = torch.rand(4, n, **options)
            normal = self.width * torch.randn(n, **options)
            rayleigh = self.width * (-2.0 * torch.log1p(-level)).sqrt() * (2.0 * (sign < 0.5) - 1.0)
            offset = torch.where(choice < normal_share, normal, rayleigh)
            radius = self.radius + offset
            kept = radius[accept * (self.radius + offset.abs()) < radius]
            drawn += len(kept)
            yield kept
