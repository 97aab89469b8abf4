"""`summary`: one table of all diagnostics, with warnings that say what to do."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

import numpy as np
import torch
from torch import Tensor

from ebm_core import NumericalError, SampleResult, ShapeError
from ebm_core.validation import check_integer
from ebm_utils.advice import Findings, warnings_of
from ebm_utils.arrays import TensorLike
from ebm_utils.chains import ModeOccupancy, bfmi, longest_stays, mode_occupancy, stuck_chains
from ebm_utils.diagnostics import (
    chain_moments,
    ess_bulk_of,
    ess_of_moments,
    ess_tail_of,
    mcse_mean_of,
    mcse_of_moments,
    mcse_sd_of,
    nested_of_moments,
    nested_rhat_of,
    of_square,
    rhat,
    rhat_of,
    rhat_of_moments,
    sd_of_moments,
    superchain_ids,
    tau_of,
)
from ebm_utils.draws import (
    MIN_DRAWS,
    Array,
    Estimate,
    each_element,
    finite_chains,
    require_trajectory,
)

MAX_TREE_DEPTH = 10
"""What NUTS has by default."""


@dataclass(frozen=True, eq=False)
class Table:
    """Numbers with a name for each row and column.

    ``pandas.DataFrame({n: c.numpy() for n, c in table.columns.items()}, table.index)`` makes a data
    frame of it.

    Attributes:
        index: Names of the rows: the elements of the state, ``x[0]``, ``x[1,2]``.
        columns: Float64 numbers, ``(row,)``, by name.
    """

    index: tuple[str, ...]
    columns: Mapping[str, Tensor]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.index)

    def __getitem__(self, column: str) -> Tensor:
        """A column, ``(row,)``."""
        return self.columns[column]

    def row(self, name: str) -> dict[str, float]:
        """The numbers of one row, by column.

        Raises:
            KeyError: If no row has this name.
        """
        if name not in self.index:
            raise KeyError(name)
        i = self.index.index(name)
        return {column: values[i].item() for column, values in self.columns.items()}


@dataclass(frozen=True, eq=False)
class Summary:
    """What `summary` found; prints as a table with its warnings below.

    Attributes:
        table: A row for each element of the state. With a trajectory its columns are ``mean``,
            ``sd``, ``mcse_mean``, ``mcse_sd`` (`mcse`), ``ess_bulk``, ``ess_tail`` (`ess`),
            ``ess_bulk_sq``, ``ess_tail_sq`` (the same of x²), ``tau`` (`autocorrelation_time`),
            ``rhat`` and ``nested_rhat``; what a run does not tell is no column.
        warnings: Sentences that say what was seen and what to do; none if all is well.
        chains: Numbers of each chain, ``(chain,)``, where the result has them:
            ``acceptance_rate``, ``n_diverging``, ``n_steps`` (gradients), ``step_size``,
            ``longest_stay`` (fraction of the run at one place, 1 for stuck chains), ``bfmi``,
            ``tree_depth`` (deepest), ``saturated`` (fraction of trees cut at the deepest).
        totals: The same for all chains together: means of rates, sums of counts, the least
            ``bfmi``, the greatest ``tree_depth``, the median ``step_size``, and ``n_stuck``.
        n_chains: Number of chains.
        n_draws: Draws of each (1 where only final states were kept).
        event_shape: Shape of a state.
        kept: "trajectory", "moments" or "final".
        modes: How chains spread over ``modes``; None if they were not given.
        max_rows: How many rows are printed.
    """

    table: Table
    warnings: tuple[str, ...]
    chains: Mapping[str, Tensor]
    totals: Mapping[str, float]
    n_chains: int
    n_draws: int
    event_shape: tuple[int, ...]
    kept: str
    modes: ModeOccupancy | None
    max_rows: int

    def worst_rows(self, n: int) -> list[int]:
        """Numbers of at most ``n`` rows: all in order, or those of the least ESS first."""
        if len(self.table) <= n:
            return list(range(len(self.table)))
        columns = self.table.columns
        sizes = [values for name, values in columns.items() if name.startswith("ess")]
        if sizes:
            key = torch.stack(sizes).amin(0)
        else:
            key = -columns.get("nested_rhat", columns.get("rhat", torch.zeros(len(self.table))))
        return key.nan_to_num(-torch.inf).argsort(stable=True)[:n].tolist()

    def headline(self) -> str:
        """The run in one line."""
        draws = {
            "trajectory": f"of {self.n_draws} draws",
            "moments": f"of {self.n_draws} draws in moments",
            "final": "in final states",
        }
        parts = [f"{self.n_chains} chains {draws[self.kept]}, states {self.event_shape}"]
        forms = {
            "acceptance_rate": "acceptance {:.2f}",
            "n_diverging": "{:.0f} divergent",
            "n_steps": "{:.3g} gradients",
            "step_size": "step_size {:.3g}",
            "bfmi": "BFMI at least {:.2f}",
            "tree_depth": "tree depth at most {:.0f}",
        }
        parts += [form.format(self.totals[k]) for k, form in forms.items() if k in self.totals]
        return "; ".join(parts)

    def __str__(self) -> str:
        """The table in plain text, at most ``max_rows`` rows, and the warnings."""
        cells = list(self._cells())
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [self.headline(), ""]
        for name, *numbers in cells:
            aligned = (c.rjust(w) for c, w in zip(numbers, widths[1:], strict=True))
            lines.append("  ".join((name.ljust(widths[0]), *aligned)))
        lines += filter(None, (self._left_out(),))
        if self.modes is not None:
            lines += ["", repr(self.modes)]
        lines += ["", *(f"Warning: {sentence}." for sentence in self.warnings)]
        return "\n".join(lines if self.warnings else [*lines, "No warnings."])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        head, *rows = self._cells()
        parts = [f"<p>{escape(self.headline())}</p>", "<table><thead><tr>"]
        parts += [f"<th>{escape(cell)}</th>" for cell in head]
        parts.append("</tr></thead><tbody>")
        for name, *numbers in rows:
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in numbers)
            parts.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
        parts.append("</tbody></table>")
        notes = [self._left_out(), "" if self.modes is None else repr(self.modes)]
        parts += [f"<p>{escape(note)}</p>" for note in notes if note]
        items = "".join(f"<li>{escape(sentence)}.</li>" for sentence in self.warnings)
        parts.append(f"<b>Warnings</b><ul>{items}</ul>" if items else "<p>No warnings.</p>")
        return "".join(parts)

    def _left_out(self) -> str:
        if len(self.table) <= self.max_rows:
            return ""
        return f"… {len(self.table) - self.max_rows} more rows; these are the worst"

    def _cells(self) -> Iterator[list[str]]:
        columns = self.table.columns
        yield ["", *columns]
        for i in self.worst_rows(self.max_rows):
            numbers = {name: values[i].item() for name, values in columns.items()}
            error = numbers.get("mcse_mean", float("nan"))
            yield [self.table.index[i], *(_format(k, v, error) for k, v in numbers.items())]


def summary(
    result: SampleResult | TensorLike,
    *,
    name: str = "x",
    modes: TensorLike | None = None,
    superchains: int | Sequence[int] | TensorLike | None = None,
    max_tree_depth: int = MAX_TREE_DEPTH,
    max_rows: int = 20,
) -> Summary:
    """All diagnostics of a run in one table, with warnings that say what to do.

    It warns of chains that are not finite, divergences, chains that stand still, acceptance rates
    out of range, elements that never change, R-hat of 1.01 or more, effective sample sizes (bulk
    and tail, of x and of x²) below 400, nested R-hat above what forgotten starts give, modes on
    which chains disagree or that none visits, BFMI below 0.3, and trees that were cut. No warning
    means that none of this was seen in the elements of x: a mode that no chain has found leaves no
    trace, and unadjusted samplers are biased whatever their chains look like.

    Of a result without a trajectory the table has what it tells. Moments: means, R-hat (neither
    split nor ranked), and the effective size of means from how chains differ. Final states: means
    over chains and their errors; whether chains converged only with ``superchains``.

    Args:
        result: A result, or draws ``(chain, draw, *event)``.
        name: What the state is called in the table.
        modes: Places of known modes, ``(mode, *event)``; see `mode_occupancy`.
        superchains: Which chains had common starts; see `nested_rhat`.
        max_tree_depth: The ``max_tree_depth`` of NUTS.
        max_rows: Rows to print; the table itself has all.

    Raises:
        ShapeError: If there is no chain, or draws, modes or superchains have other shapes.
        ConfigurationError: If draws are no numbers, or an argument makes no sense.
        NumericalError: If no chain is finite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = summary(torch.randn(4, 500, 2, generator=generator))
        >>> found.table["rhat"].max().item() < 1.01, found.warnings
        (True, ())
        >>> draws = torch.randn(4, 500, 1, generator=generator)
        >>> draws[3] = 0.5
        >>> print(summary(draws).warnings[0])
        1 of 4 chains never moved: lower step_size
    """
    check_integer("max_rows", max_rows, at_least=1)
    check_integer("max_tree_depth", max_tree_depth, at_least=1)
    kept, values, n_draws = _kept(result)
    finite = _finite(result, values)
    chains = _chain_columns(result, values, n_draws, max_tree_depth)
    ids = None if superchains is None else superchain_ids(superchains, len(values))
    n_superchains = 0 if ids is None else int(ids.max()) + 1
    if not finite.all():
        ids = None  # superchains that lost chains are no longer alike
    if kept == "moments":
        assert isinstance(result, SampleResult)
        columns = _moment_columns(result, finite, ids)
    else:
        columns = _draw_columns(values[finite], ids)
    event = tuple(values.shape[2:])
    table = Table(_names(name, event), {k: v.flatten() for k, v in columns.items()})
    occupancy = None
    if modes is not None:
        occupancy = mode_occupancy(values[finite], modes)
    findings = Findings(
        kept=kept,
        n_chains=len(values),
        n_draws=n_draws,
        left_out=int((~finite).sum()),
        index=table.index,
        columns=table.columns,
        chains=chains,
        superchains=n_superchains,
        max_tree_depth=max_tree_depth,
        occupancy=occupancy,
        occupancy_rhat=None if occupancy is None else _occupancy_rhat(occupancy),
    )
    return Summary(
        table,
        warnings_of(findings),
        chains,
        _totals(chains),
        len(values),
        n_draws,
        event,
        kept,
        occupancy,
        max_rows,
    )


def _kept(result: SampleResult | TensorLike) -> tuple[str, Tensor, int]:
    """What was kept, the draws (or final states as one draw) ``(chain, draw, *event)``, draws."""
    if not isinstance(result, SampleResult) or result.trajectory is not None:
        values = require_trajectory(result)
        kept, n_draws = "trajectory", values.shape[1]
    else:
        values = result.final.detach()[:, None]
        kept = "final" if result.moments is None else "moments"
        n_draws = 1 if result.moments is None else result.moments.count
    if not values.numel() or not n_draws:
        raise ShapeError(
            f"draws have shape {tuple(values.shape)}",
            "one chain, one draw and one element at least",
            "sample something first",
        )
    return kept, values, n_draws


def _finite(result: SampleResult | TensorLike, values: Tensor) -> Tensor:
    finite = finite_chains(values)
    if isinstance(result, SampleResult) and result.trajectory is None and result.moments:
        finite = finite_chains(result.moments.mean) & finite_chains(result.moments.sum_of_squares)
    if not finite.any():
        raise NumericalError(
            f"all {len(finite)} chains are NaN or infinite",
            "a finite chain",
            "lower the sampler's step size, and see that the energy is finite at the start",
        )
    return finite


def _draw_columns(draws: Tensor, ids: Array | None) -> dict[str, Tensor]:
    """Columns of finite draws, ``(chain, draw, *event)``."""
    n_chains, n_draws = draws.shape[:2]
    estimates: dict[str, Estimate] = {
        "mean": lambda block: np.asarray(block.values.mean(axis=(1, 2))),
        "sd": lambda block: np.asarray(block.values.std(axis=(1, 2), ddof=1)),
    }
    if n_draws >= MIN_DRAWS:
        estimates |= {
            "mcse_mean": mcse_mean_of,
            "mcse_sd": mcse_sd_of,
            "ess_bulk": ess_bulk_of,
            "ess_tail": ess_tail_of,
            "ess_bulk_sq": partial(of_square, ess_bulk_of),
            "ess_tail_sq": partial(of_square, ess_tail_of),
            "tau": tau_of,
        }
        if n_chains > 1:
            estimates["rhat"] = rhat_of
    if ids is not None:
        estimates["nested_rhat"] = partial(nested_rhat_of, ids=ids)
    columns = each_element(draws, estimates)
    value = draws[0, 0].cpu().double()  # of elements that never vary
    columns["mean"] = torch.where(columns["mean"].isnan(), value, columns["mean"])
    columns["sd"] = columns["sd"].nan_to_num(0.0)
    if n_draws == 1:
        columns["mcse_mean"] = columns["sd"] / math.sqrt(n_chains)
    return columns


def _moment_columns(result: SampleResult, finite: Tensor, ids: Array | None) -> dict[str, Tensor]:
    """Columns of the running moments of finite chains."""
    moments = result.moments
    assert moments is not None
    chosen = finite.cpu().numpy()
    mean, variance = (part[:, chosen] for part in chain_moments(result))
    count, n_chains = moments.count, mean.shape[1]
    columns = {"mean": mean.mean(1), "sd": sd_of_moments(mean, variance, count)}
    with np.errstate(divide="ignore", invalid="ignore"):
        if n_chains > 1:
            columns["mcse_mean"] = mcse_of_moments(mean)
            columns["ess_mean"] = ess_of_moments(mean, variance, count)
            if count > 1:
                columns["rhat"] = rhat_of_moments(mean, variance, count)
        if ids is not None:
            columns["nested_rhat"] = nested_of_moments(mean, variance, ids)
    return {name: torch.from_numpy(values) for name, values in columns.items()}


def _chain_columns(
    result: SampleResult | TensorLike, values: Tensor, n_draws: int, max_tree_depth: int
) -> dict[str, Tensor]:
    """Numbers of each chain, on the CPU."""
    columns: dict[str, Tensor] = {}
    if isinstance(result, SampleResult):
        stats = {k: v.detach().cpu() for k, v in result.stats.items()}
        if "acceptance_rate" in stats:
            columns["acceptance_rate"] = stats["acceptance_rate"].double().mean(1)
        if "diverging" in stats:
            columns["n_diverging"] = stats["diverging"].sum(1)
        if "n_steps" in stats:
            columns["n_steps"] = stats["n_steps"].sum(1)
        if "step_size" in stats:
            columns["step_size"] = stats["step_size"]
        if "tree_depth" in stats:
            columns["tree_depth"] = stats["tree_depth"].amax(1)
            if result.trajectory is not None:
                columns["saturated"] = (stats["tree_depth"] >= max_tree_depth).double().mean(1)
        if "energy" in stats and result.n_draws >= MIN_DRAWS and stats["energy"].isfinite().all():
            columns["bfmi"] = bfmi(result)
        if result.trajectory is None and result.moments is not None and n_draws > 1:
            columns["longest_stay"] = stuck_chains(result).double().cpu()
    if values.shape[1] > 1:
        columns["longest_stay"] = longest_stays(values).cpu()
    return columns


def _totals(chains: Mapping[str, Tensor]) -> dict[str, float]:
    totals = {}
    for name, values in chains.items():
        values = values.double()
        if name in ("n_diverging", "n_steps"):
            totals[name] = values.sum().item()
        elif name == "bfmi":
            totals[name] = values.nan_to_num(torch.inf).min().item()
        elif name == "tree_depth":
            totals[name] = values.max().item()
        elif name == "step_size":
            totals[name] = values.median().item()
        elif name == "longest_stay":
            totals["n_stuck"] = float((values >= 1).sum())
        else:
            totals[name] = values.mean().item()
    return totals


def _occupancy_rhat(occupancy: ModeOccupancy) -> Tensor | None:
    """R-hat of being at each mode, ``(mode,)``."""
    n_chains, n_draws = occupancy.labels.shape
    if n_chains < 2 or n_draws < MIN_DRAWS:
        return None
    n_modes = occupancy.counts.shape[1]
    return rhat(torch.nn.functional.one_hot(occupancy.labels, n_modes))


def _names(name: str, event: tuple[int, ...]) -> tuple[str, ...]:
    if not event:
        return (name,)
    return tuple(f"{name}[{','.join(map(str, place))}]" for place in np.ndindex(*event))


def _format(column: str, value: float, error: float) -> str:
    """A number with the digits that its error leaves."""
    if not math.isfinite(value):
        return str(value)
    if column.startswith("ess"):
        return f"{value:.0f}" if value < 1e7 else f"{value:.2e}"
    if column.endswith("rhat"):
        return f"{value:.3f}" if value < 100 else f"{value:.2g}"
    if column in ("mean", "sd") and math.isfinite(error) and error > 0:
        decimals = 1 - math.floor(math.log10(error))
        if 0 <= decimals <= 6 and abs(value) < 1e7:
            return f"{value:.{decimals}f}"
    return f"{value:.2g}" if column.startswith("mcse") else f"{value:.3g}"
