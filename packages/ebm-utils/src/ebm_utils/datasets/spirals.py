"""Wound shapes without a density in closed form: spirals, a swiss roll, a pinwheel."""

import math

import torch
from torch import Tensor

from ebm_core.validation import check_integer, check_number, check_positive
from ebm_utils.datasets.base import SyntheticDataset, normal, on_circle, uniform


class Spirals(SyntheticDataset):
    """Archimedean spirals that start near the origin, turned against each other, blurred.

    An arm's point at angle t has the distance t / 3 from the origin, t = 2π · turns · sqrt(u) with
    u uniform: points are spread evenly over the length of an arm.

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream; see `SyntheticDataset`.
        n_arms: Number of spirals.
        turns: Number of turns of each.
        noise: Standard deviation of the noise, in each direction.
        dtype: Floating dtype of the states.
        device: Where the states live.
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        n_arms: int = 2,
        turns: float = 1.5,
        noise: float = 0.1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n_samples, seed, dtype=dtype, device=device)
        self.n_arms = check_integer("n_arms", n_arms, at_least=1)
        self.turns = check_positive("turns", turns)
        self.noise = check_number("noise", noise, at_least=0)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        angle = 2 * math.pi * self.turns * uniform(n, 0.0, 1.0, generator).sqrt()
        arm = _equal_turns(self.n_arms, n, generator)
        return (angle / 3)[:, None] * on_circle(angle + arm) + self.noise * normal(n, generator)


class SwissRoll(SyntheticDataset):
    """The cross-section of scikit-learn's swiss roll, a spiral t (cos t, sin t) / 5, blurred.

    t is uniform on [3π/2, 9π/2]; the outer end lies at a distance of 2.8.

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream; see `SyntheticDataset`.
        noise: Standard deviation of the noise, in each direction.
        dtype: Floating dtype of the states.
        device: Where the states live.
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        noise: float = 0.1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n_samples, seed, dtype=dtype, device=device)
        self.noise = check_number("noise", noise, at_least=0)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        angle = uniform(n, 1.5 * math.pi, 4.5 * math.pi, generator)
        return (angle / 5)[:, None] * on_circle(angle) + self.noise * normal(n, generator)


class Pinwheel(SyntheticDataset):
    """Elongated Gaussians around the origin, bent into the vanes of a pinwheel.

    A vane is (1, 0) + (radial_scale, tangential_scale) · N(0, I), turned by its own angle plus rate
    · exp(its first coordinate), then multiplied by 2.

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream; see `SyntheticDataset`.
        n_vanes: Number of vanes.
        radial_scale: Standard deviation along a vane.
        tangential_scale: Standard deviation across it.
        rate: How much the vanes are bent.
        dtype: Floating dtype of the states.
        device: Where the states live.

    Reference:
        Johnson, Duvenaud, Wiltschko, Datta & Adams, "Composing graphical models with neural
        networks", 2016.
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        n_vanes: int = 5,
        radial_scale: float = 0.3,
        tangential_scale: float = 0.1,
        rate: float = 0.25,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n_samples, seed, dtype=dtype, device=device)
        self.n_vanes = check_integer("n_vanes", n_vanes, at_least=1)
        self.radial_scale = check_positive("radial_scale", radial_scale)
        self.tangential_scale = check_positive("tangential_scale", tangential_scale)
        self.rate = check_number("rate", rate)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        z = normal(n, generator)
        along, across = 1 + self.radial_scale * z[:, 0], self.tangential_scale * z[:, 1]
        vane = _equal_turns(self.n_vanes, n, generator)
        turn = vane + self.rate * along.exp()
        cos, sin = turn.cos(), turn.sin()
        return 2 * torch.stack((along * cos - across * sin, along * sin + across * cos), dim=-1)


def _equal_turns(n_parts: int, n: int, generator: torch.Generator) -> Tensor:
    """``(n,)`` angles, each a random multiple of a full turn's ``n_parts``-th."""
    return torch.randint(n_parts, (n,), generator=generator).double() * (2 * math.pi / n_parts)
