"""ebmkit in `benchmarks/training.py`; its chains without a buffer begin at noise, not at data."""

import ebm

from rivals.density_cells import DSM_NOISE
from rivals.density_ebmkit import contrastive, noise, of
from rivals.training_cells import BUFFER, STEP_SIZE
from rivals.training_steps import work

CHAINS = {"sampler": "ULA", "step_size": STEP_SIZE, "capacity": BUFFER, "reinit": 0.0}
FORMS = {
    "CD-10": {"": lambda n: contrastive(n, CHAINS, persistent=False)},
    "PCD-10": {"": lambda n: contrastive(n, CHAINS, persistent=True)},
    "DSM": {"": lambda n: of(ebm.DenoisingScoreMatching(DSM_NOISE), n)},
    "SSM": {"": lambda n: of(ebm.SlicedScoreMatching(1, vr=True), n)},
    "NCE": {"": lambda n: of(ebm.NoiseContrastiveEstimation(noise()), n)},
}

if __name__ == "__main__":
    work(FORMS, ("ebmkit", "torch"))
