"""This project in `benchmarks/density.py`: each objective with its default recipe."""

from typing import Any

import torch

import ebm_losses
from ebm_energies import Gaussian
from ebm_samplers import MALA
from rivals.density_cells import DSM_NOISE, NCE_SCALE
from rivals.density_training import Network, work


def chains(network: Network) -> MALA:
    """Langevin with an accept step, its step size adapting to 0.6 acceptance."""
    return MALA(network, step_size=0.01, target_acceptance=0.6)


def noise() -> Gaussian:
    """Of NCE."""
    return Gaussian(torch.zeros(2), covariance=NCE_SCALE**2 * torch.eye(2))


def named(name: str) -> Any:
    """An objective of ebm_losses.

    Raises:
        NotImplementedError: If this version has none of that name.
    """
    if not hasattr(ebm_losses, name):
        raise NotImplementedError(f"skipped: ebm_losses {ebm_losses.__version__} has no {name}")
    return getattr(ebm_losses, name)


LOSSES = {
    "NCE": lambda e: named("NoiseContrastiveEstimation")(e, noise()),
    "sliced score matching": lambda e: named("SlicedScoreMatching")(
        e, n_projections=1, variance_reduction=True
    ),
    "score matching": lambda e: named("ScoreMatching")(e),
    "energy discrepancy": lambda e: named("EnergyDiscrepancy")(e),
    "denoising score matching": lambda e: named("DenoisingScoreMatching")(e, noise_scale=DSM_NOISE),
    "PCD": lambda e: named("PersistentContrastiveDivergence")(
        e, chains(e), k_steps=10, buffer_size=256
    ),
    "PT-CD": lambda e: named("ParallelTemperingContrastiveDivergence")(
        e, chains(e), k_steps=2, buffer_size=256
    ),
    "CD-10": lambda e: named("ContrastiveDivergence")(e, chains(e), k_steps=10),
}


def build(objective: str) -> Any:
    """What makes the loss, and names what it trains."""

    def made(network: Network, form: dict[str, Any]) -> Any:
        loss = LOSSES[objective](network)
        return loss, loss.parameters()

    return made


if __name__ == "__main__":
    work(
        {name: build(name) for name in LOSSES},
        ("ebm-core", "ebm-energies", "ebm-losses", "ebm-samplers", "torch"),
    )
