"""What a data set is: a law on the plane that can be drawn from, and a fixed set of its draws.

A data set implements one method, ``_draw(n, generator)``. `SyntheticDataset` makes of it a
``torch.utils.data.Dataset`` (the same ``n_samples`` states every time) and a source of fresh
batches (`sample`). Draws are made on the CPU in float64 and converted at the end, so a seed means
the same states on every device and, up to rounding, in every dtype. Every draw has a generator of
its own.

A data set whose density is known derives from `DensityDataset` and adds ``log_density`` and the
``bounds`` of a box that holds all of the mass but 1e-7 or less: what quadrature needs to judge a
trained model.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ebm_core import ConfigurationError, ShapeError, draw_key, make_generator
from ebm_core.validation import check_integer
from ebm_utils.arrays import TensorLike, to_tensor
from ebm_utils.quadrature import GridBounds, MidpointGrid

POINTS_PER_SCALE = 4


class SyntheticDataset(Dataset[Tensor], ABC):
    """Base of data sets in the plane; items are states ``(2,)``.

    Subclasses implement ``_draw(n, generator)``.

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream. The same arguments and seed give the same states, and the
            global generator is neither read nor moved. None draws the key from torch's default
            generator.
        dtype: Floating dtype of the states.
        device: Where the states live.

    Raises:
        ConfigurationError: If an argument makes no sense.

    Example:
        >>> class Disc(SyntheticDataset):
        ...     def _draw(self, n, generator):
        ...         u = torch.rand(2, n, generator=generator, dtype=torch.float64)
        ...         return torch.view_as_real(torch.polar(u[0].sqrt(), 2 * torch.pi * u[1]))
        >>> disc = Disc(100, seed=0)
        >>> disc[0].shape, len(disc), disc.sample(8).shape
        (torch.Size([2]), 100, torch.Size([8, 2]))
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n_samples = check_integer("n_samples", n_samples, at_least=1)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ConfigurationError(
                f"dtype is {dtype!r}", "a floating dtype", "pass torch.float32"
            )
        self.seed = draw_key(seed)
        self.dtype = dtype
        self.device = torch.device(device)

    @abstractmethod
    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` independent draws, ``(n, 2)``, on the CPU in float64, from this generator alone."""

    @cached_property
    def data(self) -> Tensor:
        """The states of the set, ``(n_samples, 2)``; made at first use."""
        return self.sample(self.n_samples, self.seed)

    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """Fresh draws from the same law, independent of `data` unless the seed is the set's own.

        Args:
            n: Number of draws.
            seed: Key of the random stream; None draws it from torch's default generator, so that
                ``torch.manual_seed`` governs and consecutive calls differ.

        Returns:
            ``(n, 2)``, in the set's dtype and on its device.
        """
        draws = self._draw(check_integer("n", n), make_generator(seed))
        return draws.to(self.device, self.dtype)

    def __len__(self) -> int:
        """Number of states."""
        return self.n_samples

    def __getitem__(self, index: int) -> Tensor:
        """One state, ``(2,)``."""
        return self.data[index]

    def __iter__(self) -> Iterator[Tensor]:
        """The states, one by one."""
        return iter(self.data)

    def __repr__(self) -> str:
        """Class, size and seed."""
        return f"{type(self).__name__}(n_samples={self.n_samples}, seed={self.seed})"


class DensityDataset(SyntheticDataset):
    """A data set whose exact density is known."""

    @property
    @abstractmethod
    def finest_scale(self) -> float:
        """The smallest length on which the density varies: what a grid must resolve."""

    @property
    @abstractmethod
    def bounds(self) -> GridBounds:
        """``((x_low, x_high), (y_low, y_high))``: a box that holds all but 1e-7 of the mass."""

    @abstractmethod
    def log_density(self, x: TensorLike) -> Tensor:
        """The log density in nats; -inf outside the support.

        Args:
            x: States, ``(*batch, 2)``, a tensor or array, any number of batch axes; computed in
                their dtype on their device.

        Returns:
            ``(*batch,)``, differentiable with respect to ``x``.

        Raises:
            ShapeError: If the last axis is not of size 2.
            ConfigurationError: If ``x`` is no tensor of numbers.
        """

    def entropy(self) -> float:
        """The differential entropy -∫ p log p in nats, by quadrature (error below 1e-6)."""
        spacing = self.finest_scale / POINTS_PER_SCALE
        grid = MidpointGrid(
            self.bounds, [math.ceil((high - low) / spacing) for low, high in self.bounds]
        )
        total = 0.0
        for points, _ in grid.chunks():
            p = self.log_density(points).exp()
            total -= torch.special.xlogy(p, p).sum().item()
        return math.exp(grid.log_cell) * total


def check_plane(x: TensorLike) -> Tensor:
    """States of the plane, floating.

    Raises:
        ShapeError: If the last axis is not of size 2.
        ConfigurationError: If ``x`` is no tensor of numbers.
    """
    x = to_tensor("x", x)
    if x.ndim == 0 or x.shape[-1] != 2:
        raise ShapeError(f"x has shape {tuple(x.shape)}", "(*batch, 2)", "pass states of the plane")
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """``(n,)`` uniform numbers of [low, high), in float64."""
    return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)


def normal(n: int, generator: torch.Generator) -> Tensor:
    """``(n, 2)`` independent standard normals, in float64."""
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def on_circle(angle: Tensor) -> Tensor:
    """(cos angle, sin angle): ``(n,) -> (n, 2)``."""
    return torch.stack((angle.cos(), angle.sin()), dim=-1)
