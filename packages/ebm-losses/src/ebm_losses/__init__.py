"""Training objectives for energy-based models in PyTorch.

Each is a module ``loss(x) -> scalar`` (`ebm_core.BaseLoss`) around any energy; those that need
negatives take any object with ``sample_chain`` as their sampler.
"""

from ebm_losses.conditional import ConditionalContrastiveDivergence
from ebm_losses.contrastive import (
    ContrastiveDivergence,
    ContrastiveObjective,
    PersistentContrastiveDivergence,
)
from ebm_losses.denoising import DenoisingScoreMatching
from ebm_losses.divergence import RunawayGuard
from ebm_losses.energy_discrepancy import EnergyDiscrepancy
from ebm_losses.energy_matching import EnergyMatching
from ebm_losses.equilibrium_matching import EquilibriumMatching
from ebm_losses.jitter import DataJitter
from ebm_losses.joint_energy import JointEnergyLoss
from ebm_losses.labelled_buffer import LabelledReplayBuffer
from ebm_losses.noise_contrastive import NoiseContrastiveEstimation
from ebm_losses.parallel_tempering import ParallelTemperingContrastiveDivergence
from ebm_losses.regularization import (
    ContrastiveBatch,
    EnergyMagnitude,
    GradientPenalty,
    Regularizer,
)
from ebm_losses.replay_buffer import Initializer, ReplayBuffer
from ebm_losses.replica_exchange import geometric_ladder
from ebm_losses.score_matching import ScoreMatching, SlicedScoreMatching
from ebm_losses.short_run import ShortRunContrastiveDivergence

__version__ = "0.1.0"

__all__ = [
    "ConditionalContrastiveDivergence",
    "ContrastiveBatch",
    "ContrastiveDivergence",
    "ContrastiveObjective",
    "DataJitter",
    "DenoisingScoreMatching",
    "EnergyDiscrepancy",
    "EnergyMagnitude",
    "EnergyMatching",
    "EquilibriumMatching",
    "GradientPenalty",
    "Initializer",
    "JointEnergyLoss",
    "LabelledReplayBuffer",
    "NoiseContrastiveEstimation",
    "ParallelTemperingContrastiveDivergence",
    "PersistentContrastiveDivergence",
    "Regularizer",
    "ReplayBuffer",
    "RunawayGuard",
    "ScoreMatching",
    "ShortRunContrastiveDivergence",
    "SlicedScoreMatching",
    "geometric_ladder",
]
