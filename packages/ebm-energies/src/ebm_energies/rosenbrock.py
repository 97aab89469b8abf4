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

from ebm_core import ConfigurationError, state_options
from ebm_energies._base import VectorEnergy, available_if, draw_options, hold_number


class Rosenbrock(VectorEnergy):
    """E(x) = Σ_{i<d} b (x_{i+1} - x_i²)² + (a - x_i)² (Rosenbrock 1960; chained over d elements).

    In two dimensions x_1 ~ N(a, 1/2) and x_2 | x_1 ~ N(x_1², 1/(2b)), so that draws are exact.
    Normaliser, mean and covariance come from d - 2 quadratures (and one for x_1), good to some 12
    digits.

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

    @torch.no_grad()
    def _integrate(self, moments: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """The log normaliser, E[x] ``(d,)`` and E[x xᵀ] ``(d, d)``, in float64.

        ``log_rest[s]`` is the log integral over all later elements given x_k = s; ``first[s]`` and
        ``second[s]`` the conditional moments of elements k to d. Only integrals over the *next*
        element occur, a Gaussian of known width, for which the nodes are spaced.
        """
        dim = self.require_dim()
        a, b = self.a.double(), self.b.double()
        nodes, log_prior = self._nodes(a, b if dim > 2 else torch.ones_like(b))
        n = len(nodes)
        log_rest = (0.5 * (math.pi / b).log()).expand(n)
        first = nodes.new_zeros(n, dim)
        second = nodes.new_zeros(n, dim, dim)
        square = nodes.square()
        first[:, -2:] = torch.stack([nodes, square], 1)
        second[:, -2:, -2:] = torch.stack(
            [square, nodes**3, nodes**3, nodes**4 + 0.5 / b], 1
        ).reshape(n, 2, 2)
        walls = b * (nodes - square[:, None]).square()
        for k in range(dim - 3, -1, -1):
            log_joint = log_prior + log_rest - walls
            log_rest = log_joint.logsumexp(1)
            if moments:
                transition = log_joint.softmax(1)
                first = transition @ first
                second = (transition @ second.reshape(n, -1)).reshape(n, dim, dim)
                first[:, k] = nodes
                second[:, k] = second[:, :, k] = nodes[:, None] * first
        log_start = log_prior + log_rest
        weights = log_start.softmax(0)
        return log_start.logsumexp(0), weights @ first, torch.tensordot(weights, second, 1)

    def _nodes(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes around a that resolve walls of steepness b, and log of the step - (a - x)²."""
        reach, width = 7.0, 1.0 / math.sqrt(2.0 * (b.item() + 1.0))
        n = math.ceil(2.0 * reach / (0.4 * width))
        if n > 4096:
            raise ConfigurationError(
                f"b is {b.item():g}: its walls need {n} nodes a line",
                "at most 4096 nodes, b < 6800",
                "lower b",
            )
        nodes = torch.linspace(-reach, reach, n, dtype=torch.float64, device=a.device)
        return a + nodes, (nodes[1] - nodes[0]).log() - nodes.square()
