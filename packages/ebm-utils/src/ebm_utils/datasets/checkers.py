"""The checkerboard: a uniform density with sharp edges."""

import math

import torch
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_core.validation import check_integer, check_positive
from ebm_utils.arrays import TensorLike
from ebm_utils.datasets.base import DensityDataset, check_plane, uniform
from ebm_utils.quadrature import GridBounds


class Checkerboard(DensityDataset):
    """Uniform on every other square of a board around the origin, the lower left square included.

    Quadrature over this set is exact where cells of the grid do not straddle edges of squares: with
    ``n_points`` a multiple of ``n_squares`` over `bounds`.

    Args:
        n_samples: Number of states in the set.
        seed: Key of the random stream; see `SyntheticDataset`.
        n_squares: Number of squares along each side of the board.
        side: Side of one square.
        dtype: Floating dtype of the states.
        device: Where the states live.

    Raises:
        ConfigurationError: If an argument makes no sense, or ``dtype`` does not resolve so many
            squares.

    Example:
        >>> board = Checkerboard(1000, seed=0)
        >>> board.bounds[0], round(math.exp(board.entropy()), 6)
        ((-4.0, 4.0), 32.0)
    """

    def __init__(
        self,
        n_samples: int,
        seed: int | None = 0,
        *,
        n_squares: int = 4,
        side: float = 2.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n_samples, seed, dtype=dtype, device=device)
        self.n_squares = check_integer("n_squares", n_squares, at_least=1)
        self.side = check_positive("side", side)
        # Draws keep off the edges by as much as rounding, of states and then within log_density,
        # moves them: none leaves its square.
        self._margin = 4 * torch.finfo(dtype).eps * self._half / self.side
        if self._margin > 0.25:
            raise ConfigurationError(
                f"n_squares is {n_squares} in {dtype}",
                "squares wide against the rounding of states",
                "pass fewer squares, or a dtype of more digits",
            )
        squares = torch.cartesian_prod(*[torch.arange(n_squares)] * 2)
        self._corners = squares[squares.sum(-1) % 2 == 0] * self.side - self._half

    @property
    def _half(self) -> float:
        return self.n_squares * self.side / 2

    @property
    def finest_scale(self) -> float:
        """The side of a square."""
        return self.side

    @property
    def bounds(self) -> GridBounds:
        """The board."""
        return (-self._half, self._half), (-self._half, self._half)

    def entropy(self) -> float:
        """The log of the area of the filled squares, in nats."""
        return math.log(len(self._corners) * self.side**2)

    def log_density(self, x: TensorLike) -> Tensor:
        """-entropy on filled squares, -inf elsewhere: ``(*batch, 2) -> (*batch,)``."""
        x = check_plane(x)
        square = ((x + self._half) / self.side).floor()
        on_board = ((square >= 0) & (square < self.n_squares)).all(-1)
        filled = on_board & (square.sum(-1) % 2 == 0)
        return torch.full_like(x[..., 0], -math.inf).masked_fill(filled, -self.entropy())

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        corner = self._corners[torch.randint(len(self._corners), (n,), generator=generator)]
        offset = uniform(2 * n, self._margin, 1 - self._margin, generator).view(n, 2)
        return corner + self.side * offset
