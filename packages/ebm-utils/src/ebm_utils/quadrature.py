"""Partition functions and exact divergences in up to three dimensions, by the midpoint rule.

The midpoint rule converges faster than any power of the spacing for smooth densities that decay
inside the box, and is exact for densities that are constant on its cells, so it serves Gaussians
and checkerboards alike. Grids are walked in chunks; energies are evaluated in the energy's own
dtype and accumulated in float64 by logsumexp. What a figure rests on is checked: that the density
has decayed at the faces of the box, that a density given as normalised integrates to one on the
grid, and that a second grid gives the model the same normaliser.

The second grid is the first, moved along every axis by just less than half a cell: each point stays
in its cell, so densities constant on the cells pass. Where the spacing is somewhat too wide along
an axis, the two normalisers err in opposite senses and differ by about twice the error. The check
cannot see an error that both grids share: that of a spike or ridge, its standard deviation below
some 0.4 sides of a cell, midway between the points of both (in two dimensions, midway between two
neighbours of one grid, or along a diagonal). Nor does it see where the energy varies between the
points without weight in the normaliser. To be surer, compare the figure with that of another
``n_points``.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ebm_core import (
    ConfigurationError,
    EnergyFunction,
    EnergyLike,
    NumericalError,
    ShapeError,
    as_energy,
    evaluation_mode,
    state_options,
)
from ebm_core.energy import check_energies
from ebm_core.validation import check_integer, check_number, check_positive
from ebm_utils.arrays import TensorLike, to_tensor

GridBounds = tuple[tuple[float, float], ...]
"""``(low, high)`` for each dimension of a box."""

CHUNK_SIZE = 65536
MASS_TOLERANCE = 1e-3  # by how much a normalised density may miss one on the grid
LOG_SHARE_TOLERANCE = 0.01  # nats by which one cell may seem to hold more than all the mass
SHIFT = 0.49  # of a cell, to the second grid: points near the middle of their neighbours, off edges


def log_partition(
    energy: EnergyLike,
    bounds: Sequence[tuple[float, float]],
    n_points: int | Sequence[int] = 400,
    *,
    max_outside_mass: float | None = 1e-4,
    max_grid_error: float | None = 1e-3,
    dtype: torch.dtype | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> float:
    """log ∫ exp(-E(x)) dx over a box, in nats.

    Args:
        energy: An energy of vectors with one to three elements, or a callable ``(batch, d) ->
            (batch,)``; evaluated in eval mode, without gradients.
        bounds: ``(low, high)`` for each dimension.
        n_points: Points of the grid, for all dimensions or for each.
        max_outside_mass: Largest accepted estimate of the fraction of mass that lies outside: the
            mass there would be if the density kept its value at each face for another half width of
            the box (an overestimate of decaying tails). None where the box holds the whole support.
        max_grid_error: Largest accepted difference, in nats, to log Z on a second grid, shifted by
            half a cell along every axis. A grid too coarse for exp(-E) mostly shows there, but not
            a spike or diagonal ridge, narrower than about 0.4 sides of a cell, that lies midway
            between the points of both. (The mass of half the outermost cells is allowed on top,
            which matters only where the density has not decayed.) None to leave the second grid
            out, at half the cost, or where exp(-E) jumps within cells and that error is accepted.
        dtype: Dtype of the points; None for the energy's own.
        chunk_size: Number of points evaluated at once.

    Raises:
        ConfigurationError: If bounds or numbers make no sense, or the box has more than three
            dimensions.
        ShapeError: If the energy takes other states, or does not give one number a state.
        NumericalError: If an energy is NaN or -inf, all are +inf, or exp(-E) has not decayed at the
            faces, or the two grids disagree.

    Example:
        >>> log_z = log_partition(lambda x: x.square().sum(1) / 2, [(-8, 8)] * 2, n_points=100)
        >>> round(log_z / math.log(2 * math.pi), 6)
        1.0
    """
    grid = MidpointGrid(bounds, n_points)
    total = _Total(max_outside_mass)
    if max_grid_error is not None:
        check_positive("max_grid_error", max_grid_error)
    model = as_energy(energy)
    with torch.no_grad(), evaluation_mode(model):
        for points, tail in grid.chunks(chunk_size):
            total.add(grid.log_cell - grid_energies(model, points, dtype), tail)
        log_z = total.log_mass()
        if max_grid_error is not None:
            _check_resolution(model, grid, total, max_grid_error, dtype, chunk_size)
    return log_z


def exact_kl(
    energy: EnergyLike,
    log_density: Callable[[Tensor], Tensor],
    bounds: Sequence[tuple[float, float]],
    n_points: int | Sequence[int] = 400,
    *,
    max_outside_mass: float | None = 1e-4,
    max_grid_error: float | None = 1e-3,
    dtype: torch.dtype | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> float:
    """KL(data || model) = ∫ p (log p + E + log Z) dx in nats, the model being exp(-E)/Z.

    Both densities are normalised on the same grid, so the value is never negative, and zero when
    they agree.

    Args:
        energy: The model: an energy of vectors with one to three elements, or a callable ``(batch,
            d) -> (batch,)``; evaluated in eval mode, without gradients.
        log_density: log p of the data, ``(batch, d) -> (batch,)``, normalised; given float64 points
            on the energy's device; -inf where p is zero.
        bounds: ``(low, high)`` for each dimension; must hold the mass of both.
        n_points: Points of the grid, for all dimensions or for each: a few within each length on
            which p or the model varies.
        max_outside_mass: See `log_partition`; the check is of the model.
        max_grid_error: See `log_partition`; the check is of the model, whose energies are evaluated
            twice as often for it. log p is evaluated once and checked by its integral.
        dtype: Dtype of the points that the energy is given; None for the energy's own.
        chunk_size: Number of points evaluated at once.

    Returns:
        The divergence; infinite where the model has no mass at a point at which the data have.

    Raises:
        ConfigurationError: If bounds or numbers make no sense, or the box has more than three
            dimensions.
        ShapeError: If the energy takes other states, or one of the two does not give one number a
            state.
        NumericalError: If a value is NaN, the model's density has not decayed at the faces, or p
            does not integrate to 1 within 0.001 on this grid, or the model's normaliser differs
            on the shifted grid.

    Example:
        >>> def log_density(x):
        ...     return -x.square().sum(-1) / 2 - math.log(2 * math.pi)
        >>> model = as_energy(lambda x: (x - 0.1).square().sum(1) / 2, event_shape=2)
        >>> round(exact_kl(model, log_density, bounds=[(-8, 8)] * 2, n_points=100), 6)
        0.01
    """
    grid = MidpointGrid(bounds, n_points)
    total = _Total(max_outside_mass)
    if max_grid_error is not None:
        check_positive("max_grid_error", max_grid_error)
    model = as_energy(energy)
    mass = cross = 0.0
    with torch.no_grad(), evaluation_mode(model):
        for points, tail in grid.chunks(chunk_size):
            log_q = grid.log_cell - grid_energies(model, points, dtype)
            log_p = grid.log_cell + _log_density(log_density, points.to(log_q.device))
            total.add(log_q, tail)
            p = log_p.exp()
            mass += p.sum().item()
            cross += torch.where(p > 0, p * (log_p - log_q), 0.0).sum().item()
        log_z = total.log_mass()
        if max_grid_error is not None and cross < math.inf:
            _check_resolution(model, grid, total, max_grid_error, dtype, chunk_size)
    if not abs(mass - 1) <= MASS_TOLERANCE:
        raise NumericalError(
            f"exp(log_density) integrates to {mass:.6g} over {grid.box} with {grid.counts} points",
            f"1 within {MASS_TOLERANCE:g}: a normalised density, in the box, resolved by the grid",
            "widen bounds, raise n_points, or normalise log_density",
        )
    return max(0.0, cross / mass - math.log(mass) + log_z)


def exact_nll(
    energy: EnergyLike,
    x: TensorLike,
    bounds: Sequence[tuple[float, float]],
    n_points: int | Sequence[int] = 400,
    *,
    max_outside_mass: float | None = 1e-4,
    max_grid_error: float | None = 1e-3,
    dtype: torch.dtype | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> float:
    """The mean negative log-likelihood of states, mean E(x) + log Z, in nats a state.

    Args:
        energy: The model: an energy of vectors with one to three elements, or a callable ``(batch,
            d) -> (batch,)``; evaluated in eval mode, without gradients.
        x: States, ``(n, d)``, held-out data for example; they may lie outside ``bounds``.
        bounds: ``(low, high)`` for each dimension; must hold the mass of the model.
        n_points: Points of the grid; see `log_partition`.
        max_outside_mass: See `log_partition`.
        max_grid_error: See `log_partition`; with None, densities at the states are not held against
            the grid's mass either.
        dtype: Dtype of the points and states that the energy is given; None for the energy's own.
        chunk_size: Number of points evaluated at once.

    Returns:
        The mean; infinite where the model gives a state no density.

    Raises:
        ConfigurationError: If bounds or numbers make no sense, or the box has more than three
            dimensions.
        ShapeError: If states are not of the box's dimension, or there are none, or the energy takes
            others.
        NumericalError: If a state is not finite, or has so high a density that one cell of the grid
            would hold more than the whole mass, or as of `log_partition`.

    Example:
        >>> x = torch.tensor([[1.0], [-1.0]])
        >>> nll = exact_nll(lambda x: x.square().sum(1) / 2, x, [(-8, 8)])
        >>> round(nll - math.log(2 * math.pi) / 2, 6)
        0.5
    """
    states = to_tensor("x", x)
    grid = MidpointGrid(bounds, n_points)
    dim = len(grid.box)
    if states.ndim != 2 or len(states) == 0 or states.shape[1] != dim:
        raise ShapeError(
            f"x has shape {tuple(states.shape)} and bounds are of {dim} dimensions",
            f"(n, {dim}), at least one state",
            "pass states of the box",
        )
    if not torch.isfinite(states).all():
        raise NumericalError("x holds NaN or infinity", "finite states", "remove those states")
    log_z = log_partition(
        energy,
        bounds,
        n_points,
        max_outside_mass=max_outside_mass,
        max_grid_error=max_grid_error,
        dtype=dtype,
        chunk_size=chunk_size,
    )
    model, total, least = as_energy(energy), 0.0, math.inf
    with torch.no_grad(), evaluation_mode(model):
        for chunk in torch.split(states, chunk_size):
            energies = grid_energies(model, chunk, dtype)
            total += energies.sum().item()
            least = min(least, energies.min().item())
    log_share = grid.log_cell - least - log_z
    if max_grid_error is not None and log_share > LOG_SHARE_TOLERANCE:
        share = math.exp(min(log_share, 700.0))
        raise NumericalError(
            f"a state's density, over one cell of the grid, makes {share:.3g} times the mass on "
            "all of it: the energy has wells at states that the grid does not see",
            "less than the whole mass",
            "raise n_points; the model may have learned its states by heart",
        )
    return total / len(states) + log_z


class MidpointGrid:
    """The points of a midpoint rule in a box.

    Args:
        bounds: ``(low, high)`` for each of one to three dimensions.
        n_points: Points of the grid, for all dimensions or for each.

    Attributes:
        box: The bounds, as numbers.
        counts: Points along each dimension.
        widths: Sides of a cell.
        log_cell: Log of the volume of a cell.

    Example:
        >>> grid = MidpointGrid([(0.0, 1.0), (0.0, 4.0)], 2)
        >>> [(points, tail)] = grid.chunks()
        >>> points.tolist(), grid.widths
        ([[0.25, 1.0], [0.25, 3.0], [0.75, 1.0], [0.75, 3.0]], [0.5, 2.0])
    """

    def __init__(
        self, bounds: Sequence[tuple[float, float]], n_points: int | Sequence[int]
    ) -> None:
        self.box = _check_bounds(bounds)
        counts = n_points if isinstance(n_points, Sequence) else (n_points,) * len(self.box)
        if len(counts) != len(self.box):
            raise ConfigurationError(
                f"n_points is {n_points!r} for {len(self.box)} dimensions",
                "one integer, or one a dimension",
                "pass one integer",
            )
        self.counts = tuple(check_integer("n_points", n, at_least=2) for n in counts)
        self.widths = [
            (high - low) / n for (low, high), n in zip(self.box, self.counts, strict=True)
        ]
        self.log_cell = math.log(math.prod(self.widths))

    def chunks(
        self, chunk_size: int = CHUNK_SIZE, shift: float = 0.0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The points in row-major order, so many at a time.

        Args:
            chunk_size: Number of points at a time.
            shift: How far to move each point off the centre of its cell, in sides of the cell.

        Yields:
            Points ``(chunk, d)`` and, for each, how many further cells beyond the faces of the box
            would hold as much mass as its own, were the density to keep its value for half a box:
            ``(chunk,)``, 0 off the faces. Both in float64 on the CPU.
        """
        n_total, chunk_size = (
            math.prod(self.counts),
            check_integer("chunk_size", chunk_size, at_least=1),
        )
        for start in range(0, n_total, chunk_size):
            rest = torch.arange(start, min(start + chunk_size, n_total))
            tail = torch.zeros(len(rest), dtype=torch.float64)
            columns = []
            for (low, _), n, width in zip(
                self.box[::-1], self.counts[::-1], self.widths[::-1], strict=True
            ):
                index = rest % n
                rest = rest // n
                columns.append(low + (index.double() + 0.5 + shift) * width)
                tail += ((index == 0) | (index == n - 1)) * (n / 2)
            yield torch.stack(columns[::-1], dim=-1), tail


def grid_energies(
    model: EnergyFunction, points: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Energies at points, in the energy's own dtype on its device: ``(n, d) -> (n,)``, float64.

    Raises:
        ShapeError: If the energy takes other states, or does not give one number a state.
        NumericalError: If an energy is NaN or -inf.
    """
    device, own_dtype = state_options(model)
    states = points.to(device, dtype or own_dtype)
    energies = check_energies(model(states), model.batch_shape(states)).double()
    wrong = energies.isnan() | (energies == -math.inf)
    if wrong.any():
        raise NumericalError(
            f"the energy is NaN or -inf at {points[int(wrong.nonzero()[0, 0])].tolist()}",
            "numbers, or +inf outside the support",
            "check the energy there, or choose bounds that leave the point out",
        )
    return energies


class _Total:
    """The mass of cells that come in chunks, with an estimate of what lies beyond the faces."""

    def __init__(self, max_outside_mass: float | None) -> None:
        self.max_outside_mass = max_outside_mass
        if max_outside_mass is not None:
            check_positive("max_outside_mass", max_outside_mass)
        self._inside: list[Tensor] = []
        self._outside: list[Tensor] = []

    def add(self, log_mass: Tensor, tail: Tensor) -> None:
        """Add cells of these log masses, ``(chunk,)``; ``tail`` is `MidpointGrid.chunks`' own."""
        self._inside.append(torch.logsumexp(log_mass, dim=0))
        self._outside.append(torch.logsumexp(log_mass + tail.to(log_mass.device).log(), dim=0))

    def log_inside(self) -> float:
        """The log of the mass of all cells."""
        return torch.logsumexp(torch.stack(self._inside), dim=0).item()

    def outside_fraction(self) -> float:
        """The estimate of the mass beyond the faces, as a fraction of that of all cells."""
        outside = torch.logsumexp(torch.stack(self._outside), dim=0).item()
        return math.exp(min(outside - self.log_inside(), 700.0))

    def log_mass(self) -> float:
        """The log of the whole mass, after the checks."""
        total = self.log_inside()
        if total == -math.inf:
            raise NumericalError(
                "the energy is +inf at every point of the grid",
                "a box that holds the support",
                "move bounds, or raise n_points",
            )
        outside = self.outside_fraction()
        if self.max_outside_mass is not None and outside > self.max_outside_mass:
            raise NumericalError(
                "exp(-E) has not decayed at the faces of the box: the mass outside may be "
                f"{outside:.2g} of the mass inside",
                f"at most {self.max_outside_mass:g}",
                "widen bounds, or pass max_outside_mass=None if the box holds the support",
            )
        return total


def _check_resolution(
    model: EnergyFunction,
    grid: MidpointGrid,
    total: _Total,
    max_grid_error: float,
    dtype: torch.dtype | None,
    chunk_size: int,
) -> None:
    """Compare the model's mass on the grid, ``total``, with that on the shifted grid."""
    shifted = torch.logsumexp(
        torch.stack(
            [
                torch.logsumexp(grid.log_cell - grid_energies(model, points, dtype), dim=0)
                for points, _ in grid.chunks(chunk_size, SHIFT)
            ]
        ),
        dim=0,
    ).item()
    # Where the density has not decayed, the shift moves up to half of the outermost cells' mass
    # across a face; the outside estimate is that of half as many cells as there are points.
    across = 2 * total.outside_fraction() / min(grid.counts) * SHIFT
    error = abs(shifted - total.log_inside())
    if not error <= max_grid_error + across:
        raise NumericalError(
            f"log Z is {total.log_inside():.6g} on the grid of {grid.counts} points and "
            f"{shifted:.6g} on the same shifted by half a cell: exp(-E) has features that it does "
            "not resolve",
            f"a difference of at most {max_grid_error:g} nats",
            "raise n_points, or set max_grid_error if such an error is accepted",
        )


def _log_density(log_density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    log_p = log_density(points)
    if not isinstance(log_p, Tensor) or log_p.shape != points.shape[:1]:
        given = tuple(log_p.shape) if isinstance(log_p, Tensor) else type(log_p).__name__
        raise ShapeError(
            f"log_density gave {given} for points of shape {tuple(points.shape)}",
            f"one number a point, shape ({len(points)},)",
            "sum over the last axis",
        )
    if log_p.isnan().any() or (log_p == math.inf).any():
        raise NumericalError("log_density is NaN or +inf", "numbers or -inf", "check log_density")
    return log_p.double()


def _check_bounds(bounds: Sequence[tuple[float, float]]) -> GridBounds:
    try:
        box = tuple((low, high) for low, high in bounds)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"bounds are {bounds!r}", "(low, high) for each dimension", "pass [(-4, 4)] * dim"
        ) from error
    if not 1 <= len(box) <= 3:
        raise ConfigurationError(
            f"bounds are of {len(box)} dimensions",
            "one to three",
            "estimate the partition function by sampling in higher dimensions",
        )
    numbers = ((check_number("a lower bound", low), high) for low, high in box)
    return tuple((low, check_number("an upper bound", high, above=low)) for low, high in numbers)
