"""Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011).

A momentum p ~ N(0, M) is drawn, leapfrog steps follow the dynamics of H = beta·E(x) + p·M⁻¹p/2, and
the end point is accepted or rejected for what H has changed. A fixed length resonates with targets
whose period it divides, so lengths are random by default; all chains share a transition's length,
so that they stay in step.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_core.energy import EnergyLike
from ebm_core.validation import check_integer, check_number
from ebm_samplers.acceptance import metropolis
from ebm_samplers.attributes import Check
from ebm_samplers.mass import checked_mass, kernel_mass, mass_for
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.schedules import Schedule
from ebm_samplers.states import Context, State, Statistics, per_chain
from ebm_samplers.streams import Stream

Array = NDArray[Any]


class HamiltonianMonteCarlo(MarkovSampler):
    """Hamiltonian Monte Carlo with a random number of leapfrog steps.

    Leaves exp(-E) exactly invariant, on events of any shape. L leapfrogs cost L gradients.
    Statistics: ``acceptance_rate``, ``diverging`` (H rose by more than 1000 nats, or was not
    finite: rejected), ``n_steps`` (leapfrogs), ``energy`` (H of the accepted state).

    Args:
        energy: An `EnergyFunction` or any callable ``(chain, *event) -> (chain,)``.
        step_size: ε of the leapfrog, positive; a number or a schedule ``step -> number``.
        n_leapfrog_steps: L, the mean number of leapfrogs.
        mass: M: None for I, a tensor of the event's shape for a diagonal, ``(d, d)`` for a matrix
            on the flattened event; checked at once as far as the energy's ``event_shape`` is
            known. Best close to the inverse covariance of the target.
        jitter: j in [0, 1]: lengths are uniform over the integers from L - j(L - 1) to L + j(L - 1)
            (0: always L).
        target_acceptance: Acceptance rate that ε is to follow, see `MarkovSampler`; 0.65 to 0.8 is
            usual.
        engine: See `MarkovSampler`.

    Raises:
        ConfigurationError: If a setting makes no sense.
        ShapeError: If ``mass`` does not fit the event.

    Example:
        >>> sampler = HamiltonianMonteCarlo(lambda x: x.square().sum(1) / 2, step_size=0.2)
        >>> result = sampler.sample(n_samples=100, dim=3, n_steps=5, keep="trajectory", seed=0)
        >>> result.trajectory.shape, result.stats["energy"].shape
        (torch.Size([100, 5, 3]), torch.Size([100, 5]))
    """

    statistics: ClassVar[tuple[str, ...]] = (*MarkovSampler.statistics, "energy")
    usual_acceptance: ClassVar[float] = 0.8
    kernel: ClassVar[str | None] = "hmc"
    checks: ClassVar[Mapping[str, Check]] = {
        "n_leapfrog_steps": lambda value: check_integer("n_leapfrog_steps", value, at_least=1),
        "jitter": lambda value: check_number("jitter", value, at_least=0, at_most=1),
    }

    def __init__(
        self,
        energy: EnergyLike,
        step_size: float | Schedule = 0.1,
        n_leapfrog_steps: int = 10,
        mass: Tensor | None = None,
        *,
        jitter: float = 1.0,
        target_acceptance: float | None = None,
        engine: str = "auto",
    ) -> None:
        super().__init__(energy, step_size, target_acceptance=target_acceptance, engine=engine)
        self.n_leapfrog_steps = n_leapfrog_steps
        self.mass = None if mass is None else checked_mass(mass, self.energy.event_shape)
        self.jitter = jitter

    def prepare(self, x: Tensor, context: Context) -> None:
        """Fit the mass to the states."""
        context.prepared["mass"] = mass_for(self.mass, x)

    def kernel_constants(self, x: Tensor) -> dict[str, Tensor]:
        """M⁻¹ and the Cholesky factor of M."""
        return kernel_mass(self.mass, x)

    def kernel_lengths(self, n: int, uniforms: Callable[[int, int], Array]) -> Array | int:
        """The numbers of leapfrogs of the next ``n`` transitions."""
        if self._spread:
            return self._lengths(uniforms(Stream.LENGTH, n))
        return self.n_leapfrog_steps

    def branch(self, context: Context) -> int:
        """The number of leapfrogs of this step."""
        return self.length(context)

    def length(self, context: Context) -> int:
        """The number of leapfrogs of this step."""
        uniform = context.shared_uniform(Stream.LENGTH) if self._spread else 0.0
        return int(self._lengths(np.array(uniform)))

    @property
    def _spread(self) -> int:
        return math.floor(self.jitter * (self.n_leapfrog_steps - 1))

    def _lengths(self, uniforms: Array) -> Array:
        spread = self._spread
        steps = (uniforms * (2 * spread + 1)).astype(np.int64)
        lengths: Array = steps + (self.n_leapfrog_steps - spread)
        return lengths

    def leapfrog(
        self, state: State, momentum: Tensor, n_steps: int, context: Context
    ) -> tuple[State, Tensor]:
        """Follow the dynamics; reversible (change the sign of the momentum) and volume-preserving.

        Args:
            state: Where to start.
            momentum: p, ``(chain, *event)``.
            n_steps: Number of leapfrogs, at least 1.
            context: Gives ε and beta.

        Returns:
            The end point and its momentum.
        """
        h, mass = context.step_size, context.prepared["mass"]
        momentum = momentum - h / 2 * context.temper(state.gradient)
        for i in range(n_steps):
            state = self.evaluate(state.x + h * mass.velocity(momentum))
            last = i == n_steps - 1
            momentum = momentum - (h / 2 if last else h) * context.temper(state.gradient)
        return state, momentum

    def transition(self, state: State, context: Context) -> tuple[State, Statistics]:
        """A fresh momentum, a trajectory, and its test."""
        n_steps, mass = self.length(context), context.prepared["mass"]
        momentum = mass.momentum(context.normals(Stream.MOMENTUM))
        proposal, final_momentum = self.leapfrog(state, momentum, n_steps, context)
        before = momentum * mass.velocity(momentum)
        after = final_momentum * mass.velocity(final_momentum)
        # Differences before sums: two kinetic energies of many elements would cancel.
        delta = context.temper(proposal.energy - state.energy) + per_chain(after - before) / 2
        hamiltonian = context.temper(state.energy) + per_chain(before) / 2
        verdict = metropolis(delta, context.uniforms(Stream.ACCEPT))
        return verdict.choose(proposal, state), {
            "acceptance_rate": verdict.probability,
            "diverging": verdict.diverging,
            "n_steps": n_steps,
            "energy": torch.where(verdict.accepted, hamiltonian + delta, hamiltonian),
        }
