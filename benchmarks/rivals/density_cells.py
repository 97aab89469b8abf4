"""What `benchmarks/density.py` measures: objectives, recipes, the network. Standard library only.

All sides train the same network, from the same start, on the same batches, for the same number of
steps with the same optimizer; what differs is the objective, by the settings given here.
"""

from dataclasses import dataclass, field
from typing import Any

WIDTHS = (128, 128, 128)
BASE_SCALE = 2.0
"""Standard deviation of the Gaussian base term."""
INPUT_GAIN = 4.0
"""The first layer starts this many times as large; see ``ebm_models.MLPEnergy``."""

LEARNING_RATES = (1e-3, 1e-5)
"""Of Adam: the first and, by half a cosine, the last."""
EMA_DECAY = 0.999

DATASETS = (
    "eight Gaussians",
    "eight Gaussians, weights 1 to 8",
    "two moons",
    "checkerboard",
    "rings",
)
BOX, POINTS = 12.0, 600
"""The divergence is computed by quadrature on (-BOX, BOX)²; the board's edges fall on cells'."""

DSM_NOISE = 0.1
NCE_SCALE = 2.0


@dataclass(frozen=True)
class Recipe:
    """How an objective is trained.

    Attributes:
        steps: Optimisation steps.
        batch: States of a batch.
        forms: Settings of the rivals that have a counterpart, by side and name; where there are
            several forms, the one with the lower median counts.
    """

    steps: int
    batch: int = 256
    forms: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)


PERSISTENT = {
    "torchebm": {
        "its defaults": {"step_size": 0.01, "buffer_size": 10_000, "new_sample_ratio": 0.05},
        "small steps, no new chains": {
            "step_size": 0.0025,
            "buffer_size": 256,
            "new_sample_ratio": 0.0,
        },
    },
    "ebmkit": {
        "its defaults": {"sampler": "ULA", "step_size": 0.01, "capacity": 8192, "reinit": 0.05},
        "MALA, no new chains": {
            "sampler": "MALA",
            "step_size": 0.01,
            "capacity": 256,
            "reinit": 0.0,
        },
    },
}
OBJECTIVES = {
    "NCE": Recipe(8000, 512, {"ebmkit": {"": {}}}),
    "sliced score matching": Recipe(
        8000, forms={"torchebm": {"": {"n_projections": 1}}, "ebmkit": {"": {"n_projections": 1}}}
    ),
    "score matching": Recipe(8000, forms={"torchebm": {"": {}}, "ebmkit": {"": {}}}),
    "energy discrepancy": Recipe(4000, forms={"ebmkit": {"": {}}}),
    "denoising score matching": Recipe(8000, forms={"torchebm": {"": {}}, "ebmkit": {"": {}}}),
    "PCD": Recipe(6000, forms=PERSISTENT),
    "PT-CD": Recipe(4000),
    "CD-10": Recipe(
        6000,
        forms={
            "torchebm": {"": {"step_size": 0.01}},
            "ebmkit": {"chains from noise": {"sampler": "MALA", "step_size": 0.01}},
        },
    ),
}
SIDES = ("ours", "torchebm", "ebmkit")


def forms_of(side: str, objective: str) -> dict[str, dict[str, Any]]:
    """The settings that a side is tried with; ours are in `density_ours`."""
    return {"": {}} if side == "ours" else OBJECTIVES[objective].forms.get(side, {})
