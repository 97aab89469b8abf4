"""Samplers of all kinds, for tests of what they share."""

import torch

from ebm_core.testing import QuadraticEnergy
from ebm_samplers import (
    MALA,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    MarkovSampler,
    Stream,
    metropolis,
)


class RandomWalk(MarkovSampler):
    """The example of the module's docstring."""

    def transition(self, state, context):
        proposal = self.evaluate(state.x + context.step_size * context.normals(Stream.NOISE))
        delta = context.temper(proposal.energy - state.energy)
        verdict = metropolis(delta, context.uniforms(Stream.ACCEPT))
        return verdict.choose(proposal, state), {
            "acceptance_rate": verdict.probability,
            "diverging": verdict.diverging,
            "n_steps": 1,
        }


MAKERS = {
    "langevin": lambda energy, engine="torch": LangevinDynamics(energy, 0.05, engine=engine),
    "mala": lambda energy, engine="torch": MALA(energy, 0.2, engine=engine),
    "hmc": lambda energy, engine="torch": HamiltonianMonteCarlo(energy, 0.3, 3, engine=engine),
    "walk": lambda energy: RandomWalk(energy, 0.5),
    "fused mala": lambda energy: MALA(energy, 0.2, engine="auto"),
}


def quadratic(d: int = 3, dtype=torch.float64) -> QuadraticEnergy:
    return QuadraticEnergy(torch.zeros(d, dtype=dtype), torch.linspace(0.5, 1, d, dtype=dtype))
