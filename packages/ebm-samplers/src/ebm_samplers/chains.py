"""Chains under way: the loop that every sampler shares.

`Chains` owns what changes while a sampler runs (states, position in the random stream and in
schedules, the adapting step) and calls the sampler's ``transition`` again and again. Who asks for
the steps decides what to keep of them.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebm_core import EnergyFunction, NumericalError, ShapeError
from ebm_samplers.acceptance import check_resolution
from ebm_samplers.adaptation import StepSizeAdaptation
from ebm_samplers.noise import Noise
from ebm_samplers.states import Context, State, Statistics, per_chain

if TYPE_CHECKING:
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


class Chains:
    """Chains of one sampler, from a position on.

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
        self.sampler = sampler
        self.key, self.first_chain = position.key, position.first_chain
        self.counter, self.schedule_step = position.counter, position.schedule_step
        self.beta = position.beta
        self.noise = Noise(position.key, position.first_chain, position.x)
        self.context = Context(self.noise, position.beta)
        # A scalar on the chains' device, where it can move without a synchronisation.
        self.adapted_step_size: Tensor | None = None
        if position.step_size is not None:
            step_size, device = position.step_size, position.x.device
            self.adapted_step_size = torch.tensor(step_size, dtype=torch.float64, device=device)
        self._energies: list[Tensor] = []
        self.noise.open(self.counter, 1)
        settings = next(self._settings(1))
        self.context.move(self.counter, settings.pop("step_size"), settings)
        try:
            state = sampler.start(position.x, self.context)
        except (RuntimeError, IndexError, ShapeError) as error:
            if not _lacks_the_chain_axis(sampler.energy, position.x):
                raise
            raise ShapeError(
                f"the energy cannot take x of shape {tuple(position.x.shape)}, but x[None]",
                "(chain, *event)",
                "add the chain axis with x[None]",
            ) from error
        self.state = dataclasses.replace(state, **position.carried)
        if check_start:
            _check_start(self.state)
        self._note_energy()
        self.check()

    def steps(
        self, n: int, adaptation: StepSizeAdaptation | None = None, age: int = 0
    ) -> Iterator[Statistics]:
        """Make ``n`` transitions; yields after each, with its statistics.

        Args:
            n: Number of transitions.
            adaptation: Rule by which the step moves; None to hold it.
            age: For how many transitions the rule has been at work.

        Raises:
            NumericalError: If energies have become too large for accept tests. Energies are looked
                at once for each block of steps, since a look stops a GPU: up to a block of doubtful
                draws may precede the error.
        """
        end = self.counter + n
        while self.counter < end:
            block = min(self.noise.block, end - self.counter)
            self.noise.open(self.counter, block)
            for values in self._settings(block):
                step_size: float | Tensor = values.pop("step_size")
                if self.adapted_step_size is not None and adaptation is not None:
                    step_size = self.adapted_step_size
                self.context.move(self.counter, step_size, values)
                self.state, statistics = self.sampler.transition(self.state, self.context)
                self.counter += 1
                self.schedule_step += 1
                self._note_energy()
                if self.adapted_step_size is not None and adaptation is not None:
                    acceptance = torch.as_tensor(statistics["acceptance_rate"])
                    self.adapted_step_size = adaptation.moved(
                        self.adapted_step_size, acceptance, age
                    )
                    age += 1
                yield statistics
            self.check()

    def moment(self) -> Moment:
        """The present moment."""
        return Moment(
            self.state,
            self.counter,
            self.schedule_step,
            self.adapted_step_size,
            self.context.step_size,
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

    def check(self) -> None:
        """Refuse energies met since the last check that are too large for accept tests."""
        if self._energies:
            largest = torch.stack(self._energies).abs().amax(0)
            self._energies.clear()
            check_resolution(self.context.temper(largest))

    def _settings(self, block: int) -> Iterator[dict[str, Any]]:
        """The values of all settings at each of the next steps, at the time of that step.

        A schedule that fails has then lost none of the steps before.
        """
        held = {}
        if self.adapted_step_size is not None:
            held["step_size"] = self.adapted_step_size.item()
        for _ in range(block):
            settings = self.sampler.settings.items()
            yield {name: setting.at(self.schedule_step) for name, setting in settings} | held

    def _note_energy(self) -> None:
        if self.sampler.adjusted:
            self._energies.append(self.state.energy)


def _lacks_the_chain_axis(energy: EnergyFunction, x: Tensor) -> bool:
    """Whether the energy takes ``x[None]`` but not ``x``."""

    def takes(states: Tensor) -> bool:
        try:
            return energy(states).shape == states.shape[:1]
        except Exception:  # of any kind: the error to report is the one that led here
            return False

    return takes(x[None]) and not takes(x)


def _check_start(state: State) -> None:
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
