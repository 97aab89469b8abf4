"""Draws as diagnostics read them: checked, some elements at a time, split and ranked once.

arviz-stats ranks the draws anew for each of its numbers, which is most of its time. Here a `Block`
of elements holds what several numbers share (split chains, their rank-normalised values), and hands
that to arviz-stats' plain forms. The numbers are arviz-stats' own, to rounding.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_core import ConfigurationError, NumericalError, SampleResult, ShapeError
from ebm_utils.arrays import TensorLike, to_tensor

Array: TypeAlias = NDArray[np.float64]

MIN_DRAWS = 4
TAIL = (0.05, 0.95)
_VALUES_AT_ONCE = 2**22


def require_trajectory(draws: SampleResult | TensorLike) -> Tensor:
    """The draws ``(chain, draw, *event)`` of a result, or draws as they are.

    Raises:
        ConfigurationError: If the result holds no trajectory, or draws are no numbers.
        ShapeError: If there is no chain and draw axis.
    """
    if isinstance(draws, SampleResult):
        if draws.trajectory is None:
            kept = "final states" if draws.moments is None else "moments and final states"
            raise ConfigurationError(
                f"the result holds {kept} only",
                "a result with a trajectory",
                'sample with keep="trajectory"',
            )
        draws = draws.trajectory
    draws = to_tensor("draws", draws)
    if draws.ndim < 2:
        raise ShapeError(
            f"draws have shape {tuple(draws.shape)}",
            "(chain, draw, *event)",
            "add the axis of a single chain with draws[None]",
        )
    if 0 in draws.shape[2:]:
        raise ShapeError(
            f"draws have shape {tuple(draws.shape)}",
            "states of one element or more",
            "check the event's shape",
        )
    return draws.detach()


def require_states(name: str, states: SampleResult | TensorLike) -> Tensor:
    """States ``(n, *event)``: all draws of a result (or its final states), or states as they are.

    Raises:
        ConfigurationError: If they are no numbers.
        ShapeError: If there is no batch axis.
    """
    if isinstance(states, SampleResult):
        kept = states.trajectory
        return states.final if kept is None else kept.detach().flatten(0, 1)
    states = to_tensor(name, states)
    if states.ndim < 1:
        raise ShapeError(f"{name} is a single number", "(n, *event)", f"pass a batch as {name}")
    return states.detach()


def finite_chains(values: Tensor) -> Tensor:
    """Which chains hold finite numbers only: ``(chain, ...) -> (chain,)``."""
    return values.isfinite().flatten(1).all(1)


def require_finite(trajectory: Tensor) -> None:
    """Refuse draws that are NaN or infinite.

    Raises:
        NumericalError: If there are any.
    """
    finite = finite_chains(trajectory)
    if not finite.all():
        raise NumericalError(
            f"draws of {int((~finite).sum())} of {len(finite)} chains are NaN or infinite, "
            f"first those of chain {int((~finite).nonzero()[0, 0])}",
            "finite draws",
            "leave these chains out, and lower the sampler's step size",
        )


class Block:
    """Some elements of all draws, and what their diagnostics have in common.

    Args:
        values: Finite draws ``(element, chain, draw)``.
    """

    def __init__(self, values: Array) -> None:
        self.varies = values.max(axis=(1, 2)) > values.min(axis=(1, 2))
        self.values = values if self.varies.all() else values[self.varies]
        self._known: dict[str, Array] = {}

    @cached_property
    def split(self) -> Array:
        """Each chain as two: ``(element, 2 chain, draw // 2)``."""
        half = self.values.shape[2] // 2
        return np.concatenate((self.values[..., :half], self.values[..., -half:]), axis=1)

    @cached_property
    def ranked(self) -> Array:
        """The split chains' ranks as normal scores."""
        return normal_scores(self.split)

    @cached_property
    def ranked_distances(self) -> Array:
        """The same of the distances to the median."""
        centre = np.median(self.split, axis=(1, 2), keepdims=True)
        return normal_scores(np.abs(self.split - centre))

    @cached_property
    def squared(self) -> "Block":
        """The block of x²; of elements that never vary none."""
        return Block(np.square(self.values))

    def once(self, name: str, compute: Callable[[], Array]) -> Array:
        """What ``compute`` gives, remembered by name."""
        if name not in self._known:
            self._known[name] = compute()
        return self._known[name]

    def full(self, numbers: Array) -> Array:
        """Numbers of the elements that vary, with NaN for those that do not."""
        if self.varies.all():
            return numbers
        everywhere = np.full(len(self.varies), np.nan)
        everywhere[self.varies] = numbers
        return everywhere


Estimate: TypeAlias = Callable[[Block], Array]
"""One number for each element of a block that varies."""


def normal_scores(values: Array) -> Array:
    """Ranks among all draws of an element, ties shared, as normal quantiles.

    The rank r of n becomes the quantile of (r - 3/8) / (n + 1/4), as in Vehtari et al. 2021.

    Args:
        values: ``(element, chain, draw)``.
    """
    flat = values.reshape(len(values), -1)
    n = flat.shape[1]
    halves = torch.arange(2 * n - 1, dtype=torch.float64) / 2  # a rank less 1, whole or half
    scores = torch.special.ndtri((halves + 1 - 3 / 8) / (n + 1 / 4)).numpy()
    result = np.empty_like(flat)
    for row, scored in zip(flat, result, strict=True):
        order = np.argsort(row)
        in_order = row[order]
        begins = np.append(True, in_order[1:] != in_order[:-1])
        if begins.all():
            scored[order] = scores[::2]
        else:  # ties: the mean of the first and the last place of equal values
            first = np.flatnonzero(begins)
            counts = np.diff(first, append=n)
            scored[order] = np.repeat(scores[2 * first + counts - 1], counts)
    return result.reshape(values.shape)


def each_element(trajectory: Tensor, estimates: Mapping[str, Estimate]) -> dict[str, Tensor]:
    """Several numbers of each element; NaN for elements that never vary.

    Args:
        trajectory: Finite draws ``(chain, draw, *event)``.
        estimates: What to compute, by name.

    Returns:
        For each name float64 numbers of the event's shape, on the CPU.
    """
    event = trajectory.shape[2:]
    parts: dict[str, list[Array]] = {name: [] for name in estimates}
    for values in _blocks(trajectory):
        block = Block(values)
        for name, estimate in estimates.items():
            with np.errstate(divide="ignore", invalid="ignore"):  # chains that stand still
                numbers = estimate(block) if len(block.values) else np.empty(0)
            parts[name].append(block.full(numbers))
    return {
        name: torch.from_numpy(np.concatenate(pieces)).reshape(event)
        for name, pieces in parts.items()
    }


def _blocks(trajectory: Tensor) -> Iterator[Array]:
    """``(element, chain, draw)`` in float64, some elements at a time."""
    n_chains, n_draws = trajectory.shape[:2]
    flat = trajectory.reshape(n_chains, n_draws, -1)
    at_once = max(1, _VALUES_AT_ONCE // max(1, n_chains * n_draws))
    for first in range(0, flat.shape[2], at_once):
        piece = flat[:, :, first : first + at_once].to("cpu", torch.float64)
        yield piece.permute(2, 0, 1).contiguous().numpy()


def array_stats() -> Any:
    """arviz-stats' functions of arrays; imported at the first call, since that takes a second."""
    from arviz_stats.base import array_stats as functions  # type: ignore[attr-defined]

    return functions
