"""What a run keeps: draws, running moments, statistics; and the result, complete or partial.

With ``keep="trajectory"`` statistics belong to the interval of transitions that a draw ends.
Otherwise nothing grows with the run: one set of statistics covers all of it. Sums and moments are
accumulated in float64, and given in the states' dtype. Whatever is recorded
becomes part of a result by a single assignment of a `_Mark`, so that an interruption at any point
leaves a result that is consistent, as of the last draw.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ebm_core import Moments, SampleResult
from ebm_core.protocols import Callback
from ebm_samplers.adaptation import StepSizeAdaptation
from ebm_samplers.chains import Chains, Leg, Moment, Plan, Position
from ebm_samplers.progress import draws_between_calls, progress_bar
from ebm_samplers.states import State, Statistics, combined
from ebm_samplers.stored import Store


@dataclass(frozen=True)
class _Mark:
    moment: Moment
    burn_in: int
    n_draws: int
    n_transitions: int
    statistics: Statistics
    moments: Moments | None


@dataclass(frozen=True)
class _Draw:
    index: int
    x: Tensor
    energy: Tensor
    statistics: Statistics


class Recorder:
    """Collects what ``sample`` returns.

    Args:
        chains: The chains to look at.
        keep: As in ``sample``.
        n_draws: How many draws there will be.
        burn_in: Transitions of burn-in that come first.
        store: Where draws go, instead of memory.
    """

    def __init__(
        self, chains: Chains, keep: str, n_draws: int, burn_in: int, store: Store | None = None
    ) -> None:
        self.chains, self.keep, self.total = chains, keep, n_draws
        self.store = store
        self._statistics: Statistics = {}
        self._n_transitions = 0
        self._draws: list[_Draw] = []
        self._buffers: dict[str, Tensor] = {}
        self._mark = _Mark(chains.moment(), burn_in, 0, 0, {}, None)
        self._commit()

    @property
    def n_draws(self) -> int:
        """Draws so far."""
        return self._mark.n_draws

    def record(
        self,
        n_steps: int,
        thin: int = 1,
        burn_in: int = 0,
        adaptation: StepSizeAdaptation | None = None,
        progress: bool | None = False,
        callback: Callback | None = None,
    ) -> None:
        """Let the chains run, and note what comes; arguments as in ``sample``.

        Args:
            n_steps: Transitions after ``burn_in``.
            thin: Every thin-th state is a draw.
            burn_in: Transitions that come first.
            adaptation: Rule by which the step moves during ``burn_in``.
            progress: Show a progress bar; None: on long runs in a terminal.
            callback: Called with the partial result; a true return value ends the run.
        """
        between = draws_between_calls(self.total)
        stop, passed_on = between if callback else None, self.store is not None
        plan = Plan(thin, self.keep, self.total, stop, passed_on)
        with progress_bar(burn_in + n_steps, progress) as bar:
            for leg in self.chains.legs(burn_in, adaptation, age=self.chains.schedule_step):
                burn_in -= leg.n
                self.burn_in(burn_in)
                bar.update(leg.n)
            done = 0
            for leg in self.chains.legs(n_steps, plan=plan):
                n_draws = (done + leg.n) // thin - done // thin
                done += leg.n
                self.add(leg, n_draws)
                bar.update(leg.n)
                if callback is None or not n_draws or self.n_draws % between:
                    continue
                if callback(self.result(under_way=True)):
                    self.chains.check()
                    return
            self.end()

    def burn_in(self, remaining: int) -> None:
        """Note that so many transitions of burn-in remain."""
        self._mark = _Mark(self.chains.moment(), remaining, 0, 0, {}, None)
        self._commit_if_due()

    def add(self, leg: Leg, n_draws: int) -> None:
        """Note counted transitions, with the draws among them.

        Args:
            leg: The transitions.
            n_draws: How many draws there are; if any, then the last state is one.
        """
        moments, index = self._mark.moments, self._mark.n_draws
        if leg.columns is not None and self.store is None:
            self._buffers = leg.columns
        elif leg.columns is not None:
            self._write(index, {name: c[:, :n_draws] for name, c in leg.columns.items()})
        if leg.statistics or leg.columns is None:
            self._sum(leg)
            if not n_draws:
                return
            if self.keep == "trajectory":
                self._draw(index)
            elif self.keep == "moments":
                x = self.chains.state.x.double()
                new = Moments.of(x) if leg.draws is None else _moments(leg.draws.double())
                moments = new if moments is None else moments.merged(new)
        self._set_mark(index + n_draws, moments)
        self._commit_if_due()

    def _sum(self, leg: Leg) -> None:
        self._n_transitions += leg.n
        self._statistics = combined(self._statistics, leg.statistics)

    def _draw(self, index: int) -> None:
        state = self.chains.state
        averages = self._averaged(self._statistics, self._n_transitions)
        if self._draws and self._draws[-1].index != index - 1:  # the engine wrote those between
            self._flush()
        self._draws.append(_Draw(index, state.x, state.energy, averages))
        self._statistics, self._n_transitions = {}, 0
        if len(self._draws) >= self.chains.block:
            self._flush()

    def end(self) -> None:
        """Note that the run is over: transitions after the last draw count for ``final``."""
        self._set_mark(self._mark.n_draws, self._mark.moments)

    def columns(self) -> dict[str, Tensor]:
        """Of a trajectory: draws ``x``, their ``potential``, statistics, ``(chain, draw, ...)``."""
        mark = self._mark
        self._flush()
        return self._columns(mark, under_way=True)

    def result(self, under_way: bool = False) -> SampleResult:
        """The result up to the last draw (or `end`).

        Args:
            under_way: The run goes on, so that the trajectory may be a view of the whole buffer.
                Otherwise a result that is cut short does not hold on to the rest.
        """
        mark, state = self._mark, self._mark.moment.state
        self._flush()
        n_chains = len(state.x)
        if self.keep == "trajectory":
            columns = self._columns(mark, under_way)
            trajectory, potential = columns.pop("x"), columns.pop("potential")
        else:
            averages = self._averaged(mark.statistics, mark.n_transitions)
            columns = {
                name: value[:, None].clone()
                if isinstance(value, Tensor)
                else torch.full((n_chains, 1), value, device=state.x.device)
                for name, value in averages.items()
            }
            trajectory, potential = None, state.energy[:, None].clone()
        step_size = torch.as_tensor(
            mark.moment.step_size, dtype=state.energy.dtype, device=state.x.device
        )
        return SampleResult(
            final=state.x.clone(),
            trajectory=trajectory,
            potential=potential,
            stats={**columns, "step_size": step_size.expand(n_chains).clone()},
            moments=None if mark.moments is None else _as_dtype(mark.moments, _floating(state)),
            seed=self.chains.key,
            resume=self._resume(mark),
        )

    def _columns(self, mark: _Mark, under_way: bool) -> dict[str, Tensor]:
        """All draws until a mark."""
        if self.store is not None:
            self._commit()
            columns = self.store.tensors(mark.n_draws)
            return self._no_draws(mark.moment.state) | columns if len(columns) == 1 else columns
        if not mark.n_draws:
            return self._no_draws(mark.moment.state)
        columns = {name: buffer[:, : mark.n_draws] for name, buffer in self._buffers.items()}
        if mark.n_draws < self.total and not under_way:
            return {name: column.clone() for name, column in columns.items()}
        return columns

    def _commit_if_due(self) -> None:
        if self.store is not None and self.store.is_due:
            self._commit()

    def _commit(self) -> None:
        """Bring the files up to the last draw."""
        if self.store is not None:
            self._flush()
            self.store.commit(self._mark.n_draws, self._resume(self._mark))

    def _write(self, first: int, columns: dict[str, Tensor]) -> None:
        """Put draws where they belong."""
        if self.store is not None:
            self.store.write(first, columns)
            return
        for name, column in columns.items():
            if name not in self._buffers:
                shape = (len(column), self.total, *column.shape[2:])
                self._buffers[name] = column.new_empty(shape)
            self._buffers[name][:, first : first + column.shape[1]] = column

    def _resume(self, mark: _Mark) -> dict[str, Any]:
        position = self.chains.position(mark.moment, mark.burn_in)
        values = {field.name: getattr(position, field.name) for field in fields(Position)}
        return {"sampler": type(self.chains.sampler).__name__, **values}

    def _set_mark(self, n_draws: int, moments: Moments | None) -> None:
        self._mark = _Mark(
            self.chains.moment(), 0, n_draws, self._n_transitions, self._statistics, moments
        )

    def _averaged(self, statistics: Statistics, n: int) -> Statistics:
        """Sums of ``n`` transitions as means, where the mean is wanted."""
        if "acceptance_rate" not in statistics:
            return statistics
        mean = torch.as_tensor(statistics["acceptance_rate"]) / n
        return {**statistics, "acceptance_rate": mean.to(self.chains.state.energy.dtype)}

    def _no_draws(self, state: State) -> dict[str, Tensor]:
        """The columns before the first draw, of length 0."""
        empty = {"diverging": torch.bool, "n_steps": torch.int64, "tree_depth": torch.int64}
        columns = {
            name: state.energy.new_empty((len(state.x), 0), dtype=empty.get(name))
            for name in ("potential", *self.chains.sampler.statistics)
        }
        return {"x": state.x.new_empty((len(state.x), 0, *state.x.shape[1:])), **columns}

    def _flush(self) -> None:
        """Put pending draws where they belong."""
        draws = self._draws
        if not draws:
            return
        columns: dict[str, list[Any]] = {
            "x": [draw.x for draw in draws],
            "potential": [draw.energy for draw in draws],
            **{name: [d.statistics[name] for d in draws] for name in draws[0].statistics},
        }
        x = draws[0].x
        stacked = {
            name: torch.stack(values, 1)
            if isinstance(values[0], Tensor)
            else torch.tensor(values, device=x.device).expand(len(x), -1)
            for name, values in columns.items()
        }
        self._write(draws[0].index, stacked)
        self._draws = []


def _moments(draws: Tensor) -> Moments:
    """Moments of draws, ``(chain, draw, *event)``."""
    mean = draws.mean(1)
    return Moments(draws.shape[1], mean, (draws - mean[:, None]).square().sum(1))


def _floating(state: State) -> torch.dtype:
    """The dtype of means: that of states, of energies where states are integers."""
    return state.x.dtype if state.x.is_floating_point() else state.energy.dtype


def _as_dtype(moments: Moments, dtype: torch.dtype) -> Moments:
    return Moments(moments.count, moments.mean.to(dtype), moments.sum_of_squares.to(dtype))
