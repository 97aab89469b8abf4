"""Training: `fit`, and the pieces that it is made of."""

from ebm_utils.training.averaging import ParameterAverage
from ebm_utils.training.checkpoint import read_checkpoint, write_checkpoint
from ebm_utils.training.loop import fit
from ebm_utils.training.result import FitResult
from ebm_utils.training.schedules import cosine_schedule

__all__ = [
    "FitResult",
    "ParameterAverage",
    "cosine_schedule",
    "fit",
    "read_checkpoint",
    "write_checkpoint",
]
