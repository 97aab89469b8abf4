"""What graphs of one sampler work in, and the graphs: made once, used by many calls."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebm_samplers.captured import graph as graphs
from ebm_samplers.captured.graph import CannotCapture
from ebm_samplers.captured.noise import PlacedContext, PlacedNoise
from ebm_samplers.noise import check_counter
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
        x, beta = position.x, position.beta
        self._order = graphs.Order(x.device)
        self._stream, self._pool = graphs.capture_stream(x.device), graphs.memory_pool()
        self._graphs: dict[Hashable, graphs.Graph] = {}
        self._names = tuple(sampler.settings)
        here: dict[str, Any] = {"device": x.device}
        self._place = torch.zeros(3, dtype=torch.int64, **here)
        self._table = torch.zeros((LONGEST, len(self._names)), dtype=torch.float64, **here)
        # what was last written there; None if that is uncertain
        self._placed: tuple[int, int, int] | None = None
        self._tabled: tuple[tuple[float, ...], ...] | None = None
        self._beta = None if beta is None else torch.as_tensor(beta, dtype=x.dtype, **here).clone()
        x = x.clone(memory_format=torch.contiguous_format)
        self.noise = PlacedNoise(self._place, x)
        self._context = PlacedContext(self.noise, self._beta)
        self.state = State(x, x, x)  # until it is known what a state of this sampler has
        self.largest: Tensor | None = None
        self._expected_energy = torch.zeros(len(x), dtype=x.dtype, **here)
        self._expected_gradient: Tensor | None = None
        self._load(position)
        self._frozen = tuple(
            1.0 if callable(setting.value) else setting.value
            for setting in sampler.settings.values()
        )
        self._inputs = self._rehearsed(sampler, position.counter)

    def begin(
        self,
        sampler: "MarkovSampler",
        position: "Position",
        values: Settings,
        expected: tuple[Tensor, Tensor | None],
    ) -> tuple[bool, bool]:
        """Put chains at a position; waits for the device.

        Args:
            sampler: As it was when the recording was made.
            position: Where to.
            values: The settings there.
            expected: Energies to compare with, ``(chain,)``, and gradients, ``(chain, *event)``, if
                these are to be compared, too.

        Returns:
            Whether they agree, and whether all that is there is finite.
        """
        self._order.begin()
        self._load(position)
        self._fill_table([values])
        energy, gradient = expected
        self._expected_energy.copy_(energy)
        if gradient is not None and self._expected_gradient is None:
            self._expected_gradient = gradient.clone()
        elif gradient is not None and self._expected_gradient is not None:
            self._expected_gradient.copy_(gradient)
        graph = self._graph("start", lambda: self._start(sampler, position.counter))
        graph.launch()
        for name, carried in position.carried.items():
            getattr(self.state, name).copy_(carried)
        self._order.end()
        agree, finite = graph.result.tolist()
        return agree, finite

    def branch(self, sampler: "MarkovSampler", step: int) -> Hashable:
        """What of a step is decided on the host."""
        self.noise.open(step, 1)
        self._context.move(step, 0.0, {})
        self.noise.telling = True
        try:
            return sampler.branch(self._context)
        finally:
            self.noise.telling = False

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
        n, frozen = len(values), self._is_frozen(values)
        body = self._steps(sampler, step, n, frozen, reports)
        graph = self._graph((n, frozen, branch, reports), body)
        if not frozen:
            self._fill_table(values)
        assert self._placed is not None
        after = (*self._placed[:2], self._placed[2] + n)
        self._placed = None  # the host may be interrupted right after the launch
        graph.launch()
        self._placed = after
        self._order.end()
        statistics: Statistics = graph.result
        return statistics

    def copied(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in the graphs' memory, made before anything else is launched."""
        copy = tensor.clone()
        self._order.end()
        return copy

    def copied_state(self) -> State:
        """The chains, in tensors of their own."""
        parts = {f.name: self.copied(getattr(self.state, f.name)) for f in fields(self.state)}
        return replace(self.state, **parts)

    def restart_largest(self) -> Tensor | None:
        """The largest energies met, for a look at them; begins anew with the present ones."""
        if self.largest is None:
            return None
        largest = self.largest.clone()
        self._restart_largest()
        self._order.end()
        return largest

    def _load(self, position: "Position") -> None:
        """Write position and place."""
        size, x = self.noise.size, position.x
        place = position.key, position.first_chain, position.counter
        check_counter(place[0], 0, place[1], len(x), place[2] * size, size)
        self.state.x.copy_(x)
        if place != self._placed:
            self._placed = None
            signed = [number - 2**64 if number >= 2**63 else number for number in place]
            self._place.copy_(torch.tensor(signed))
            self._placed = place
        self.noise.key = position.key
        if self._beta is not None and position.beta is not None:
            if isinstance(position.beta, Tensor):
                self._beta.copy_(position.beta)
            else:
                self._beta.fill_(position.beta)

    def _rehearsed(self, sampler: "MarkovSampler", step: int) -> list[Tensor]:
        """Do everything twice without capturing it: a capture that fails does harm.

        Libraries make handles and room at first use, and compilers compile. The second time, what
        is read is noted, and what waits for the device is refused.

        Returns:
            What is read: to be kept as long as graphs are.
        """
        self._fill_table([dict(zip(self._names, self._frozen, strict=True))])
        self.branch(sampler, step)
        with graphs.rehearsing(self._stream, strictly=False):
            sampler.prepare(self.state.x, self._context)
            self._prepared = dict(self._context.prepared)
            self.noise.open(step, 1)
            self._move(step, self._table[0].unbind())
            state = sampler.start(self.state.x, self._context)
        parts = {field.name: getattr(state, field.name).clone() for field in fields(state)}
        self.state = replace(state, **parts | {"x": self.state.x})
        self.largest = self.state.energy.abs() if sampler.adjusted else None
        inputs = graphs.Inputs()
        for strictly in (False, True):
            with (
                graphs.rehearsing(self._stream, strictly),
                inputs if strictly else nullcontext(),
            ):
                self._start(sampler, step)
                for frozen in (True, False):
                    self._steps(sampler, step, 1, frozen, True)()
        self._placed = None
        return list(inputs.tensors.values())

    def _graph(self, key: Hashable, body: Callable[[], Any]) -> graphs.Graph:
        if key not in self._graphs:
            if len(self._graphs) >= MOST_GRAPHS:
                raise CannotCapture(f"its steps are of more than {MOST_GRAPHS} kinds")
            self._graphs[key] = graphs.Graph(body, self._stream, self._pool)
        return self._graphs[key]

    def _start(self, sampler: "MarkovSampler", step: int) -> Tensor:
        """The work of `begin`."""
        self.noise.open(step, 1)
        self._context.prepared = dict(self._prepared)
        self._move(step, self._table[0].unbind())
        self._store(sampler.start(self.state.x, self._context))
        self._restart_largest()
        agree = _agree(self.state.energy, self._expected_energy).all()
        if self._expected_gradient is not None:
            agree = agree & _agree(self.state.gradient, self._expected_gradient).all()
        total = self.state.energy + per_chain(self.state.x) + per_chain(self.state.gradient)
        return torch.stack([agree, (total - total == 0).all()])

    def _steps(
        self,
        sampler: "MarkovSampler",
        first: int,
        n: int,
        frozen: bool,
        reports: bool,
    ) -> Callable[[], Statistics]:
        """The work of ``n`` transitions, with settings that are frozen or in the table."""

        def body() -> Statistics:
            total: Statistics = {}
            state = self.state
            self.noise.open(first, n)
            self._context.reports = reports
            for i in range(n):
                self._move(first + i, self._frozen if frozen else self._table[i].unbind())
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
        for field in fields(state):
            have, new = getattr(self.state, field.name), getattr(state, field.name)
            if have is not new:
                have.copy_(new)

    def _restart_largest(self) -> None:
        if self.largest is not None:
            torch.abs(self.state.energy, out=self.largest)

    def _is_frozen(self, values: Sequence[Settings]) -> bool:
        """Whether settings are the numbers that are frozen into graphs."""
        if any(isinstance(number, Tensor) for number in values[0].values()):
            return False
        return {tuple(row[name] for name in self._names) for row in values} == {self._frozen}

    def _fill_table(self, values: Sequence[Settings]) -> None:
        """Write settings where graphs read them."""
        moving = {name: v for name, v in values[0].items() if isinstance(v, Tensor)}
        rows = tuple(
            tuple(0.0 if name in moving else float(row[name]) for name in self._names)
            for row in values
        )
        if rows != self._tabled:
            self._tabled = None
            self._table[: len(rows)].copy_(torch.tensor(rows, dtype=torch.float64))
            self._tabled = rows
        for name, value in moving.items():
            self._table[0, self._names.index(name)].copy_(value)


def _agree(have: Tensor, want: Tensor) -> Tensor:
    """Where numbers agree; of what is not finite, only that it is not."""
    close = (have - want).abs() <= TOLERANCE.get(have.dtype, 1e-4) * (1 + want.abs())
    return close | ~(have.isfinite() | want.isfinite())
