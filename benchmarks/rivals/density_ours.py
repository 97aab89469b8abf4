"""This project in `benchmarks/density.py`: each objective with its default recipe."""

from collections.abc import Callable
from typing import Any

import torch

from ebm_core import BaseLoss
from ebm_energies import Gaussian
from ebm_losses import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    NoiseContrastiveEstimation,
    ParallelTemperingContrastiveDivergence,
    PersistentContrastiveDivergence,
    ScoreMatching,
    SlicedScoreMatching,
)
from ebm_samplers import MALA
from rivals.density_cells import DSM_NOISE, NCE_SCALE
from rivals.density_training import Network, work


def chains(network: Network) -> MALA:
    """Langevin with an accept step, its step size adapting to 0.6 acceptance."""
    return MALA(network, step_size=0.01, target_acceptance=0.6)


def noise() -> Gaussian:
    """Of NCE."""
    return Gaussian(torch.zeros(2), covariance=NCE_SCALE**2 * torch.eye(2))


def of(loss: BaseLoss) -> Any:
    """A loss and its parameters."""
    return loss, loss.parameters()


LOSSES: dict[str, Callable[[Network], BaseLoss]] = {
    "NCE": lambda e: NoiseContrastiveEstimation(e, noise()),
    "sliced score matching": lambda e: SlicedScoreMatching(
        e, n_projections=1, variance_reduction=True
    ),
    "score matching": lambda e: ScoreMatching(e),
    "energy discrepancy": lambda e: EnergyDiscrepancy(e),
    "denoising score matching": lambda e: DenoisingScoreMatching(e, noise_scale=DSM_NOISE),
    "PCD": lambda e: PersistentContrastiveDivergence(
        e, chains(e), k_steps=10, buffer_size=256, leave_out_stuck=True
    ),
    "PT-CD": lambda e: ParallelTemperingContrastiveDivergence(
        e, chains(e), k_steps=2, buffer_size=256
    ),
    "CD-10": lambda e: ContrastiveDivergence(e, chains(e), k_steps=10),
}
BUILDERS = {
    name: lambda network, form, make=make: of(make(network)) for name, make in LOSSES.items()
}

if __name__ == "__main__":
    work(BUILDERS, ("ebm-core", "ebm-energies", "ebm-losses", "ebm-samplers", "torch"))
