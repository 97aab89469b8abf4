"""Continuous fields on periodic lattices."""

import math
from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, EnergyFunction
from ebm_core.validation import check_event_shape
from ebm_energies._base import available_if, draw_options, hold_number


class Phi4Lattice(EnergyFunction):
    """The φ⁴ action: E(φ) = Σ_x [½ Σ_μ (φ_{x+μ} - φ_x)² + ½ m² φ_x² + ¼ λ φ_x⁴].

    Any number of dimensions, periodic boundary, lattice spacing 1. For m² < 0 the two uniform
    fields ±(-m²/λ)^{1/2} are the minima, and on large lattices the field orders. The free field,
    λ = 0, is Gaussian and fully known; otherwise the mean (zero, by symmetry) and the minima are.

    Albergo, Kanwar & Shanahan (Physical Review D 100, 2019) write the action without the factors ½,
    ½, ¼; their field times 2^{1/2} is this one, with the same m² and λ.

    Args:
        shape: The lattice, such as ``(8, 8)``; states are ``(..., *shape)``.
        mass_squared: m², of either sign; positive where λ is 0.
        coupling: λ ≥ 0.

    Raises:
        ConfigurationError: If a number is out of range.

    Example:
        >>> energy = Phi4Lattice((4, 4), mass_squared=-1.0, coupling=1.0)
        >>> energy(energy.minima())
        tensor([-4., -4.])
    """

    mass_squared: Tensor
    coupling: Tensor

    def __init__(
        self, shape: int | tuple[int, ...], mass_squared: Any = -1.0, coupling: Any = 1.0
    ) -> None:
        super().__init__()
        lattice = check_event_shape("shape", shape)
        if len(lattice) == 0:
            raise ConfigurationError("shape is ()", "at least one axis", "pass (8, 8), say")
        self.event_shape = lattice
        self.event_ndim = len(lattice)
        hold_number(self, "mass_squared", mass_squared)
        hold_number(self, "coupling", coupling, at_least=0)
        if self.coupling == 0 and self.mass_squared <= 0:
            raise ConfigurationError(
                f"mass_squared is {self.mass_squared.item():g} for a free field, coupling 0",
                "a positive mass_squared, or a positive coupling",
                "raise either",
            )
        self.lattice = lattice
        self.axes = tuple(range(-len(lattice), 0))

    def forward(self, x: Tensor) -> Tensor:
        """The action: ``(..., *shape) -> (...)``."""
        # As a product, and bounded in its second factor alone, the potential is infinite where x²
        # overflows, not 0 times infinity or infinity less infinity.
        square = x.square()
        bounded = square.clamp_max(torch.finfo(x.dtype).max)
        density = square * (0.5 * self.mass_squared + 0.25 * self.coupling * bounded)
        for axis in self.axes:
            density = density + 0.5 * (x.roll(-1, axis) - x).square()
        return density.sum(self.axes)

    def mean(self) -> Tensor:
        """Zero, by symmetry, ``(*shape)``."""
        return self.coupling.new_zeros(self.lattice)

    def minima(self) -> Tensor:
        """±(-m²/λ)^{1/2} everywhere, ``(2, *shape)``; where m² ≥ 0, zero, ``(1, *shape)``."""
        if self.mass_squared >= 0:
            return self.mean()[None]
        level = (-self.mass_squared / self.coupling).sqrt()
        return torch.stack([level.neg().expand(self.lattice), level.expand(self.lattice)])

    @available_if(lambda self: self.coupling == 0)
    def log_normalizer(self) -> Tensor:
        """For the free field: ½ Σ_k log(2π / (m² + 4 Σ_μ sin²(π k_μ/L_μ)))."""
        return 0.5 * (2.0 * math.pi / self._spectrum()).log().sum()

    @available_if(lambda self: self.coupling == 0)
    def covariance(self) -> Tensor:
        """For the free field: the propagator, ``(sites, sites)`` with sites in row-major order."""
        sites = self.lattice.numel()
        unit_fields = torch.eye(sites).to(self.coupling).reshape(sites, *self.lattice)
        return self._filter(unit_fields, self._spectrum().reciprocal()).reshape(sites, sites)

    @available_if(lambda self: self.coupling == 0)
    @torch.no_grad()
    def exact_sample(self, n: int, seed: int | None = None) -> Tensor:
        """For the free field: ``n`` independent draws, ``(n, *shape)``, as filtered white noise."""
        noise = torch.randn(n, *self.lattice, **draw_options(self, n, seed))
        return self._filter(noise, self._spectrum().rsqrt())

    def _spectrum(self) -> Tensor:
        """Eigenvalues of m² minus the lattice Laplacian, by wave number, ``(*shape)``."""
        spectrum = self.mass_squared.expand(self.lattice)
        for axis, side in zip(self.axes, self.lattice, strict=True):
            wave = torch.arange(side, device=spectrum.device, dtype=spectrum.dtype)
            along = (math.pi / side * wave).sin().square().reshape(-1, *[1] * (-axis - 1))
            spectrum = spectrum + 4.0 * along
        return spectrum

    def _filter(self, fields: Tensor, response: Tensor) -> Tensor:
        """Fields multiplied by ``response`` in wave-number space."""
        waves = torch.fft.fftn(fields, dim=self.axes) * response
        filtered: Tensor = torch.fft.ifftn(waves, dim=self.axes).real
        return filtered
