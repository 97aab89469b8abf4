"""The uniform law on a box: no energy inside, infinite energy outside."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ebm_core import ConfigurationError, ShapeError
from ebm_energies._base import VectorEnergy, common_dtype, double_tensor, draw_options, hold


class UniformBox(VectorEnergy):
    """E(x) = 0 where low ≤ x_i ≤ high for every i, infinite elsewhere.

    The gradient is zero inside and on the faces, and of no meaning outside. Added to another energy
    it truncates it.

    Args:
        low: Lower ends, a number or ``(d,)``.
        high: Upper ends, a number or ``(d,)``, greater than ``low``.
        dim: d, where both ends are numbers; None for any.

    Raises:
        ConfigurationError: If an end is not finite, or low ≥ high.
        ShapeError: If shapes and ``dim`` do not fit.

    Example:
        >>> box = UniformBox(-1.0, 1.0, dim=2)
        >>> box(torch.tensor([[0.0, 0.5], [0.0, 1.5]])), box.log_normalizer()
        (tensor([0., inf]), tensor(1.3863))
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Any, high: Any, *, dim: int | None = None) -> None:
        lower, upper = double_tensor("low", low), double_tensor("high", high)
        sizes = {end.shape for end in (lower, upper) if end.ndim > 0}
        if len(sizes) > 1 or any(len(size) != 1 for size in sizes) or (sizes and dim is not None):
            raise ShapeError(
                f"low has shape {tuple(lower.shape)}, high {tuple(upper.shape)}, and dim is {dim}",
                "numbers or vectors of one length, and dim only with two numbers",
                "give both ends as vectors of the box's dimension",
            )
        super().__init__(sizes.pop()[0] if sizes else dim)
        if not (lower < upper).all():
            raise ConfigurationError(
                "low is not below high everywhere", "low < high", "exchange the ends"
            )
        dtype = common_dtype((low, high))
        for name, given, end in (("low", low, lower), ("high", high, upper)):
            hold(self, name, given if isinstance(given, nn.Parameter) else end, dtype)

    @property
    def support(self) -> Constraint:  # type: ignore[override]
        """The interval of each element, on the ends' present device."""
        interval: Constraint = constraints.interval(self.low, self.high)  # type: ignore[no-untyped-call]
        return interval

    def forward(self, x: Tensor) -> Tensor:
        """0 or infinity: ``(..., d) -> (...)``."""
        # The sum of what sticks out is zero inside, with zero gradient, and keeps E a function of x
        # for autograd.
        outside = ((self.low - x).relu() + (x - self.high).relu()).sum(-1)
        return torch.where(outside > 0, math.inf, outside)

    def log_normalizer(self) -> Tensor:
        """The log volume."""
        return (self.high - self.low).log().expand(self.require_dim()).sum()

    def mean(self) -> Tensor:
        """The centre, ``(d,)``."""
        return (0.5 * (self.low + self.high)).expand(self.require_dim()).clone()

    def covariance(self) -> Tensor:
        """diag((high - low)²/12), ``(d, d)``."""
        return ((self.high - self.low).square() / 12.0).expand(self.require_dim()).diag()

    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, d)``."""
        uniforms = torch.rand(n, self.require_dim(), **draw_options(self, n, seed))
        return torch.lerp(self.low, self.high, uniforms)
