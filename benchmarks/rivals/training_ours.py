"""This project in `benchmarks/training.py`."""

from typing import Any

from torch import nn

from ebm_losses import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastiveEstimation,
    PersistentContrastiveDivergence,
    SlicedScoreMatching,
)
from ebm_samplers import LangevinDynamics
from rivals.density_cells import DSM_NOISE
from rivals.density_ours import noise, of
from rivals.training_cells import BUFFER, K_STEPS, STEP_SIZE
from rivals.training_steps import work


def contrastive(network: nn.Module, engine: str, persistent: bool) -> Any:
    """CD-10 or PCD-10 by unadjusted Langevin."""
    sampler = LangevinDynamics(network, STEP_SIZE, engine=engine)
    if persistent:
        return of(PersistentContrastiveDivergence(network, sampler, K_STEPS, buffer_size=BUFFER))
    return of(ContrastiveDivergence(network, sampler, K_STEPS))


ENGINES = ("auto", "fused", "torch")
FORMS = {
    "CD-10": {e: lambda n, e=e: contrastive(n, e, persistent=False) for e in ENGINES},
    "PCD-10": {e: lambda n, e=e: contrastive(n, e, persistent=True) for e in ENGINES},
    "DSM": {"": lambda n: of(DenoisingScoreMatching(n, noise_scale=DSM_NOISE))},
    "SSM": {"": lambda n: of(SlicedScoreMatching(n, n_projections=1, variance_reduction=True))},
    "NCE": {"": lambda n: of(NoiseContrastiveEstimation(n, noise()))},
}

if __name__ == "__main__":
    work(FORMS, ("ebm-core", "ebm-energies", "ebm-losses", "ebm-samplers", "numba", "torch"))
