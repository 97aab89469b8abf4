"""Mixtures of round Gaussians: at any centres, on a ring, on a grid, along two arcs (two moons)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_core.validation import check_integer, check_positive, check_tensor
from ebm_utils.arrays import TensorLike, to_tensor
from ebm_utils.datasets.base import DensityDataset, check_plane, normal, on_circle
from ebm_utils.quadrature import GridBounds

REACH = 6.0  # standard deviations from a centre to the edge of `bounds`
PAIRS = 2**16  # pairs of a state and a component held at once: bounds the memory of `log_density`


class GaussianMixture(DensityDataset):
    """p(x) = Σ_k w_k N(x; c_k, σ² I).

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream; see `SyntheticDataset`.
        centers: c, ``(K, 2)``.
        scale: The standard deviation σ of every component, in each direction.
        weights: w, ``(K,)``, positive; divided by their sum. None for equal weights.
        dtype: Floating dtype of the states.
        device: Where the states live.

    Raises:
        ConfigurationError: If an argument makes no sense.
        ShapeError: If ``centers`` or ``weights`` have the wrong shape.
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        centers: Sequence[Sequence[float]] | Tensor,
        scale: float,
        weights: Sequence[float] | Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n_samples, seed, dtype=dtype, device=device)
        self.centers = check_tensor("centers", centers, (None, 2)).detach().to("cpu", torch.float64)
        if len(self.centers) == 0:
            raise ConfigurationError(
                "centers has no rows", "one centre or more, (K, 2)", "pass centers=[[0.0, 0.0]]"
            )
        self.scale = check_positive("scale", scale)
        self.weights = _proportions(weights, len(self.centers))

    @property
    def finest_scale(self) -> float:
        """The standard deviation of a component."""
        return self.scale

    @property
    def bounds(self) -> GridBounds:
        """The box six standard deviations around the centres."""
        low, high = (
            self.centers.amin(0) - REACH * self.scale,
            self.centers.amax(0) + REACH * self.scale,
        )
        return tuple(zip(low.tolist(), high.tolist(), strict=True))

    def log_density(self, x: TensorLike) -> Tensor:
        """log Σ_k w_k N(x; c_k, σ² I): ``(*batch, 2) -> (*batch,)``."""
        x = check_plane(x)
        centers = self.centers.to(x)
        log_weights = (self.weights.log() - math.log(2 * math.pi * self.scale**2)).to(x)

        def of_chunk(states: Tensor) -> Tensor:
            across, up = (states[:, i, None] - centers[:, i] for i in range(2))
            squares = across.square() + up.square()
            return torch.logsumexp(log_weights - squares / (2 * self.scale**2), dim=-1)

        chunks = torch.split(x.reshape(-1, 2), max(1, PAIRS // len(centers)))
        return torch.cat([of_chunk(chunk) for chunk in chunks]).reshape(x.shape[:-1])

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        level = torch.rand(n, generator=generator, dtype=torch.float64)
        component = torch.searchsorted(self.weights.cumsum(0)[:-1], level, right=True)
        return self.centers[component] + self.scale * normal(n, generator)


class EightGaussians(GaussianMixture):
    """Eight Gaussians on a ring, the first at (radius, 0), then counter-clockwise.

    The entropy is 1.6981 nats with the default arguments.

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream; see `SyntheticDataset`.
        radius: Distance of the centres from the origin.
        scale: The standard deviation of each component, in each direction.
        weights: Eight positive numbers, divided by their sum; None for equal weights.
        dtype: Floating dtype of the states.
        device: Where the states live.

    Example:
        >>> data = EightGaussians(1000, seed=0, weights=range(1, 9))
        >>> data.data.shape, data.log_density(data[0]).shape
        (torch.Size([1000, 2]), torch.Size([]))
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        radius: float = 2.0,
        scale: float = 0.2,
        weights: Sequence[float] | Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        centers = check_positive("radius", radius) * on_circle(angles)
        super().__init__(
            n_samples,
            seed,
            centers=centers,
            scale=scale,
            weights=weights,
            dtype=dtype,
            device=device,
        )


class Grid(GaussianMixture):
    """Gaussians on a square grid around the origin, row by row from the lower left.

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream; see `SyntheticDataset`.
        n_side: Number of components along each side.
        spacing: Distance between neighbouring centres.
        scale: The standard deviation of each component, in each direction.
        weights: n_side² positive numbers, divided by their sum; None for equal weights.
        dtype: Floating dtype of the states.
        device: Where the states live.

    Example:
        >>> Grid(10, n_side=2, spacing=2.0).centers.tolist()
        [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        n_side: int = 5,
        spacing: float = 1.0,
        scale: float = 0.1,
        weights: Sequence[float] | Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        n_side = check_integer("n_side", n_side, at_least=1)
        steps = torch.arange(n_side, dtype=torch.float64) - (n_side - 1) / 2
        centers = check_positive("spacing", spacing) * torch.cartesian_prod(steps, steps).flip(-1)
        super().__init__(
            n_samples,
            seed,
            centers=centers,
            scale=scale,
            weights=weights,
            dtype=dtype,
            device=device,
        )


class TwoMoons(GaussianMixture):
    """Two interleaving half circles, blurred: scikit-learn's convention, scaled and centred.

    With R = radius, the arcs are R (cos t, sin t) and R (1 - cos t, 1/2 - sin t), shifted by -R
    (1/2, 1/4). As in scikit-learn the angles t are equally spaced from 0 to π, both ends included;
    each of them has the same weight, and N(0, noise² I) is added. So the integral over an arc is a
    sum of ``n_angles`` terms, without an error of its own. The entropy is 1.8230 nats with the
    default arguments (1.8185 in the limit of many angles).

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream; see `SyntheticDataset`.
        noise: Standard deviation of the noise, in each direction.
        radius: Radius of the arcs.
        n_angles: Number of angles on each arc. Their distance, π radius / (n_angles - 1), should be
            well below ``noise``, or the arcs turn into beads.
        dtype: Floating dtype of the states.
        device: Where the states live.

    Example:
        >>> moons = TwoMoons(1000, seed=0)
        >>> f"{moons.entropy():.4f}"
        '1.8230'
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        noise: float = 0.15,
        radius: float = 1.5,
        n_angles: int = 200,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        noise = check_positive("noise", noise)
        n_angles = check_integer("n_angles", n_angles, at_least=2)
        upper = on_circle(torch.linspace(0, math.pi, n_angles, dtype=torch.float64))
        lower = torch.tensor([1.0, 0.5], dtype=torch.float64) - upper
        arcs = torch.cat((upper, lower)) - torch.tensor([0.5, 0.25], dtype=torch.float64)
        super().__init__(
            n_samples,
            seed,
            centers=check_positive("radius", radius) * arcs,
            scale=noise,
            dtype=dtype,
            device=device,
        )


def _proportions(weights: Sequence[float] | Tensor | None, n: int) -> Tensor:
    if weights is None:
        weights = torch.ones(n, dtype=torch.float64)
    numbers = check_tensor("weights", to_tensor("weights", weights, torch.float64), (n,))
    numbers = numbers.detach().cpu()
    if not (numbers > 0).all():
        raise ConfigurationError(
            f"weights are {numbers.tolist()}",
            "positive numbers",
            "leave out components of no weight",
        )
    return numbers / numbers.sum()
