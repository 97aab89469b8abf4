"""TorchEBM in `benchmarks/training.py`; it has no noise-contrastive estimation."""

from rivals.density_cells import DSM_NOISE
from rivals.density_torchebm import contrastive, score
from rivals.training_cells import BUFFER, STEP_SIZE
from rivals.training_steps import work

CHAINS = {"step_size": STEP_SIZE, "buffer_size": BUFFER, "new_sample_ratio": 0.0}
FORMS = {
    "CD-10": {"": lambda n: contrastive(n, {"step_size": STEP_SIZE}, persistent=False)},
    "PCD-10": {"": lambda n: contrastive(n, CHAINS, persistent=True)},
    "DSM": {"": lambda n: score(n, "DenoisingScoreMatching", noise_scale=DSM_NOISE)},
    "SSM": {"": lambda n: score(n, "SlicedScoreMatching", n_projections=1)},
}

if __name__ == "__main__":
    work(FORMS, ("torchebm", "torch"))
