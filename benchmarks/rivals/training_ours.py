"""This project in `benchmarks/training.py`."""

from typing import Any

import torch
from torch import nn

from ebm_core import BaseLoss
from ebm_energies import Gaussian
from ebm_losses import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastiveEstimation,
    PersistentContrastiveDivergence,
    SlicedScoreMatching,
)
from ebm_samplers import FusedEvaluator, LangevinDynamics
from rivals.density_cells import DSM_NOISE, NCE_SCALE
from rivals.density_ours import of
from rivals.training_cells import BUFFER, K_STEPS, STEP_SIZE
from rivals.training_steps import work


def contrastive(network: nn.Module, engine: str, persistent: bool) -> Any:
    """CD-10 or PCD-10 by unadjusted Langevin; with the engine "all fused" the energies, too."""
    sampler = LangevinDynamics(network, STEP_SIZE, engine=engine.removeprefix("all "))
    if persistent:
        loss: BaseLoss = PersistentContrastiveDivergence(
            network, sampler, K_STEPS, buffer_size=BUFFER
        )
    else:
        loss = ContrastiveDivergence(network, sampler, K_STEPS)
    loss.evaluator = evaluator(engine)
    return of(loss)


def evaluator(engine: str) -> FusedEvaluator | None:
    """What evaluates the terms of an objective; None for torch."""
    return FusedEvaluator("fused") if engine == "all fused" else None


def noise() -> Gaussian:
    """Of NCE: independent components, as ebmkit's."""
    return Gaussian(torch.zeros(2), covariance=NCE_SCALE**2 * torch.ones(2))


LOSSES = {
    "DSM": lambda n, e: DenoisingScoreMatching(n, noise_scale=DSM_NOISE, evaluator=evaluator(e)),
    "SSM": lambda n, e: SlicedScoreMatching(n, evaluator=evaluator(e)),
    "NCE": lambda n, e: NoiseContrastiveEstimation(n, noise(), evaluator=evaluator(e)),
}
CHAINS = ("auto", "fused", "torch", "all fused")
FORMS = {
    "CD-10": {e: lambda n, e=e: contrastive(n, e, persistent=False) for e in CHAINS},
    "PCD-10": {e: lambda n, e=e: contrastive(n, e, persistent=True) for e in CHAINS},
    **{
        name: {e: lambda n, e=e, make=make: of(make(n, e)) for e in ("torch", "all fused")}
        for name, make in LOSSES.items()
    },
}

if __name__ == "__main__":
    work(FORMS, ("ebm-core", "ebm-energies", "ebm-losses", "ebm-samplers", "numba", "torch"))
