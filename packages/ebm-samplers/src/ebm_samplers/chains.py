"""Chains under way: the loop that every sampler shares.

`Chains` owns what changes while a sampler runs: states, position in the random stream and in
schedules, the adapting step. It goes in legs, of as many transitions as the engine makes in one go;
who asks for the legs decides what to keep of them. `TorchChains` calls the sampler's ``transition``
again and again; `ebm_samplers.fused.chains.FusedChains` runs the sampler's kernel.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebm_core import (
    ConfigurationError,
    EBMError,
    EnergyFunction,
    NumericalError,
    ShapeError,
)
from ebm_core.energy import misfit
from ebm_samplers.acceptance import check_resolution
from ebm_samplers.adaptation import StepSizeAdaptation
from ebm_samplers.noise import Noise
from ebm_samplers.states import Context, State, Statistics, per_chain

if TYPE_CHECKING:
    from ebm_samplers.fused.repeat import Repeat
    from ebm_samplers.sampler import MarkovSampler


@dataclass(frozen=True)
class Position:
    """Where a run stands between two transitions: what another run needs to go on from there.

    Attributes:
        x: States, ``(chain, *event)``.
        key: The 64-bit seed.
        counter: The next step's number in the random streams.
        first_chain: Number of the first chain.
        schedule_step: The next step's number in schedules.
        beta: Inverse temperatures.
        step_size: Where the adapting step stands; None without adaptation.
        burn_in: Transitions of burn-in that are still to be made.
        carried: Further fields of the state that cannot be computed from ``x``.
    """

    x: Tensor
    key: int
    counter: int = 0
    first_chain: int = 0
    schedule_step: int = 0
    beta: float | Tensor | None = None
    step_size: float | None = None
    burn_in: int = 0
    carried: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """`Chains` between two transitions, by reference: nothing is modified when they go on."""

    state: State
    counter: int
    schedule_step: int
    adapted_step_size: Tensor | None
    step_size: float | Tensor


@dataclass(frozen=True)
class Leg:
    """Transitions made in one go.

    Attributes:
        n: Their number.
        statistics: Of all of them: sums where the mean is wanted, and of ``n_steps``.
        draws: The draws among the states, ``(chain, draw, *event)``, where they were asked for and
            are not just the last state.
        columns: The columns of the whole run's result, by name, ``(chain, draw, ...)``, where the
            engine has made them, or those of this leg, see `Plan`. Without ``statistics``, the leg
            has been written into them.
    """

    n: int
    statistics: Statistics
    draws: Tensor | None = None
    columns: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """What of some transitions will be looked at: engines cut their legs accordingly.

    Attributes:
        thin: Every thin-th state is a draw.
        keep: What of the draws: ``"final"``, ``"trajectory"`` or ``"moments"``, as in ``sample``.
        n_draws: Draws in all.
        stop: A leg ends at every stop-th draw, at least; None for none.
        passed_on: Draws are not gathered: `Leg.columns` are those of the leg alone.
    """

    thin: int = 1
    keep: str = "final"
    n_draws: int = 0
    stop: int | None = None
    passed_on: bool = False


class Chains(ABC):
    """Chains of one sampler, from a position on.

    Args:
        sampler: Whose chains they are.
        position: Where to begin.

    Attributes:
        adapted_step_size: Where the step size adapts, the present one: a scalar on the chains'
            device, where it can move without a synchronisation.
        step_size: h of the last transition.
        block: So many single draws are held before they are written into columns.
    """

    step_size: float | Tensor
    block: int

    def __init__(self, sampler: "MarkovSampler", position: Position) -> None:
        self.sampler = sampler
        self.key, self.first_chain = position.key, position.first_chain
        self.counter, self.schedule_step = position.counter, position.schedule_step
        self.beta = position.beta
        self.adapted_step_size: Tensor | None = None
        if position.step_size is not None:
            step_size, device = position.step_size, position.x.device
            self.adapted_step_size = torch.tensor(step_size, dtype=torch.float64, device=device)
        self._like = position.x.new_empty(0)
        self._entered: Hashable = None
        self.enter()

    @property
    @abstractmethod
    def state(self) -> State:
        """The present state; not modified when the chains go on."""

    @property
    def x(self) -> Tensor:
        """The present positions, ``(chain, *event)``."""
        return self.state.x

    @abstractmethod
    def legs(
        self,
        n: int,
        adaptation: StepSizeAdaptation | None = None,
        age: int = 0,
        plan: Plan | None = None,
    ) -> Iterator[Leg]:
        """Make ``n`` transitions; yields after each leg.

        Args:
            n: Number of transitions.
            adaptation: Rule by which the step moves; None to hold it.
            age: For how many transitions the rule has been at work.
            plan: What will be looked at; None for nothing but legs.

        Raises:
            NumericalError: If energies have become too large for accept tests.
        """

    def advance(
        self, n: int, adaptation: StepSizeAdaptation | None = None, age: int = 0
    ) -> Tensor | float | None:
        """Make ``n`` transitions.

        Args:
            n: Number of transitions.
            adaptation: As in `legs`.
            age: Likewise.

        Returns:
            The mean acceptance rate, a number or scalar; None where there is no accept test.
        """
        total, count = None, 0
        for leg in self.legs(n, adaptation, age):
            rate = leg.statistics.get("acceptance_rate")
            if isinstance(rate, Tensor):
                mean = rate.mean().double()
                total, count = mean if total is None else total + mean, count + leg.n
        return None if total is None else total / count

    def enter(self) -> bool:
        """Let the sampler make its energy what it is at the next step; whether it is a new one."""
        before = self._entered
        self._entered = self.sampler.enter(self.schedule_step, self._like)
        return self._entered != before

    def steady(self) -> float:
        """So many steps at least until a staircase among the settings changes."""
        ends = (at.steady_until(self.schedule_step) for at in self.sampler.settings.values())
        steps = (end - self.schedule_step for end in ends)
        return min((n for n in steps if n), default=math.inf)

    @abstractmethod
    def check(self) -> None:
        """Refuse energies met since the last check that are too large for accept tests."""

    def repeat(self) -> "Repeat | None":
        """What makes the call again that `advance` was for, with less work; None if nothing can."""
        return None

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what other chains may want."""

    def settings(self, n: int, adapts: bool = False) -> Iterator[dict[str, Any]]:
        """The values of all settings at each of the next ``n`` steps, at the time of that step.

        A schedule that fails has then lost none of the steps before. An adapted step size is a
        number, for which the host waits; with ``adapts`` it is the scalar tensor of the first step.
        """
        held: dict[str, Any] = {}
        if self.adapted_step_size is not None:
            held["step_size"] = self.adapted_step_size if adapts else self.adapted_step_size.item()
        first = self.schedule_step
        for step in range(first, first + n):
            yield {name: at.at(step) for name, at in self.sampler.settings.items()} | held

    def moment(self) -> Moment:
        """The present moment."""
        return Moment(
            self.state,
            self.counter,
            self.schedule_step,
            self.adapted_step_size,
            self.step_size,
        )

    def position(self, moment: Moment, burn_in: int = 0) -> Position:
        """The position at a moment, in tensors of its own."""
        return Position(
            x=moment.state.x.clone(),
            key=self.key,
            counter=moment.counter,
            first_chain=self.first_chain,
            schedule_step=moment.schedule_step,
            beta=self.beta.clone() if isinstance(self.beta, Tensor) else self.beta,
            step_size=None if moment.adapted_step_size is None else moment.adapted_step_size.item(),
            burn_in=burn_in,
            carried={name: getattr(moment.state, name).clone() for name in moment.state.carried},
        )


class TorchChains(Chains):
    """Chains that go step by step, in torch, on any device.

    Args:
        sampler: Whose ``start`` and ``transition`` are called.
        position: Where to begin.
        check_start: Refuse start states that are not finite.

    Raises:
        NumericalError: If start states, their energies or gradients are not finite, or too large
            for accept tests.
    """

    def __init__(
        self, sampler: "MarkovSampler", position: Position, check_start: bool = True
    ) -> None:
        super().__init__(sampler, position)
        self.noise = Noise(position.key, position.first_chain, position.x)
        self.block = self.noise.block
        self.context = Context(self.noise, position.beta)
        self._energies: list[Tensor] = []
        self.noise.open(self.counter, 1)
        self._move(next(self.settings(1)))
        try:
            sampler.prepare(position.x, self.context)
            state = sampler.start(position.x, self.context)
        except (RuntimeError, IndexError, ShapeError) as error:
            if reason := _reason(sampler.energy, position.x):
                raise reason from error
            raise
        self._state = dataclasses.replace(state, **position.carried)
        if check_start:
            require_finite(self._state)
        self._note_energy()
        self.check()

    @property
    def state(self) -> State:
        """The present state; not modified when the chains go on."""
        return self._state

    def legs(
        self,
        n: int,
        adaptation: StepSizeAdaptation | None = None,
        age: int = 0,
        plan: Plan | None = None,
    ) -> Iterator[Leg]:
        """Make ``n`` transitions, each a leg.

        Energies are looked at once for each block of steps, since a look stops a GPU: up to a block
        of doubtful draws may precede the error.
        """
        end = self.counter + n
        while self.counter < end:
            block = min(self.noise.block, end - self.counter)
            self.noise.open(self.counter, block)
            for values in self.settings(block):
                if self.adapted_step_size is not None and adaptation is not None:
                    values["step_size"] = self.adapted_step_size
                self._move(values)
                if self.enter():
                    state = self.sampler.start(self._state.x, self.context)
                    kept = {name: getattr(self._state, name) for name in state.carried}
                    self._state = dataclasses.replace(state, **kept)
                self._state, statistics = self.sampler.transition(self._state, self.context)
                self.counter += 1
                self.schedule_step += 1
                self._note_energy()
                if self.adapted_step_size is not None and adaptation is not None:
                    if "acceptance_rate" not in statistics:
                        raise ConfigurationError(
                            f"a {type(self.sampler).__name__} with target_acceptance reports no "
                            "acceptance_rate",
                            "a sampler with an accept step",
                            "leave out target_acceptance, or report acceptance_rate",
                        )
                    acceptance = torch.as_tensor(statistics["acceptance_rate"])
                    self.adapted_step_size = adaptation.moved(
                        self.adapted_step_size, acceptance, age
                    )
                    age += 1
                yield Leg(1, statistics)
            self.check()

    def check(self) -> None:
        """Refuse energies met since the last check that are too large for accept tests."""
        if self._energies:
            largest = torch.stack(self._energies).abs().amax(0)
            self._energies.clear()
            check_resolution(self.context.temper(largest))

    def _move(self, values: dict[str, Any]) -> None:
        self.step_size = values.pop("step_size")
        self.context.move(self.counter, self.step_size, values)

    def _note_energy(self) -> None:
        if self.sampler.adjusted:
            self._energies.append(self._state.energy)


def _reason(energy: EnergyFunction, x: Tensor) -> EBMError | None:
    """What is wrong with states that an energy cannot take, if it takes others much like them."""

    def takes(states: Tensor) -> bool:
        try:
            return energy(states).shape == states.shape[:1]
        except Exception:  # of any kind: the error to report is the one that led here
            return False

    if takes(x):
        return None
    if takes(x[None]):
        return ShapeError(
            f"the energy cannot take x of shape {tuple(x.shape)}, but x[None]",
            "(chain, *event)",
            "add the chain axis with x[None]",
        )
    return misfit(energy, x)


def require_finite(state: State) -> None:
    """Refuse start states that are not finite, or whose energies or gradients are not."""
    total = state.energy + per_chain(state.x) + per_chain(state.gradient)
    if (total - total == 0).all():  # fast, and true of nothing but finite numbers
        return
    finite = state.energy.isfinite()
    for values in (state.x, state.gradient):
        finite = (
            finite & values.isfinite().flatten(1).all(1)
            if values.ndim > 1
            else finite & values.isfinite()
        )
    failed = len(finite) - int(finite.sum())
    if failed:
        raise NumericalError(
            f"{failed} of {len(finite)} start states, their energies or gradients are not finite",
            "finite states of finite energy",
            "start inside the support, and check x_init for NaN",
        )
