"""Particles that attract and repel each other in a trap."""

import math
from typing import Any

import torch
from torch import Tensor

from ebm_core import EnergyFunction, state_options
from ebm_core.validation import check_integer
from ebm_energies._base import available_if, hold, hold_number
from ebm_energies._quadrature import FAR, Line, tabulate


class LennardJonesCluster(EnergyFunction):
    """E(x) = Σ_{i<j} 4ε ((σ/r_ij)¹² - (σ/r_ij)⁶) + ½ k Σ_i |x_i|², in units of k_B T.

    The trap holds every particle to the origin; it is the same as one of stiffness n k on the
    centre of mass and one of stiffness k on the positions relative to it. Without it exp(-E) would
    have no integral: clusters evaporate. Particles at the same place have infinite energy. For two
    particles, normaliser and covariance follow from an integral over their distance.

    Args:
        n_particles: n ≥ 2.
        n_dims: Spatial dimensions of a particle; states are ``(..., n_particles, n_dims)``.
        epsilon: Depth ε > 0 of the pair potential (1/temperature in reduced units).
        sigma: Distance σ > 0 at which the pair potential is zero.
        trap_stiffness: k > 0.

    Example:
        >>> energy = LennardJonesCluster(n_particles=2, n_dims=1, trap_stiffness=2.0)
        >>> energy(torch.tensor([[[-0.5], [0.5]], [[0.0], [0.0]]]))
        tensor([0.5000,    inf])
    """

    epsilon: Tensor
    sigma: Tensor
    trap_stiffness: Tensor
    identity: Tensor
    event_ndim = 2

    def __init__(
        self,
        n_particles: int,
        n_dims: int = 3,
        *,
        epsilon: Any = 1.0,
        sigma: Any = 1.0,
        trap_stiffness: Any = 1.0,
    ) -> None:
        super().__init__()
        self.n_particles = check_integer("n_particles", n_particles, at_least=2)
        self.n_dims = check_integer("n_dims", n_dims, at_least=1)
        self.event_shape = torch.Size([self.n_particles, self.n_dims])
        hold_number(self, "epsilon", epsilon, above=0)
        hold_number(self, "sigma", sigma, above=0)
        hold_number(self, "trap_stiffness", trap_stiffness, above=0)
        hold(self, "identity", torch.eye(self.n_particles), self.epsilon.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The energy: ``(..., n, n_dims) -> (...)``; infinite where particles coincide."""
        squares = (x.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1)
        # Every pair counts twice. A particle's distance to itself is set to σ before the division
        # and its term to 0 after it, so that neither value nor gradient sees a division by zero.
        itself = self.identity * self.sigma.square()
        pairs = self._pair(squares + itself) * (1.0 - self.identity)
        trap = self.trap_stiffness * x.square().sum((-2, -1))
        return 0.5 * (pairs.sum((-2, -1)) + trap)

    def mean(self) -> Tensor:
        """Zero, by symmetry, ``(n_particles, n_dims)``."""
        return self.trap_stiffness.new_zeros(self.n_particles, self.n_dims)

    @available_if(lambda self: self.n_particles == 2)
    def log_normalizer(self) -> Tensor:
        """For two particles, by the trapezoidal rule over their distance."""
        half_dim = 0.5 * self.n_dims
        centre = half_dim * (math.pi / self.trap_stiffness).log()
        sphere = math.log(2.0) + half_dim * math.log(math.pi) - math.lgamma(half_dim)
        return (centre + sphere + self._distances().log_integral()).to(state_options(self)[1])

    @available_if(lambda self: self.n_particles == 2)
    def covariance(self) -> Tensor:
        """For two particles: ``(2 n_dims, 2 n_dims)``, from the same integral."""
        line = self._distances()
        relative = line.expectation(line.nodes.square()) / (4.0 * self.n_dims)
        centre = 0.5 / self.trap_stiffness.double()
        signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).to(relative)
        axes = torch.eye(self.n_dims).to(relative)
        return torch.kron(centre + relative * signs, axes).to(state_options(self)[1])

    def _pair(self, squared_distance: Tensor) -> Tensor:
        """4ε (s² - s) with s = (σ/r)⁶, as a product: s = infinity then gives infinity, not NaN."""
        sixth = (self.sigma.square() / squared_distance) ** 3
        return 4.0 * self.epsilon * (sixth * (sixth - 1.0))

    def _distances(self) -> Line:
        """The density of the distance of two particles."""
        epsilon, sigma, stiffness = (
            p.item() for p in (self.epsilon, self.sigma, self.trap_stiffness)
        )
        nearest = sigma * (epsilon / (100.0 * (FAR + epsilon))) ** (1 / 12)
        furthest = 2.0 * math.sqrt((FAR + epsilon) / stiffness) + nearest

        def radial(r: Tensor) -> Tensor:
            trap = 0.25 * self.trap_stiffness * r.square()
            return self._pair(r.square()) + trap - (self.n_dims - 1) * r.log()

        return tabulate(radial, nearest, furthest, device=self.epsilon.device)
