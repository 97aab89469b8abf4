"""The Rosenbrock valley in any dimension, with its moments.

exp(-E) of the chained form is a Markov chain in x_1, x_2, ...: given x_i, the next element is
Gaussian times a function of itself. Integrating from the last element backwards, one line at a
time, gives normaliser, mean and covariance in every dimension (the transfer-matrix method). The
last element is integrated in closed form.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, NumericalError, state_options
from ebm_energies._base import VectorEnergy, available_if, draw_options, hold_number
from ebm_energies._quadrature import FAR

_MOST_NODES = 4096


class Rosenbrock(VectorEnergy):
    """E(x) = Σ_{i<d} b (x_{i+1} - x_i²)² + (a - x_i)² (Rosenbrock 1960; chained over d elements).

    In two dimensions x_1 ~ N(a, 1/2) and x_2 | x_1 ~ N(x_1², 1/(2b)), so that draws are exact.
    Normaliser, mean and covariance come from d - 2 quadratures (and one for x_1), good to some 12
    digits, with their graph where a or b is a parameter. Walls too steep for 4096 nodes a line are
    refused.

    Args:
        a: Where the valley is lowest.
        b: Steepness of its walls, b > 0.
        dim: d ≥ 2; None for any.

    Example:
        >>> energy = Rosenbrock(dim=2)
        >>> energy.mean(), energy(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        (tensor([1.0000, 1.5000]), tensor([0., 1.]))
    """

    a: Tensor
    b: Tensor

    def __init__(self, a: Any = 1.0, b: Any = 100.0, *, dim: int | None = None) -> None:
        super().__init__(dim, at_least=2)
        hold_number(self, "a", a)
        hold_number(self, "b", b, above=0)

    def forward(self, x: Tensor) -> Tensor:
        """The energy: ``(..., d) -> (...)``."""
        here, following = x[..., :-1], x[..., 1:]
        walls = self.b * (following - here.square()).square()
        return (walls + (self.a - here).square()).sum(-1)

    def log_normalizer(self) -> Tensor:
        """log ∫ exp(-E(x)) dx, by one quadrature a dimension."""
        return self._integrate(moments=False)[0].to(state_options(self)[1])

    def mean(self) -> Tensor:
        """E[x], ``(d,)``, by the same quadratures."""
        return self._integrate()[1].to(state_options(self)[1])

    def covariance(self) -> Tensor:
        """Cov[x], ``(d, d)``, by the same quadratures."""
        _, first, second = self._integrate()
        return (second - torch.outer(first, first)).to(state_options(self)[1])

    @available_if(lambda self: self.event_shape in (None, torch.Size([2])))
    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """``n`` independent draws, ``(n, 2)``; in two dimensions only."""
        self.require_dim()
        first, second = torch.randn(2, n, **draw_options(self, n, seed))
        first = self.a + math.sqrt(0.5) * first
        return torch.stack([first, first.square() + second / (2.0 * self.b).sqrt()], dim=1)

    @available_if(lambda self: self.event_shape in (None, torch.Size([2])) or self.a == 1)
    def minima(self) -> Tensor:
        """The global minimum, ``(1, d)``: (a, a²), or ones where a = 1. Else it is not known."""
        dim = self.require_dim()
        return (
            torch.stack([self.a, self.a.square()])[None]
            if dim == 2
            else self.a.expand(1, dim).clone()
        )

    def _integrate(self, moments: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The log normaliser, E[x] ``(d,)`` and E[x xᵀ] ``(d, d)``, in float64.

        Raises:
            ConfigurationError: If the most nodes do not resolve the density.
            NumericalError: If its mass is not within the nodes.
        """
        log_normalizer, first, second, _ = self._sweep(self._nodes(), moments)
        return log_normalizer, first, second

    def _sweep(self, nodes: Tensor, moments: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `_integrate` gives, and the probability that some element is at the last nodes.

        ``log_rest[s]`` is the log integral over all later elements given x_k = s; ``first[s]``,
        ``second[s]`` and ``edge[s]`` the conditional expectations for elements k to d.
        """
        dim, n = self.require_dim(), len(nodes)
        a, b = self.a.double(), self.b.double()
        log_prior = (nodes[1] - nodes[0]).log() - (a - nodes).square()
        log_rest = (0.5 * (math.pi / b).log()).expand(n)
        first = nodes.new_zeros(n, dim)
        second = nodes.new_zeros(n, dim, dim)
        ends = nodes.new_zeros(n)
        ends[[0, -1]] = 1.0
        edge = ends
        square = nodes.square()
        first[:, -2:] = torch.stack([nodes, square], 1)
        second[:, -2:, -2:] = torch.stack(
            [square, nodes**3, nodes**3, nodes**4 + 0.5 / b], 1
        ).reshape(n, 2, 2)
        walls = b * (nodes - square[:, None]).square()
        for k in range(dim - 3, -1, -1):
            log_joint = log_prior + log_rest - walls
            log_rest = log_joint.logsumexp(1)
            transition = log_joint.softmax(1)
            edge = torch.maximum(ends, transition.detach() @ edge)
            if moments:
                first = transition @ first
                second = (transition @ second.reshape(n, -1)).reshape(n, dim, dim)
                first[:, k] = nodes
                second[:, k] = second[:, :, k] = nodes[:, None] * first
        log_start = log_prior + log_rest
        weights = log_start.softmax(0)
        log_normalizer = log_start.logsumexp(0)
        return log_normalizer, weights @ first, torch.tensordot(weights, second, 1), weights @ edge

    @torch.no_grad()
    def _nodes(self) -> Tensor:
        """Nodes for all elements but the last, that hold the mass and resolve the walls.

        Any state bounds the lowest energy from above, and no energy is below (a - x_i)²: so the
        mass is within a known distance of a. The step follows the width 1/(2 (b + 1))^{1/2} of an
        element given the one before, and narrows until the log normaliser has settled. A step 1.5
        times smaller at least squares the small error of such smooth integrands.
        """
        dim, a = self.require_dim(), self.a.item()
        b = self.b.item() if dim > 2 else 1.0
        reach = math.sqrt(_valley_floor(a, dim) + FAR)
        n = math.ceil(4.0 * reach * math.sqrt(2.0 * (b + 1.0)))
        before, change, edge = math.inf, math.inf, 0.0
        while n <= _MOST_NODES:
            nodes = torch.linspace(
                a - reach, a + reach, n, dtype=torch.float64, device=self.a.device
            )
            log_normalizer, _, _, at_edge = self._sweep(nodes, moments=False)
            change, edge = abs(log_normalizer.item() - before), at_edge.item()
            if change < 1e-7:
                break
            before, n = log_normalizer.item(), math.ceil(1.5 * n)
        if not edge < 1e-12:
            raise NumericalError(
                f"for a = {a:g}, b = {b:g} the nodes end where the density still has {edge:.1e}"
                " of its mass",
                "less than 1e-12 of it at the edge",
                "bring a nearer to 0",
            )
        if n > _MOST_NODES:
            raise ConfigurationError(
                f"with a = {a:g}, b = {b:g} the walls need {n} nodes a line or more",
                f"at most {_MOST_NODES} nodes",
                "lower b, or bring a nearer to 0",
            )
        return nodes


def _valley_floor(a: float, dim: int) -> float:
    """The lowest energy among some states with x_{i+1} = x_i², where the walls cost nothing."""
    last = torch.linspace(0.0, abs(a), 1001, dtype=torch.float64)
    x = last[:, None] ** (0.5 ** torch.arange(dim - 1, dtype=torch.float64))
    # The first element is free to be negative.
    x[:, -1] *= math.copysign(1.0, a)
    return (a - x).square().sum(1).min().item()
