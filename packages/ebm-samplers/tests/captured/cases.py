"""Energies and samplers for tests of captured steps."""

from dataclasses import dataclass

import torch

from ebm_core import EnergyFunction
from ebm_samplers import (
    MALA,
    AnnealedLangevin,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    MarkovSampler,
    State,
    Stream,
    UnderdampedLangevin,
    metropolis,
    without_graphs,
)


class Network(EnergyFunction):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1)
        )
        self.scale = 1.0

    def forward(self, x):
        return self.scale * self.layers(x).squeeze(1) + x.square().sum(1) / 2


class Conditional(torch.nn.Module):
    """An energy with a noise level."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x, sigma):
        return self.energy(x) / (1 + sigma**2)


class Kicked(MarkovSampler):
    """Carries a momentum that it never forgets entirely."""

    @dataclass(frozen=True)
    class Moving(State):
        momentum: torch.Tensor
        carried = ("momentum",)

    adjusted = False
    statistics = ("n_steps",)

    def start(self, x, context):
        at = self.evaluate(x)
        momentum = (1 + context.step_size) * context.normals(Stream.MOMENTUM)
        return self.Moving(at.x, at.energy, at.gradient, momentum)

    def transition(self, state, context):
        kick = context.step_size * context.temper(state.gradient)
        momentum = 0.9 * state.momentum - kick + 0.1 * context.normals(Stream.NOISE)
        at = self.evaluate(state.x + context.step_size * momentum)
        return self.Moving(at.x, at.energy, at.gradient, momentum), {"n_steps": 1}


class Looking(MarkovSampler):
    """Asks the device for a number, which no graph can."""

    def transition(self, state, context):
        largest = float(state.x.abs().max())
        noise = context.normals(Stream.NOISE)
        proposal = self.evaluate(state.x + context.step_size / (1 + largest) * noise)
        verdict = metropolis(proposal.energy - state.energy, context.uniforms(Stream.ACCEPT))
        return verdict.choose(proposal, state), {
            "acceptance_rate": verdict.probability, "diverging": verdict.diverging, "n_steps": 1,
        }  # fmt: skip


MASS = torch.tensor([[2.0, 0.3], [0.3, 1.0]])


SAMPLERS = {
    "langevin": lambda e: LangevinDynamics(e, 0.05, 0.7),
    "cooling": lambda e: LangevinDynamics(e, lambda n: 0.1 / (1 + n), lambda n: 0.9**n),
    "annealed": lambda e: AnnealedLangevin(e, [4.0, 1.0], 0.1, steps_per_level=3),
    "of noise levels": lambda e: AnnealedLangevin(
        Conditional(e), [3.0, 2.0, 1.0], 0.1, steps_per_level=2, levels="noise"
    ),
    "underdamped": lambda e: UnderdampedLangevin(e, 0.1, 0.7),
    "mala": lambda e: MALA(e, 0.3),
    "adapting mala": lambda e: MALA(e, 0.3, target_acceptance=0.6),
    "hmc": lambda e: HamiltonianMonteCarlo(e, 0.3, 4),
    "hmc of one length": lambda e: HamiltonianMonteCarlo(e, 0.3, 3, jitter=0, mass=MASS),
    "kicked": lambda e: Kicked(e, lambda n: 0.1 + 0.01 * n),
}


def pair(make, energy=None):
    """A sampler that is captured, and one that is not, on one energy."""
    energy = energy or Network()
    samplers = make(energy), make(energy)
    for sampler in samplers:
        sampler.engine = "torch"
        sampler.load_state_dict(sampler.state_dict() | {"key": 2**63 + 5})
    return samplers


def plain(call):
    with without_graphs():
        return call()


def states(n=5):
    return torch.linspace(-1, 1, 2 * n).view(n, 2)


def close(have, want):
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)
