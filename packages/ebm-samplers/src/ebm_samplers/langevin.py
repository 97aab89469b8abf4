"""Langevin dynamics, unadjusted and with a Metropolis test.

Both take the Euler–Maruyama step of dx = -∇E dt + sqrt(2) dW. Unadjusted, the chain converges to a
density that differs from the target by O(h); the test of `MALA` removes the difference
(Roberts & Tweedie 1996).
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ebm_core.energy import EnergyLike
from ebm_samplers.acceptance import metropolis
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.schedules import Schedule, Setting
from ebm_samplers.states import Context, State, Statistics, not_finite, per_chain
from ebm_samplers.streams import Stream

Array = NDArray[Any]


class LangevinDynamics(MarkovSampler):
    """Unadjusted Langevin: x' = x - h ∇E(x) + sqrt(2h)·noise_scale·ξ with ξ ~ N(0, I).

    Targets exp(-E/noise_scale²) as h → 0; on a Gaussian of precision λ the stationary variance is
    1/(λ(1 - hλ/2)). A chain that turns non-finite stays so, and is flagged ``diverging``.
    Statistics: ``diverging``, ``n_steps``.

    Args:
        energy: An `EnergyFunction` or any callable ``(chain, *event) -> (chain,)``.
        step_size: h, positive; a number or a schedule ``step -> number``.
        noise_scale: At least 0 (0 is gradient descent); a number or a schedule.
        engine: See `MarkovSampler`.

    Example:
        >>> sampler = LangevinDynamics(lambda x: x.square().sum(1) / 2, step_size=0.1)
        >>> sampler.sample(n_samples=1000, dim=2, n_steps=100, seed=0).final.var().item()
        1.0...
    """

    adjusted: ClassVar[bool] = False
    statistics: ClassVar[tuple[str, ...]] = ("diverging", "n_steps")
    kernel: ClassVar[str | None] = "langevin"

    def __init__(
        self,
        energy: EnergyLike,
        step_size: float | Schedule = 0.01,
        noise_scale: float | Schedule = 1.0,
        *,
        engine: str = "auto",
    ) -> None:
        super().__init__(energy, step_size, engine=engine)
        self.noise_scale = noise_scale

    @property
    def noise_scale(self) -> float | Schedule:
        """The noise scale, or its schedule. Can be set."""
        return self.settings["noise_scale"].value

    @noise_scale.setter
    def noise_scale(self, noise_scale: float | Schedule) -> None:
        self.settings["noise_scale"] = Setting("noise_scale", noise_scale, zero=True)

    def kernel_final_lengths(self, n: int, uniforms: Callable[[int, int], Array]) -> Array:
        """The last step needs no gradient at its end."""
        lengths = np.ones(n, np.int64)
        lengths[-1:] = 0
        return lengths

    def transition(self, state: State, context: Context) -> tuple[State, Statistics]:
        """One Euler–Maruyama step."""
        h = context.step_size
        spread = (2 * h) ** 0.5 * context.settings["noise_scale"]
        velocity = context.temper(state.gradient)
        proposal = self.evaluate(context.moved(state.x, velocity, h, spread, Stream.NOISE))
        if not context.reports:
            return proposal, {}
        return proposal, {"diverging": not_finite(proposal), "n_steps": 1}


class MALA(MarkovSampler):
    """Metropolis-adjusted Langevin: proposes the unadjusted step, accepts or rejects it.

    Leaves exp(-E) exactly invariant. One gradient a transition. Statistics: ``acceptance_rate``,
    ``diverging`` (the proposal was not finite, or 1000 nats too high), ``n_steps``.

    Args:
        energy: An `EnergyFunction` or any callable ``(chain, *event) -> (chain,)``.
        step_size: h, positive; a number or a schedule ``step -> number``.
        target_acceptance: Acceptance rate that h is to follow, see `MarkovSampler`; 0.574 is best
            in high dimension (Roberts & Rosenthal 1998).
        engine: See `MarkovSampler`.

    Example:
        >>> sampler = MALA(lambda x: x.square().sum(1) / 2, step_size=0.5)
        >>> result = sampler.sample(n_samples=1000, dim=2, n_steps=50, seed=0)
        >>> result.stats["acceptance_rate"].mean().item()
        0.87...
    """

    usual_acceptance: ClassVar[float] = 0.574
    kernel: ClassVar[str | None] = "mala"

    def __init__(
        self,
        energy: EnergyLike,
        step_size: float | Schedule = 0.1,
        *,
        target_acceptance: float | None = None,
        engine: str = "auto",
    ) -> None:
        super().__init__(energy, step_size, target_acceptance=target_acceptance, engine=engine)

    def transition(self, state: State, context: Context) -> tuple[State, Statistics]:
        """One proposal and its test."""
        h = context.step_size
        velocity, spread = context.temper(state.gradient), (2 * h) ** 0.5
        proposal = self.evaluate(context.moved(state.x, velocity, h, spread, Stream.NOISE))
        noise = context.normals(Stream.NOISE)
        # The way back needs the noise w - ξ with w = sqrt(h/2)·beta·(∇E + ∇E'); compare densities.
        w = (h / 2) ** 0.5 * context.temper(state.gradient + proposal.gradient)
        delta = context.temper(proposal.energy - state.energy) + per_chain(w * (w / 2 - noise))
        verdict = metropolis(delta, context.uniforms(Stream.ACCEPT))
        return verdict.choose(proposal, state), {
            "acceptance_rate": verdict.probability,
            "diverging": verdict.diverging,
            "n_steps": 1,
        }
