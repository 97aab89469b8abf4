"""Chains that advance by launching CUDA graphs."""

from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_samplers.acceptance import check_resolution
from ebm_samplers.adaptation import StepSizeAdaptation
from ebm_samplers.captured.catalogue import catalogue_of, kind_of
from ebm_samplers.captured.graph import CannotCapture
from ebm_samplers.captured.recording import LONGEST
from ebm_samplers.chains import Chains, Leg, Plan, Position, TorchChains, require_finite
from ebm_samplers.states import State, Statistics

if TYPE_CHECKING:
    from ebm_samplers.sampler import MarkovSampler

BETWEEN_LOOKS = 256
"""Transitions after which energies are looked at, since a look waits for the device."""


def captured_on(device: torch.device) -> bool:
    """Whether chains on a device can be captured."""
    return device.type == "cuda"


def require_uncaptured(device: torch.device) -> None:
    """Refuse to sample while the caller captures a CUDA graph.

    Raises:
        ConfigurationError: If it does.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ConfigurationError(
            "a sampler was called while a CUDA graph is captured",
            "calls outside: samplers look at their start states, and capture their own steps",
            "capture what comes before and after the sampler",
        )


class CapturedChains(Chains):
    """Chains on a CUDA device whose transitions are captured, see `Recording`.

    Args:
        sampler: Whose ``start`` and ``transition`` are captured.
        position: Where to begin.
        check_start: Refuse start states that are not finite.
        total: How many transitions there will be.

    Raises:
        CannotCapture: If they cannot be captured, or it does not pay.
        NumericalError: As `TorchChains`.
    """

    block = 64

    def __init__(
        self, sampler: "MarkovSampler", position: Position, check_start: bool, total: int
    ) -> None:
        super().__init__(sampler, position)
        self._catalogue, self._kind = catalogue_of(sampler), kind_of(sampler, position)
        self._catalogue.check(self._kind, total)
        self._copy: State | None = None
        self._unlooked = 0
        self._rest: TorchChains | None = None
        (values,) = self.settings(1)
        self.step_size = values["step_size"]
        try:
            self._recording, finite = self._catalogue.begun(self._kind, sampler, position, values)
        except CannotCapture as reason:
            self._catalogue.refuse(self._kind, str(reason))
            raise
        self._catalogue.in_use[self._kind] = self
        if check_start and not finite:
            require_finite(self.state)
        self.check()

    @property
    def state(self) -> State:
        """The present state, in tensors of its own."""
        if self._rest is not None:
            return self._rest.state
        if self._copy is None:
            self._copy = self._recording.copied_state()
        return self._copy

    @property
    def x(self) -> Tensor:
        """The present positions, ``(chain, *event)``."""
        if self._rest is None and self._copy is None:
            return self._recording.copied(self._recording.state.x)
        return self.state.x

    def close(self) -> None:
        """Leave the graphs to other chains."""
        if self._catalogue.in_use.get(self._kind) is self:
            del self._catalogue.in_use[self._kind]

    def legs(
        self,
        n: int,
        adaptation: StepSizeAdaptation | None = None,
        age: int = 0,
        plan: Plan | None = None,
    ) -> Iterator[Leg]:
        """Make ``n`` transitions, up to 32 in a leg; one where the step adapts.

        Energies are looked at after some hundred transitions. Where a step turns out not to be one
        that can be captured, the rest is made step by step.
        """
        adapts = adaptation is not None and self.adapted_step_size is not None
        done = 0
        while done < n and self._rest is None:
            if self.enter():
                self._begin_again()
            most = 1 if adapts else _leg(plan, done, int(min(n - done, LONGEST, self.steady())))
            values, branch = self._ahead(most, adapts)
            try:
                statistics = self._launched(values, branch, plan is not None)
            except CannotCapture as reason:
                self._catalogue.refuse(self._kind, str(reason))
                position = self.position(self.moment())
                self._rest = TorchChains(self.sampler, position, check_start=False)
                break
            done += len(values)
            if adaptation is not None and self.adapted_step_size is not None:
                acceptance = torch.as_tensor(statistics["acceptance_rate"])
                self.adapted_step_size = adaptation.moved(self.adapted_step_size, acceptance, age)
                age += 1
            yield Leg(len(values), statistics)
            if self._unlooked >= BETWEEN_LOOKS:
                self.check()
        self.check()
        if self._rest is not None:
            for leg in self._rest.legs(n - done, adaptation, age, plan):
                for name in ("counter", "schedule_step", "step_size", "adapted_step_size"):
                    setattr(self, name, getattr(self._rest, name))
                yield leg

    def check(self) -> None:
        """Refuse energies met since the last check that are too large for accept tests."""
        if self._rest is not None:
            self._rest.check()
        self._unlooked = 0
        largest = self._recording.restart_largest()
        if largest is not None:
            beta = 1.0 if self.beta is None else self.beta
            check_resolution(beta * largest)

    def _begin_again(self) -> None:
        """The same states, under another energy."""
        self.check()
        position = self.position(self.moment())
        (values,) = self.settings(1)
        self._recording, _ = self._catalogue.begun(self._kind, self.sampler, position, values)
        self._copy = None

    def _ahead(self, most: int, adapts: bool) -> tuple[list[dict[str, Any]], Hashable]:
        """The settings of the next transitions that can be one graph, and what they share."""
        branches = (self._recording.branch(self.sampler, self.counter + i) for i in range(most))
        first = next(branches)
        if not all(branch == first for branch in branches):
            most = 1
        values: list[dict[str, Any]] = []
        try:
            for value in self.settings(most, adapts):
                values.append(value)  # noqa: PERF402 - a schedule may fail at a later step
        except Exception:
            if not values:
                raise
        return (values if len(values) == most else values[:1]), first

    def _launched(
        self, values: list[dict[str, Any]], branch: Hashable, reports: bool
    ) -> Statistics:
        """Make transitions; their statistics, in tensors of their own."""
        statistics = self._recording.advance(self.sampler, self.counter, values, branch, reports)
        n = len(values)
        self._copy = None
        self.step_size = values[-1]["step_size"]
        self.counter += n
        self.schedule_step += n
        self._unlooked += n
        return {
            name: self._recording.copied(value) if isinstance(value, Tensor) else value
            for name, value in statistics.items()
        }


def _leg(plan: Plan | None, done: int, most: int) -> int:
    """How many transitions to make at most, so that a leg has draws only if it ends with one."""
    if plan is None:
        return most
    single = plan.keep != "final"  # each draw is wanted
    between = plan.thin * (1 if single else plan.stop or max(1, most // plan.thin))
    to_stop = between - done % between
    if to_stop <= most:
        return to_stop
    to_draw = plan.thin - done % plan.thin
    if to_draw > most:
        return most
    return to_draw + (most - to_draw) // plan.thin * plan.thin
