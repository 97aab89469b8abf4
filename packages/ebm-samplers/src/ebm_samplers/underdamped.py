"""Underdamped (kinetic) Langevin dynamics, integrated by BAOAB.

Position and momentum follow dx = p dt, dp = -∇E dt - γ p dt + sqrt(2γ) dW, whose stationary density
is exp(-E(x) - |p|²/2). Leimkuhler & Matthews (2013, "Rational construction of stochastic numerical
methods for molecular sampling", AMRX) split a step into B (kick by the gradient), A (drift) and O
(an exact Ornstein–Uhlenbeck step of the momentum), in the order B A O A B: one gradient a step, and
positions whose error is of fourth order in h at high friction, and none at all on Gaussians.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebm_core.energy import EnergyLike
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.schedules import Schedule, Setting
from ebm_samplers.states import Context, State, Statistics, not_finite
from ebm_samplers.streams import Stream


@dataclass(frozen=True)
class MovingState(State):
    """Positions with momenta.

    Attributes:
        momentum: p, ``(chain, *event)``.
    """

    momentum: Tensor

    carried: ClassVar[tuple[str, ...]] = ("momentum",)


class UnderdampedLangevin(MarkovSampler):
    """Underdamped Langevin by BAOAB, with unit mass.

    Unadjusted: positions target exp(-E) up to O(h²), exactly so on Gaussians, for every step size
    below 2/sqrt(λ) with λ the largest curvature. The momentum carries a chain over distances of
    about 1/γ before it turns, where `LangevinDynamics` diffuses: best where scales differ. Momenta
    start from N(0, I), in ``sample_chain`` at each call; ``resume`` keeps them. A chain that turns
    non-finite stays so, and is flagged ``diverging``. Statistics: ``diverging``, ``n_steps``.

    Args:
        energy: An `EnergyFunction` or any callable ``(chain, *event) -> (chain,)``.
        step_size: h, positive; a number or a schedule ``step -> number``. Of the order of the
            smallest standard deviation of the target: a step size of `LangevinDynamics` is h²/2.
        friction: γ, at least 0 (0: deterministic dynamics), in units of 1/time; a number or a
            schedule. About the inverse of the largest standard deviation is best.
        engine: See `MarkovSampler`.

    Example:
        >>> sampler = UnderdampedLangevin(lambda x: x.square().sum(1) / 2, step_size=0.5)
        >>> final = sampler.sample(n_samples=1000, dim=2, n_steps=50, seed=0).final
        >>> round(final.var().item(), 1)
        1.0
    """

    adjusted: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ("diverging", "n_steps")
    kernel: ClassVar[str | None] = "underdamped"
    state_class: ClassVar[type[State]] = MovingState

    def __init__(
        self,
        energy: EnergyLike,
        step_size: float | Schedule = 0.1,
        friction: float | Schedule = 1.0,
        *,
        engine: str = "auto",
    ) -> None:
        super().__init__(energy, step_size, engine=engine)
        self.friction = friction

    @property
    def friction(self) -> float | Schedule:
        """The friction, or its schedule. Can be set."""
        return self.settings["friction"].value

    @friction.setter
    def friction(self, friction: float | Schedule) -> None:
        self.settings["friction"] = Setting("friction", friction, zero=True)

    def kernel_carried(self, normals: Callable[[int], Tensor]) -> dict[str, Tensor]:
        """Fresh momenta."""
        return {"momentum": normals(Stream.MOMENTUM)}

    def start(self, x: Tensor, context: Context) -> MovingState:
        """Positions with energy and gradient, and fresh momenta."""
        at = self.evaluate(x)
        return MovingState(at.x, at.energy, at.gradient, context.normals(Stream.MOMENTUM))

    def transition(self, state: State, context: Context) -> tuple[State, Statistics]:
        """One step of BAOAB."""
        assert isinstance(state, MovingState)
        h, kept = context.step_size, kept_momentum(context.step_size, context.settings["friction"])
        momentum = state.momentum - h / 2 * context.temper(state.gradient)
        x = state.x + h / 2 * momentum
        spread = ((1 - kept) * (1 + kept)) ** 0.5
        momentum = kept * momentum + spread * context.normals(Stream.NOISE)
        at = self.evaluate(x + h / 2 * momentum)
        momentum = momentum - h / 2 * context.temper(at.gradient)
        moved = MovingState(at.x, at.energy, at.gradient, momentum)
        if not context.reports:
            return moved, {}
        return moved, {"diverging": not_finite(moved), "n_steps": 1}


def kept_momentum(step_size: Any, friction: Any) -> Any:
    """exp(-γh), the part of a momentum that a step keeps; numbers or scalar tensors."""
    exponent = -friction * step_size
    return exponent.exp() if isinstance(exponent, torch.Tensor) else math.exp(exponent)
