"""Figures of energies and draws in two dimensions, of traces and of training.

Every function draws into the ``ax`` it is given, or into a new figure, and returns the ``Axes``:
nothing is shown, no global setting changes. matplotlib is imported at the first call.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_core import (
    ConfigurationError,
    EnergyLike,
    NumericalError,
    SampleResult,
    ShapeError,
    as_energy,
    evaluation_mode,
)
from ebm_core.validation import check_integer, check_positive
from ebm_utils.arrays import TensorLike, to_tensor
from ebm_utils.datasets.base import SyntheticDataset
from ebm_utils.draws import require_trajectory
from ebm_utils.quadrature import GridBounds, MidpointGrid, grid_energies

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

LANDSCAPE, DENSITY = "magma", "magma_r"  # what is probable is dark in both, under light draws
OVERLAY = "#7fe3f0"
DRAWS = "#f26b3a"
DATA = "#8a8f98"
CHAINS = ("#3366cc", "#e4572e", "#17a398", "#8f63c9", "#e3a008", "#c2407e", "#5a7d2a", "#4a5568")
FRAME = "#9aa0a8"
MAX_POINTS = 5000
N_LEVELS = 21


def plot_landscape(
    energy: EnergyLike,
    bounds: Sequence[tuple[float, float]],
    *,
    samples: SampleResult | SyntheticDataset | TensorLike | None = None,
    density: bool = False,
    depth: float = 10.0,
    n_points: int = 200,
    title: str | None = None,
    colorbar: bool | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Filled contours of an energy in the plane, or of its density, with draws over them.

    Args:
        energy: An energy of states ``(2,)``, or a callable ``(batch, 2) -> (batch,)``; evaluated in
            eval mode.
        bounds: ``((x_low, x_high), (y_low, y_high))``, also the limits of the axes.
        samples: States ``(*batch, 2)``, a data set or a result (its draws, or else its final
            states); at most 5000 of them are drawn, evenly picked.
        density: Show exp(-E) / Z, normalised within ``bounds``, instead of E - min E.
        depth: Energies are resolved up to this many nats above the minimum.
        n_points: Points of the grid along each axis.
        title: Title; None for "Energy" or "Density".
        colorbar: Add a colour bar; None: if the figure is a new one.
        ax: Axes to draw into; None for a new figure.

    Raises:
        ShapeError: If energy or states are not of the plane.
        NumericalError: If an energy is NaN or -inf.
        ConfigurationError: If bounds or numbers make no sense, or the energy is +inf everywhere.
    """
    grid = MidpointGrid(_box(bounds), n_points)
    check_positive("depth", depth)
    dots = None if samples is None else _states(samples)
    heights = _heights(energy, grid)
    if density:
        values = np.exp(-heights - np.logaddexp.reduce(-heights, axis=None) - grid.log_cell)
        levels, label = np.linspace(0, values.max(), N_LEVELS), "density"
    else:
        values = heights - heights.min()
        levels, label = np.linspace(0, depth, N_LEVELS), "energy above the minimum (nats)"
    x, y = (
        low + (np.arange(n) + 0.5) * width
        for (low, _), n, width in zip(grid.box, grid.counts, grid.widths, strict=True)
    )
    canvas = _axes(ax, _plane_size(grid.box, margin=1.2))
    filled = canvas.contourf(
        x,
        y,
        np.ma.masked_invalid(values),
        levels=levels,
        cmap=DENSITY if density else LANDSCAPE,
        extend="neither" if density else "max",
    )
    filled.set_edgecolor("face")  # no hairlines between the bands in vector formats
    if dots is not None:
        _scatter(canvas, dots, color=OVERLAY, zorder=2)
    if colorbar if colorbar is not None else ax is None:
        bar = canvas.figure.colorbar(filled, ax=canvas, pad=0.03, label=label, ticks=_round_ticks())
        outline: Any = bar.outline  # of another type in some versions
        outline.set_visible(False)
    if title is None:
        title = "Density" if density else "Energy"
    return _plane(canvas, grid.box, title)


def plot_trajectories(
    draws: SampleResult | TensorLike,
    *,
    energy: EnergyLike | None = None,
    bounds: Sequence[tuple[float, float]] | None = None,
    max_chains: int = 8,
    title: str | None = "Trajectories",
    ax: "Axes | None" = None,
) -> "Axes":
    """Paths of chains in the plane: a line each, from a hollow mark to a filled one.

    Args:
        draws: A result with a trajectory, or draws ``(chain, draw, 2)``.
        energy: An energy whose contours go below the paths.
        bounds: ``((x_low, x_high), (y_low, y_high))``; None for the draws' range and a margin.
        max_chains: The first so many chains are drawn.
        title: Title; None for none.
        ax: Axes to draw into; None for a new figure.

    Raises:
        ConfigurationError: If the result holds no trajectory, or bounds make no sense.
        ShapeError: If states or bounds are not of the plane, or there are no draws.
        NumericalError: If no state is finite, and no bounds are given.
    """
    trajectory = _trajectory(draws)
    if trajectory.ndim != 3 or trajectory.shape[-1] != 2:
        raise ShapeError(
            f"draws have shape {tuple(trajectory.shape)}",
            "(chain, draw, 2)",
            "pick two elements of the state: draws[..., [0, 1]]",
        )
    paths = _numpy(trajectory[: check_integer("max_chains", max_chains, at_least=1)])
    box = _box(bounds) if bounds is not None else _range(paths)
    canvas = _axes(ax, _plane_size(box))
    if energy is not None:
        plot_landscape(energy, box, colorbar=False, ax=canvas)
    for i, path in enumerate(paths):
        color = CHAINS[i % len(CHAINS)] if energy is None else OVERLAY
        canvas.plot(*path.T, color=color, linewidth=0.8, alpha=0.8, zorder=3)
        canvas.plot(*path[:1].T, "o", markersize=5, markerfacecolor="white", color=color, zorder=4)
        canvas.plot(*path[-1:].T, "o", markersize=5, color=color, zorder=4)
    return _plane(canvas, box, title)


def plot_traces(
    draws: SampleResult | TensorLike,
    *,
    element: int | tuple[int, ...] = 0,
    max_chains: int = 8,
    title: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """One element of the state against the number of the draw, a line for each chain.

    Args:
        draws: A result with a trajectory, or draws ``(chain, draw, *event)``.
        element: Which element: an index of the event, or an int for the flattened event.
        max_chains: The first so many chains are drawn.
        title: Title; None for the element's name.
        ax: Axes to draw into; None for a new figure.

    Raises:
        ConfigurationError: If the result holds no trajectory, or there is no such element.
        ShapeError: If there are no draws.
    """
    trajectory = _trajectory(draws)
    event = tuple(trajectory.shape[2:])
    chosen = trajectory[: check_integer("max_chains", max_chains, at_least=1)]
    try:
        index = [_index(i) for i in (element if isinstance(element, tuple) else (element,))]
        flat = int(np.ravel_multi_index(index, event)) if isinstance(element, tuple) else index[0]
        traces = _numpy(chosen.reshape(*chosen.shape[:2], -1)[..., flat])
    except (IndexError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"element is {element!r}",
            f"an index of the event shape {event}",
            "pass another element",
        ) from error
    canvas = _axes(ax, (7.0, 2.8))
    for i, trace in enumerate(traces):
        canvas.plot(trace, color=CHAINS[i % len(CHAINS)], linewidth=0.8, alpha=0.85)
    canvas.set_xlim(0, max(1, trajectory.shape[1] - 1))
    canvas.set_xlabel("draw")
    if title is None:
        title = f"x[{', '.join(map(str, index))}]" if event else "x"
    return _plain(canvas, title)


def plot_training(
    history: Mapping[str, Sequence[float]],
    *,
    x: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    x_label: str = "step",
    window: int = 1,
    log: bool = False,
    title: str | None = "Training",
    ax: "Axes | None" = None,
) -> "Axes":
    """Curves of a training run against the number of the step, or against the abscissa given.

    Args:
        history: Values by name: numbers or tensors of one element, with gradients or without.
        x: The abscissa of each value: one sequence for all series, or one for each by name (runs of
            different length). None to number the steps from 1; a series shorter than the longest
            then counts as recorded at equal intervals of the same run, up to its last step.
        x_label: What the abscissa is.
        window: Length of a moving average, in entries of the series, drawn over the pale raw curve;
            1 for the raw curve alone.
        log: A logarithmic vertical axis; values that are not positive leave gaps.
        title: Title; None for none.
        ax: Axes to draw into; None for a new figure.

    Raises:
        ConfigurationError: If there is no series, one has no values, or with ``log`` no positive
            one, something is no number, or ``x`` lacks a series.
        ShapeError: If a series and its abscissa differ in length.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> ax = plot_training({"KL": [0.9, 0.1]}, x={"KL": [500, 1000]})
        >>> ax.lines[0].get_xdata().tolist()
        [500.0, 1000.0]
        >>> plt.close(ax.figure)
    """
    window = check_integer("window", window, at_least=1)
    if not isinstance(history, Mapping) or not history:
        raise ConfigurationError(
            f"history is {history!r:.80}", "series of values by name", 'pass {"loss": losses}'
        )
    series = {str(name): _curve(name, values) for name, values in history.items()}
    for name, values in series.items():
        if log and not (values > 0).any():
            raise ConfigurationError(
                f"no value of {name!r} is positive", "one or more, with log", "pass log=False"
            )
    steps = _abscissae(series, x)
    canvas = _axes(ax, (7.0, 3.2))
    for i, (name, values) in enumerate(series.items()):
        color = CHAINS[i % len(CHAINS)]
        label = f" {name}" if name.startswith("_") else name  # matplotlib hides labels with "_"
        smooth = 1 < window <= len(values)
        canvas.plot(
            steps[name],
            values,
            color=color,
            linewidth=1.0 if smooth else 1.6,
            alpha=0.25 if smooth else 1.0,
            label="" if smooth else label,
        )
        if smooth:
            mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
            canvas.plot(steps[name][window - 1 :], mean, color=color, linewidth=1.6, label=label)
    every = np.concatenate(list(steps.values()))
    first = 0.0 if x is None else every.min()
    if first < every.max():
        canvas.set_xlim(first, every.max())
    canvas.set_xlabel(x_label)
    if log:
        canvas.set_yscale("log")
    canvas.legend(frameon=False, loc="best")
    return _plain(canvas, title)


def plot_samples(
    samples: SampleResult | SyntheticDataset | TensorLike,
    data: SyntheticDataset | TensorLike | None = None,
    *,
    bounds: Sequence[tuple[float, float]] | None = None,
    title: str | None = "Samples and data",
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws in the plane over the data that they should resemble.

    Args:
        samples: States ``(*batch, 2)``, a data set or a result (its draws, or else its final
            states); at most 5000 are drawn, evenly picked; so for the data.
        data: States ``(*batch, 2)`` or a data set, drawn below in grey; None for the samples alone.
        bounds: ``((x_low, x_high), (y_low, y_high))``; None for the range of all states and a
            margin.
        title: Title; None for none.
        ax: Axes to draw into; None for a new figure.

    Raises:
        ConfigurationError: If bounds make no sense, or states are no numbers.
        ShapeError: If states or bounds are not of the plane.
        NumericalError: If no state is finite, and no bounds are given.
    """
    layers = [("samples", _states(samples), DRAWS)]
    if data is not None:
        layers.insert(0, ("data", _states(data), DATA))
    box = _box(bounds) if bounds is not None else _range(np.concatenate([x for _, x, _ in layers]))
    canvas = _axes(ax, _plane_size(box))
    for zorder, (label, states, color) in enumerate(layers, start=2):
        _scatter(canvas, states, color=color, zorder=zorder, label=label)
    if data is not None:
        legend = canvas.legend(frameon=False, loc="upper right", markerscale=4, handletextpad=0.2)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
    return _plane(canvas, box, title)


def _index(value: Any) -> int:
    if isinstance(value, bool | np.bool):
        raise TypeError("a bool is no index")
    return operator.index(value)


def _curve(name: Any, values: Any) -> NDArray[np.float64]:
    """A series of at least one number, NaN and infinity among them, as an array."""
    try:
        curve = [float(v.detach() if isinstance(v, Tensor) else v) for v in values]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"{name!r} is {values!r:.80}", "a sequence of numbers", "pass one number a step"
        ) from error
    if not curve:
        raise ConfigurationError(
            f"{name!r} has no values", "at least one", "record the loss at each step"
        )
    return np.asarray(curve)


def _abscissae(series: Mapping[str, NDArray[np.float64]], x: Any) -> dict[str, NDArray[np.float64]]:
    """The abscissa of each series: its own, the one of all, or steps up to the longest's last."""
    if x is None:
        last = max(map(len, series.values()))
        return {
            name: np.arange(1.0, len(values) + 1) * (last / len(values))
            for name, values in series.items()
        }
    given = (
        {str(k): v for k, v in x.items()} if isinstance(x, Mapping) else dict.fromkeys(series, x)
    )
    if missing := [name for name in series if name not in given]:
        raise ConfigurationError(
            f"x has no {missing}", "an abscissa for each series", "add it, or pass one for all"
        )
    steps = {name: _curve(f"x of {name}", given[name]) for name in series}
    for name, values in series.items():
        if len(steps[name]) != len(values):
            raise ShapeError(
                f"{name!r} has {len(values)} values at {len(steps[name])} places x",
                "as many places as values",
                "pass x by name where series differ in length",
            )
        if not np.isfinite(steps[name]).all():
            raise ConfigurationError(
                f"x of {name!r} holds NaN or infinity", "finite numbers", "check x"
            )
    return steps


def _axes(ax: "Axes | None", figsize: tuple[float, float]) -> "Axes":
    """The given axes, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def _plane_size(box: GridBounds, margin: float = 0.4) -> tuple[float, float]:
    """A figure's size for a box drawn with equal units; ``margin`` inches beside it."""
    width, height = (high - low for low, high in box)
    unit = 4.2 / max(width, height)
    return max(2.0, unit * width) + margin, max(2.0, unit * height) + 0.6


def _round_ticks() -> "MaxNLocator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, steps=[1, 2, 5, 10])


def _plane(ax: "Axes", box: GridBounds, title: str | None) -> "Axes":
    """Equal units, the limits of the box, few ticks, a thin frame."""
    ax.set_aspect("equal")
    ax.set_xlim(*box[0])
    ax.set_ylim(*box[1])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(_round_ticks())
    ax.tick_params(length=3, color=FRAME)
    for spine in ax.spines.values():
        spine.set_color(FRAME)
    if title is not None:
        ax.set_title(title)
    return ax


def _plain(ax: "Axes", title: str | None) -> "Axes":
    """Left and lower axis only, over faint horizontal lines."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FRAME)
    ax.tick_params(length=3, color=FRAME)
    ax.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    ax.set_axisbelow(True)
    if title is not None:
        ax.set_title(title, loc="left")
    return ax


def _scatter(
    ax: "Axes", states: NDArray[np.float64], color: str, zorder: int, label: str | None = None
) -> None:
    """Dots that shrink and fade as they grow many."""
    step = math.ceil(max(1, len(states)) / MAX_POINTS)
    shown = states[::step]
    crowd = min(1.0, len(shown) / MAX_POINTS)
    ax.scatter(
        shown[:, 0],
        shown[:, 1],
        s=14 - 10 * crowd**0.5,
        alpha=0.9 - 0.5 * crowd,
        linewidths=0,
        color=color,
        zorder=zorder,
        label=label,
    )


def _trajectory(draws: SampleResult | TensorLike) -> Tensor:
    """Draws ``(chain, draw, *event)``, at least one."""
    trajectory = require_trajectory(draws)
    if trajectory.numel() == 0:
        raise ShapeError(
            f"draws have shape {tuple(trajectory.shape)}", "at least one draw", "run the chains on"
        )
    return trajectory


def _states(samples: SampleResult | SyntheticDataset | TensorLike) -> NDArray[np.float64]:
    """States of the plane, ``(n, 2)``."""
    if isinstance(samples, SampleResult):
        samples = samples.final if samples.trajectory is None else samples.trajectory
    samples = to_tensor(
        "samples", samples.data if isinstance(samples, SyntheticDataset) else samples
    )
    if samples.ndim < 2 or samples.shape[-1] != 2:
        raise ShapeError(
            f"samples have shape {tuple(samples.shape)}",
            "(*batch, 2)",
            "pick two elements of the state: samples[..., [0, 1]]",
        )
    return _numpy(samples.reshape(-1, 2))


def _heights(energy: EnergyLike, grid: MidpointGrid) -> NDArray[np.float64]:
    """Energies on the grid, ``(y, x)``."""
    model = as_energy(energy)
    with torch.no_grad(), evaluation_mode(model):
        rows = torch.cat([grid_energies(model, points).cpu() for points, _ in grid.chunks()])
    if not rows.isfinite().any():
        raise NumericalError(
            "the energy is +inf all over the box", "finite energies", "move bounds"
        )
    return rows.reshape(grid.counts).T.numpy()


def _box(bounds: Sequence[tuple[float, float]]) -> GridBounds:
    """Bounds of the plane, as numbers."""
    box = MidpointGrid(bounds, 2).box
    if len(box) != 2:
        raise ShapeError(f"bounds are of {len(box)} dimensions", "two", "pass [(-4, 4), (-4, 4)]")
    return box


def _range(states: NDArray[np.float64]) -> GridBounds:
    """The range of finite states ``(*batch, 2)``, no less than their digits show, and 6 % more."""
    finite = states.reshape(-1, 2)
    finite = finite[np.isfinite(finite).all(axis=1)]
    if len(finite) == 0:
        raise NumericalError("no state is finite", "finite states", "pass bounds, or other states")
    low, high = finite.min(axis=0), finite.max(axis=0)
    least = np.maximum(1e-6, 1e-12 * np.maximum(abs(low), abs(high)))
    margin = 0.06 * np.maximum(high - low, least)
    return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def _numpy(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().to("cpu", torch.float64).numpy()
