"""How far draws are from reference draws, or from an energy: numbers for one set of states.

`mmd`, `energy_distance` and `sliced_wasserstein` compare two sets of draws;
`kernel_stein_discrepancy` compares one with an energy, whose normaliser it does not need. States
may be of any shape (they are flattened), a `SampleResult` stands for all its draws, or its final
states without a trajectory. Computed in float64 on the device of ``x``, some thousand states at a
time, so that memory stays bounded at any number of draws. `ebm_utils.permutation_test` and
`ebm_utils.stein_test` say how probable such a number is by chance.

None of them is symptom-free proof: a discrepancy near zero in many dimensions may only mean that
the draws are few, and the Stein discrepancy does not see the weights of well separated modes.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from ebm_core import (
    EnergyLike,
    NumericalError,
    SampleResult,
    ShapeError,
    as_energy,
    evaluation_mode,
    make_generator,
)
from ebm_core.validation import check_choice, check_integer, check_number, check_positive
from ebm_utils.arrays import TensorLike
from ebm_utils.draws import require_states

States = SampleResult | TensorLike
Pairing = Callable[[Tensor], Tensor]
"""From squared distances to what is averaged over pairs."""

_ROWS = 512
_FOR_MEDIAN = 1000


def mmd(
    x: States,
    y: States,
    *,
    kernel: Literal["gaussian", "imq"] = "gaussian",
    bandwidth: float | None = None,
    unbiased: bool = True,
) -> Tensor:
    """Squared maximum mean discrepancy between two sets of draws.

    E k(X, X') + E k(Y, Y') - 2 E k(X, Y), zero for equal laws alone.

    Args:
        x: Draws ``(n, *event)``.
        y: Draws ``(m, *event)``.
        kernel: "gaussian", exp(-r²/2ℓ²), or the inverse multiquadric "imq", (1 + r²/ℓ²)^(-1/2),
            which sees further.
        bandwidth: ℓ, in the units of the state; None for the median distance of all draws.
        unbiased: Leave out pairs of a draw with itself, so that the mean over repetitions is exact
            (single values may be negative); else the estimate is never negative.

    Returns:
        A scalar, float64.

    Raises:
        ShapeError: If events differ, or there are fewer than two draws on a side.
        NumericalError: If a draw is NaN or infinite, or the median distance is 0.
        ConfigurationError: If an argument makes no sense.

    Reference:
        Gretton, Borgwardt, Rasch, Schölkopf & Smola, "A kernel two-sample test", JMLR 2012,
        equations 3 and 5.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(2, 2000, 3, generator=generator)
        >>> f"{mmd(x, y):.4f} {mmd(x, y + 0.5):.4f}"
        '-0.0003 0.0621'
    """
    check_choice("kernel", kernel, ("gaussian", "imq"))
    a, b = _pair(x, y)
    return mmd_of(a, b, _pairing(kernel, _bandwidth(bandwidth, torch.cat((a, b)))), unbiased)


def energy_distance(x: States, y: States, *, unbiased: bool = True) -> Tensor:
    """Energy distance between two sets of draws: 2 E|X - Y| - E|X - X'| - E|Y - Y'|.

    Zero for equal laws alone, free of settings, in the units of the state. (SciPy's function of
    this name, for numbers, is its square root.)

    Args:
        x: Draws ``(n, *event)``.
        y: Draws ``(m, *event)``.
        unbiased: As in `mmd`.

    Returns:
        A scalar, float64.

    Raises:
        ShapeError: If events differ, or there are fewer than two draws on a side.
        NumericalError: If a draw is NaN or infinite.

    Reference:
        Székely & Rizzo, "Energy statistics: a class of statistics based on distances", Journal of
        Statistical Planning and Inference 2013.

    Example:
        >>> f"{energy_distance([[0.0], [1.0]], [[3.0], [4.0]], unbiased=False):.2f}"
        '5.00'
    """
    a, b = _pair(x, y)
    return mmd_of(a, b, _minus_distance, unbiased)


def sliced_wasserstein(
    x: States, y: States, *, order: float = 2.0, n_projections: int = 100, seed: int | None = None
) -> Tensor:
    """Sliced Wasserstein distance: optimal transport along random lines.

    The ``order``-th root of the mean, over lines, of the ``order``-th power of the exact distance
    of the projections.

    Args:
        x: Draws ``(n, *event)``.
        y: Draws ``(m, *event)``; there may be another number of them.
        order: p of the distance, at least 1.
        n_projections: Number of lines; in one dimension one is enough, and taken.
        seed: Key of the directions; None to draw one from torch's default generator.

    Returns:
        A scalar, float64, in the units of the state.

    Raises:
        ShapeError: If events differ, or there are fewer than two draws on a side.
        NumericalError: If a draw is NaN or infinite.
        ConfigurationError: If an argument makes no sense.

    Reference:
        Bonneel, Rabin, Peyré & Pfister, "Sliced and Radon Wasserstein barycenters of measures",
        Journal of Mathematical Imaging and Vision 2015.

    Example:
        >>> x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
        >>> f"{sliced_wasserstein(x, x + 3):.3f}"
        '3.000'
    """
    order = check_number("order", order, at_least=1)
    n = check_integer("n_projections", n_projections, at_least=1)
    a, b = _pair(x, y)
    dim = a.shape[1]
    if dim == 1:
        directions = torch.ones(1, 1, dtype=torch.float64)
    else:
        directions = torch.randn(dim, n, generator=make_generator(seed), dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=0).to(a.device)
    n_a, n_b = len(a), len(b)
    # Both quantile functions are steps: on the pieces between all their jumps they are constant.
    jumps = torch.cat((torch.arange(1, n_a + 1) * n_b, torch.arange(1, n_b + 1) * n_a))
    jumps = jumps.unique()  # type: ignore[no-untyped-call]
    widths = torch.diff(jumps, prepend=jumps.new_zeros(1)).double().to(a.device) / (n_a * n_b)
    of_a, of_b = ((jumps - 1) // n_b).to(a.device), ((jumps - 1) // n_a).to(a.device)
    at_once = max(1, _ROWS**2 // (n_a + n_b))
    total = a.new_zeros(())
    for some in torch.split(directions, at_once, dim=1):
        along_a, along_b = (a @ some).sort(0).values, (b @ some).sort(0).values
        total += (widths @ (along_a[of_a] - along_b[of_b]).abs().pow(order)).sum()
    return (total / directions.shape[1]).pow(1 / order)


def kernel_stein_discrepancy(
    x: States,
    energy: EnergyLike,
    *,
    scale: float | None = None,
    exponent: float = -0.5,
    unbiased: bool = True,
) -> Tensor:
    """Squared kernel Stein discrepancy of draws from exp(-E), whose normaliser it does not need.

    The kernel is the inverse multiquadric (c² + |x - y|²)^β, with which the discrepancy detects
    draws that do not converge to the target. It compares gradients, so that it hardly sees the
    weights of modes far from each other.

    Args:
        x: Draws ``(n, *event)``.
        energy: An `EnergyFunction` or any callable ``(n, *event) -> (n,)``, evaluated in eval mode.
        scale: c, in the units of the state; None for the median distance of the draws (1 in the
            reference).
        exponent: β, between -1 and 0.
        unbiased: As in `mmd`; the square root of the other form is that of the reference.

    Returns:
        A scalar, float64.

    Raises:
        ShapeError: If there are fewer than two draws, or they are no states of the energy.
        NumericalError: If a draw or a gradient is NaN or infinite, or the median distance is 0.
        ConfigurationError: If an argument makes no sense.

    Reference:
        Gorham & Mackey, "Measuring sample quality with kernels", ICML 2017, section 2 and
        theorem 8.

    Example:
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> def energy(x):
        ...     return x.square().sum(1) / 2
        >>> [f"{kernel_stein_discrepancy(draws, energy):.3f}" for draws in (x, 2 * x)]
        ['0.001', '0.101']
    """
    stein = SteinKernel.of(x, energy, scale, exponent)
    n = len(stein.x)
    total, own = stein.x.new_zeros(()), stein.x.new_zeros(())
    for rows, columns in triangle(n):
        block = stein.block(rows, columns)
        total += block.sum() * (1 if rows == columns else 2)
        if rows == columns:
            own += block.trace()
    return (total - own) / (n * (n - 1)) if unbiased else total / n**2


class SteinKernel:
    """The Stein kernel k₀ of an energy on some draws, block by block.

    Args:
        x: Flattened draws ``(n, d)``, float64.
        score: -∇E there, ``(n, d)``.
        scale: c of the inverse multiquadric.
        exponent: β of it.
    """

    def __init__(self, x: Tensor, score: Tensor, scale: float, exponent: float) -> None:
        self.x, self.score, self.scale, self.exponent = x, score, scale, exponent
        self._own = (x * score).sum(1)

    @classmethod
    def of(
        cls, x: States, energy: EnergyLike, scale: float | None, exponent: float
    ) -> "SteinKernel":
        """The kernel, after checks; for arguments see `kernel_stein_discrepancy`."""
        exponent = check_number("exponent", exponent, above=-1, below=0)
        model = as_energy(energy)
        states = require_states("x", x)
        if not states.is_floating_point():
            states = states.to(torch.get_default_dtype())
        flat = _flattened("x", states)
        with torch.no_grad(), evaluation_mode(model):
            scores = [model.score(some) for some in torch.split(states, _ROWS)]
        score = torch.cat(scores).detach().flatten(1).double()
        if not score.isfinite().all():
            bad = int((~score.isfinite().all(1)).nonzero()[0, 0])
            raise NumericalError(
                f"the gradient of the energy is NaN or infinite at draw {bad}",
                "finite gradients",
                "leave out draws outside the support, or check the energy there",
            )
        return cls(flat, score, _bandwidth(scale, flat, "scale"), exponent)

    def block(self, rows: slice, columns: slice) -> Tensor:
        """k₀ of some draws with some others, ``(row, column)``."""
        x, y, s, t = self.x[rows], self.x[columns], self.score[rows], self.score[columns]
        beta, dim = self.exponent, x.shape[1]
        squared = _squared_distances(x, y)
        base = squared + self.scale**2
        k = base.rsqrt() if beta == -0.5 else base.pow(beta)
        falls = base.reciprocal_()
        slopes = x @ t.T + s @ y.T - self._own[rows, None] - self._own[columns]  # (t-s)·(x-y)
        curls = slopes.sub_(dim).mul_(2 * beta).mul_(falls)
        spreads = squared.mul_(falls).mul_(falls).mul_(-4 * beta * (beta - 1))
        return k.mul_((s @ t.T).add_(curls).add_(spreads))


def mmd_of(a: Tensor, b: Tensor, pairing: Pairing, unbiased: bool) -> Tensor:
    """`mmd` of flattened draws, with any function of squared distances for the kernel."""
    n, m = len(a), len(b)
    within = []
    for own in (a, b):
        total = own.new_zeros(())
        for rows, columns in triangle(len(own)):
            block = pairing(_squared_distances(own[rows], own[columns]))
            total += 2 * (block.triu(1) if rows == columns else block).sum()
        if not unbiased:
            total += len(own) * pairing(own.new_zeros(1)).sum()
        within.append(total / (len(own) * (len(own) - (1 if unbiased else 0))))
    across = a.new_zeros(())
    for rows in slices(n):
        for columns in slices(m):
            across += pairing(_squared_distances(a[rows], b[columns])).sum()
    return within[0] + within[1] - 2 * across / (n * m)


def _minus_distance(squared: Tensor) -> Tensor:
    return -squared.sqrt()


def _pairing(kernel: str, bandwidth: float) -> Pairing:
    if kernel == "gaussian":
        return lambda squared: (squared * (-0.5 / bandwidth**2)).exp_()
    return lambda squared: (1 + squared / bandwidth**2).rsqrt_()


def _bandwidth(given: float | None, flat: Tensor, name: str = "bandwidth") -> float:
    """The given number, or the median distance of at most 1000 draws, evenly picked."""
    if given is not None:
        return check_positive(name, given)
    some = flat[:: math.ceil(len(flat) / _FOR_MEDIAN)]
    median = torch.pdist(some).median().item()
    if not median > 0:
        raise NumericalError(
            "half of the draws or more are equal, so that their median distance is 0",
            f"a positive {name}",
            f"pass a number as {name}",
        )
    return median


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y).square_()


def _pair(x: States, y: States) -> tuple[Tensor, Tensor]:
    """Both sets of draws flattened, centred together, on the device of ``x``."""
    states, others = require_states("x", x), require_states("y", y)
    if states.shape[1:] != others.shape[1:]:
        raise ShapeError(
            f"x has states of shape {tuple(states.shape[1:])}, y of {tuple(others.shape[1:])}",
            "the same event shape",
            "compare draws of the same space",
        )
    a, b = _flattened("x", states), _flattened("y", others.to(states.device))
    centre = a.mean(0)
    return a - centre, b - centre


def _flattened(name: str, states: Tensor) -> Tensor:
    if len(states) < 2 or not states[0].numel():
        raise ShapeError(
            f"{name} has shape {tuple(states.shape)}",
            "two states or more",
            f"pass more draws as {name}",
        )
    flat = states.reshape(len(states), -1).double()
    finite = flat.isfinite().all(1)
    if not finite.all():
        raise NumericalError(
            f"{int((~finite).sum())} of {len(flat)} states of {name} are NaN or infinite",
            "finite states",
            f"leave them out of {name}",
        )
    return flat


def slices(n: int) -> Iterator[slice]:
    """Consecutive slices of ``range(n)``: a block of two is 2 MiB at most, and stays in cache."""
    return (slice(i, min(i + _ROWS, n)) for i in range(0, n, _ROWS))


def triangle(n: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of a symmetric matrix, on its diagonal and above."""
    return ((a, b) for a in slices(n) for b in slices(n) if a.start <= b.start)
