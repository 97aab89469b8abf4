"""This project in `benchmarks/training.py`."""

from typing import Any

import torch
from torch import nn

import ebm_losses
from ebm_energies import Gaussian
from ebm_samplers import LangevinDynamics
from rivals.training_cells import BUFFER, DSM_NOISE, K_STEPS, NCE_SCALE, STEP_SIZE
from rivals.training_steps import work


def contrastive(network: nn.Module, engine: str, persistent: bool) -> Any:
    """CD-10 or PCD-10 by unadjusted Langevin."""
    sampler = LangevinDynamics(network, STEP_SIZE, engine=engine)
    if persistent:
        loss: Any = ebm_losses.PersistentContrastiveDivergence(
            network, sampler, K_STEPS, buffer_size=BUFFER
        )
    else:
        loss = ebm_losses.ContrastiveDivergence(network, sampler, K_STEPS)
    return loss, loss.parameters()


def of(loss: Any) -> Any:
    """A loss and its parameters."""
    return loss, loss.parameters()


def sliced(network: nn.Module) -> Any:
    """Variance-reduced, one projection.

    Raises:
        NotImplementedError: If this version has no sliced score matching.
    """
    if not hasattr(ebm_losses, "SlicedScoreMatching"):
        raise NotImplementedError(f"ebm_losses {ebm_losses.__version__} has none")
    return of(ebm_losses.SlicedScoreMatching(network, n_projections=1, variance_reduction=True))


def noise_contrastive(network: nn.Module) -> Any:
    """Noise N(0, 2² I), as many draws as data."""
    noise = Gaussian(torch.zeros(2), covariance=NCE_SCALE**2 * torch.eye(2))
    return of(ebm_losses.NoiseContrastiveEstimation(network, noise))


ENGINES = ("auto", "fused", "torch")
FORMS = {
    "CD-10": {e: lambda n, e=e: contrastive(n, e, persistent=False) for e in ENGINES},
    "PCD-10": {e: lambda n, e=e: contrastive(n, e, persistent=True) for e in ENGINES},
    "DSM": {"": lambda n: of(ebm_losses.DenoisingScoreMatching(n, noise_scale=DSM_NOISE))},
    "SSM": {"": sliced},
    "NCE": {"": noise_contrastive},
}

if __name__ == "__main__":
    work(FORMS, ("ebm-core", "ebm-energies", "ebm-losses", "ebm-samplers", "numba", "torch"))
