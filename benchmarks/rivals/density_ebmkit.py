"""ebmkit (imported as ``ebm``) in `benchmarks/density.py` and `benchmarks/training.py`.

Its contrastive divergence begins chains at noise or in a buffer, never at data; it has no training
by parallel tempering.
"""

from typing import Any

import ebm
import torch
from torch import nn
from torch.distributions import Independent, Normal

from rivals.density_cells import DSM_NOISE, NCE_SCALE
from rivals.density_training import work


def of(loss: nn.Module, network: nn.Module) -> Any:
    """A loss of the network, and all parameters."""
    parameters = [*network.parameters(), *loss.parameters()]
    return lambda x: loss(network, x).loss, parameters


def contrastive(network: nn.Module, form: dict[str, Any], persistent: bool) -> Any:
    """Ten steps of its sampler, from its buffer or from noise."""
    kind = ebm.MALA if form["sampler"] == "MALA" else ebm.LangevinDynamics
    buffer = ebm.ReplayBuffer(form["capacity"], (2,), form["reinit"]) if persistent else None
    sampler = kind(step_size=form["step_size"], steps=10)
    return of(ebm.ContrastiveDivergence(sampler, buffer=buffer), network)


def noise() -> Independent:
    """Of NCE."""
    return Independent(Normal(torch.zeros(2), NCE_SCALE * torch.ones(2)), 1)


BUILDERS = {
    "NCE": lambda network, form: of(ebm.NoiseContrastiveEstimation(noise()), network),
    "score matching": lambda network, form: of(ebm.ExactScoreMatching(), network),
    "sliced score matching": lambda network, form: of(
        ebm.SlicedScoreMatching(**form, vr=True), network
    ),
    "denoising score matching": lambda network, form: of(
        ebm.DenoisingScoreMatching(DSM_NOISE), network
    ),
    "energy discrepancy": lambda network, form: of(
        ebm.EnergyDiscrepancy(sigma=0.5, m_particles=16, w_stable=1.0), network
    ),
    "PCD": lambda network, form: contrastive(network, form, persistent=True),
    "CD-10": lambda network, form: contrastive(network, form, persistent=False),
}

if __name__ == "__main__":
    work(BUILDERS, ("ebmkit", "torch"))
