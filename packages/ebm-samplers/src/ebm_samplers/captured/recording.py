"""What graphs of one sampler work in, and the graphs: made once, used by many calls."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebm_samplers.captured import graph as graphs
from ebm_samplers.captured.noise import PlacedContext, PlacedNoise
from ebm_samplers.states import State, Statistics, combined, per_chain

if TYPE_CHECKING:
    from ebm_samplers.chains import Position
    from ebm_samplers.sampler import MarkovSampler

MOST_GRAPHS = 64
"""Graphs of one recording: HMC has one for each length of a trajectory."""

LONGEST = 32
"""Transitions of one graph, at most."""

TOLERANCE = {torch.float64: 1e-7}
"""By which energies may differ from those of ``forward``, in units of 1 + |E|."""

Settings = Mapping[str, float | Tensor]
"""The settings of a step, by name; tensors where they adapt."""


class CannotCapture(Exception):  # noqa: N818 - a reason
    """Steps cannot run as CUDA graphs; says why."""


class Recording:
    """Memory on a device in which graphs advance chains of one sampler, and these graphs.

    It does not hold the sampler, which every call brings along: another one like it will do.

    Args:
        sampler: Whose steps are captured.
        position: Chains like those that will be advanced.

    Attributes:
        state: The chains.
        largest: The largest energies met, by magnitude, since they were last looked at,
            ``(chain,)``; None for samplers without an accept test.

    Raises:
        CannotCapture: If the steps cannot be captured.
    """

    def __init__(self, sampler: "MarkovSampler", position: "Position") -> None:
        x = position.x
        self.on = x.device
        self.order = graphs.Order(self.on)
        self._pool = graphs.memory_pool()
        self._graphs: OrderedDict[Hashable, graphs.Graph] = OrderedDict()
        self._names = tuple(sampler.settings)
        self._place = torch.zeros(3, dtype=torch.int64, device=self.on)
        self._table = torch.zeros((LONGEST, len(self._names)), dtype=torch.float64, device=self.on)
        self._tabled: tuple[tuple[float, ...], ...] | None = None
        self._frozen: tuple[float, ...] | None = None
        beta = position.beta
        self._beta = beta.clone() if isinstance(beta, Tensor) else beta
        x = x.clone(memory_format=torch.contiguous_format)
        self.noise = PlacedNoise(self._place, x)
        self._context = PlacedContext(self.noise, self._beta)
        self.state = State(x, x, x)  # until it is known what a state of this sampler has
        self.largest: Tensor | None = None
        self._expected = torch.zeros(len(x), dtype=x.dtype, device=self.on)
        self._at: tuple[int, int, int] | None = None
        self._load(position)
        self._inputs, row = self._rehearsed(sampler)
        step = position.counter  # better to fail now than in the middle of a run
        for frozen in (row, None):
            body = self._steps(sampler, step, 1, frozen, True)
            self._graph((1, frozen, self.branch(sampler, step), True), body)
        self._frozen = row

    def begin(
        self,
        sampler: "MarkovSampler",
        position: "Position",
        values: Settings,
        energies: Tensor,
    ) -> tuple[bool, bool]:
        """Put chains at a position; waits for the device.

        Args:
            sampler: As it was when the recording was made.
            position: Where to.
            values: The settings there.
            energies: What ``forward`` gives there, to compare with, ``(chain,)``.

        Returns:
            Whether energies agree, and whether all that is there is finite.
        """
        self.order.begin()
        self._load(position)
        self._fill_table([values])
        self._expected.copy_(energies)
        graph = self._graph("start", lambda: self._start(sampler, position.counter))
        graph.launch()
        for name, carried in position.carried.items():
            getattr(self.state, name).copy_(carried)
        self.order.end()
        agree, finite = graph.result.tolist()
        return agree, finite

    def branch(self, sampler: "MarkovSampler", step: int) -> Hashable:
        """What of a step is decided on the host."""
        self.noise.open(step, 1)
        self._context.move(step, 0.0, {})
        return sampler.branch(self._context)

    def advance(
        self,
        sampler: "MarkovSampler",
        step: int,
        values: Sequence[Settings],
        branch: Hashable,
        reports: bool,
    ) -> Statistics:
        """Make transitions, one for each entry of ``values``.

        Args:
            sampler: As it was when the recording was made.
            step: Number of the first in the random streams.
            values: The settings of each, by name.
            branch: What of each is decided on the host.
            reports: Whether all statistics are wanted, or the acceptance rate alone.

        Returns:
            Combined statistics of all of them, in the graph's memory.
        """
        n = len(values)
        frozen = self._frozen_settings(values)
        key = (n, frozen, branch, reports)
        body = self._steps(sampler, step, n, frozen, reports)
        graph = self._graph(key, body)
        if frozen is None:
            self._fill_table(values)
        graph.launch()
        self.order.end()
        assert self._at is not None
        self._at = (*self._at[:2], self._at[2] + n)
        statistics: Statistics = graph.result
        return statistics

    def restart_largest(self) -> Tensor | None:
        """The largest energies met, for a look at them; begins anew with the present ones."""
        largest = None if self.largest is None else self.largest.clone()
        self._restart_largest()
        return largest

    def _load(self, position: "Position") -> None:
        self.state.x.copy_(position.x)
        at = position.key, position.first_chain, position.counter
        if at != self._at:
            signed = [number - 2**64 if number >= 2**63 else number for number in at]
            self._place.copy_(torch.tensor(signed))
            self._at = at
        self.noise.key = position.key
        if isinstance(self._beta, Tensor) and isinstance(position.beta, Tensor):
            self._beta.copy_(position.beta)

    def _rehearsed(self, sampler: "MarkovSampler") -> tuple[list[Tensor], tuple[float, ...]]:
        """Do everything once without capturing it.

        Returns:
            What it reads, to be kept as long as graphs are; and the settings that it had.
        """
        with graphs.aside(self.on), graphs.Inputs() as inputs:
            row = tuple(
                1.0 if callable(setting.value) else setting.value
                for setting in sampler.settings.values()
            )
            self._fill_table([dict(zip(self._names, row, strict=True))])
            self.noise.open(0, 1)
            self._move(0, self._table[0].unbind())
            state = sampler.start(self.state.x, self._context)
            parts = {f.name: getattr(state, f.name).clone() for f in dataclasses.fields(state)}
            self.state = dataclasses.replace(state, **parts | {"x": self.state.x})
            if sampler.adjusted:
                self.largest = self.state.energy.abs()
            self._start(sampler, 0)
            for frozen in (row, None):
                self._steps(sampler, 0, 1, frozen, True)()
        self._at = None
        return list(inputs.tensors.values()), row

    def _graph(self, key: Hashable, body: Callable[[], Any]) -> graphs.Graph:
        graph = self._graphs.get(key)
        if graph is None:
            if len(self._graphs) >= MOST_GRAPHS:
                self._graphs.popitem(last=False)
            try:
                graph = graphs.Graph(body, self.on, self._pool)
            except Exception as error:
                reason = next(iter(str(error).splitlines()), "")
                raise CannotCapture(f"{type(error).__name__}: {reason}") from error
            self._graphs[key] = graph
        self._graphs.move_to_end(key)
        return graph

    def _start(self, sampler: "MarkovSampler", step: int) -> Tensor:
        """The work of `begin`."""
        self.noise.open(step, 1)
        self._move(step, self._table[0].unbind())
        self._store(sampler.start(self.state.x, self._context))
        self._restart_largest()
        have, want = self.state.energy, self._expected
        close = (have - want).abs() <= TOLERANCE.get(have.dtype, 1e-4) * (1 + want.abs())
        agree = close | ~(have.isfinite() | want.isfinite())
        total = have + per_chain(self.state.x) + per_chain(self.state.gradient)
        return torch.stack([agree.all(), (total - total == 0).all()])

    def _steps(
        self,
        sampler: "MarkovSampler",
        first: int,
        n: int,
        frozen: tuple[float, ...] | None,
        reports: bool,
    ) -> Callable[[], Statistics]:
        """The work of ``n`` transitions."""

        def body() -> Statistics:
            total: Statistics = {}
            state = self.state
            self.noise.open(first, n)
            self._context.reports = reports
            for i in range(n):
                self._move(first + i, self._table[i].unbind() if frozen is None else frozen)
                state, statistics = sampler.transition(state, self._context)
                if self.largest is not None:
                    torch.maximum(self.largest, state.energy.abs(), out=self.largest)
                if not reports:
                    statistics = {k: v for k, v in statistics.items() if k == "acceptance_rate"}
                total = combined(total, statistics)
            self._store(state)
            self._place[2].add_(n)
            return total

        return body

    def _move(self, step: int, numbers: Sequence[Any]) -> None:
        settings = dict(zip(self._names, numbers, strict=True))
        self._context.move(step, settings.pop("step_size"), settings)

    def _store(self, state: State) -> None:
        for field in dataclasses.fields(state):
            have, new = getattr(self.state, field.name), getattr(state, field.name)
            if have is not new:
                have.copy_(new)

    def _restart_largest(self) -> None:
        if self.largest is not None:
            torch.abs(self.state.energy, out=self.largest)

    def _frozen_settings(self, values: Sequence[Settings]) -> tuple[float, ...] | None:
        """The numbers to freeze into a graph: where they are always the same ones."""
        if any(isinstance(number, Tensor) for number in values[0].values()):
            return None
        rows = {tuple(row[name] for name in self._names) for row in values}
        return self._frozen if rows == {self._frozen} else None

    def _fill_table(self, values: Sequence[Settings]) -> None:
        """Write settings where graphs read them."""
        moving = {name: v for name, v in values[0].items() if isinstance(v, Tensor)}
        rows = tuple(
            tuple(0.0 if name in moving else float(row[name]) for name in self._names)
            for row in values
        )
        if moving or rows != self._tabled:
            self._table[: len(rows)].copy_(torch.tensor(rows, dtype=torch.float64))
            self._tabled = rows
        for name, value in moving.items():
            self._table[0, self._names.index(name)].copy_(value)
