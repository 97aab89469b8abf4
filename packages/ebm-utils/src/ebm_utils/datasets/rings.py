"""Concentric circles blurred by round Gaussian noise; the density has a closed form."""

import math

import torch
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_core.validation import check_positive, check_tensor
from ebm_utils.arrays import TensorLike
from ebm_utils.datasets.base import DensityDataset, check_plane, normal, on_circle, uniform
from ebm_utils.quadrature import GridBounds

REACH = 6.0  # standard deviations from the largest circle to the edge of `bounds`


class Circles(DensityDataset):
    """Concentric circles, blurred.

    With r = |x|, one circle of radius R gives N(r; R, σ²) σ^-1 (2π)^-1/2 I0e(rR/σ²), where I0e is
    the exponentially scaled modified Bessel function of order zero.

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream; see `SyntheticDataset`.
        radii: Radii of the circles, which share the mass equally.
        noise: The standard deviation σ of the noise, in each direction.
        dtype: Floating dtype of the states.
        device: Where the states live.

    Example:
        >>> circles = Circles(1000, seed=0, radii=(1.0, 2.0, 3.0))
        >>> circles.bounds[0]
        (-3.6, 3.6)
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        radii: tuple[float, ...] = (1.0, 2.0),
        noise: float = 0.1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n_samples, seed, dtype=dtype, device=device)
        self.radii = check_tensor("radii", radii, (None,)).to("cpu", torch.float64)
        if len(self.radii) == 0 or not (self.radii > 0).all():
            raise ConfigurationError(
                f"radii are {radii!r}", "positive numbers", "pass at least one radius"
            )
        self.noise = check_positive("noise", noise)

    @property
    def finest_scale(self) -> float:
        """The standard deviation of the noise."""
        return self.noise

    @property
    def bounds(self) -> GridBounds:
        """The square six standard deviations of the noise around the largest circle."""
        edge = self.radii.max().item() + REACH * self.noise
        return (-edge, edge), (-edge, edge)

    def log_density(self, x: TensorLike) -> Tensor:
        """The log density of the blurred circles in closed form: ``(*batch, 2) -> (*batch,)``."""
        x = check_plane(x)
        variance = self.noise**2
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        radii = self.radii.to(x)
        terms = torch.special.i0e(r * radii / variance).log() - (r - radii).square() / (
            2 * variance
        )
        return torch.logsumexp(terms, dim=-1) - math.log(2 * math.pi * variance * len(radii))

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        radius = self.radii[torch.randint(len(self.radii), (n,), generator=generator)]
        angle = uniform(n, 0.0, 2 * math.pi, generator)
        return radius[:, None] * on_circle(angle) + self.noise * normal(n, generator)
