"""Markov chain samplers for any energy written in PyTorch."""

from ebm_samplers.acceptance import Verdict, metropolis
from ebm_samplers.adaptation import StepSizeAdaptation
from ebm_samplers.annealed import AnnealedLangevin
from ebm_samplers.automatic import sample
from ebm_samplers.captured import without_graphs
from ebm_samplers.engines import Explanation
from ebm_samplers.fused import FusedEvaluator, clear_cache, fuse
from ebm_samplers.gibbs import BlockGibbs
from ebm_samplers.hamiltonian import HamiltonianMonteCarlo
from ebm_samplers.langevin import MALA, LangevinDynamics
from ebm_samplers.noise import fill_normals, fill_uniforms
from ebm_samplers.nuts import NUTS
from ebm_samplers.philox import philox4x32
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.schedules import Schedule, Staircase
from ebm_samplers.states import Context, State, Statistics, per_chain
from ebm_samplers.streams import Stream
from ebm_samplers.underdamped import UnderdampedLangevin
from ebm_samplers.warmup import WarmUp, warm_up

__version__ = "0.1.0"

__all__ = [
    "MALA",
    "NUTS",
    "AnnealedLangevin",
    "BlockGibbs",
    "Context",
    "Explanation",
    "FusedEvaluator",
    "HamiltonianMonteCarlo",
    "LangevinDynamics",
    "MarkovSampler",
    "Schedule",
    "Staircase",
    "State",
    "Statistics",
    "StepSizeAdaptation",
    "Stream",
    "UnderdampedLangevin",
    "Verdict",
    "WarmUp",
    "clear_cache",
    "fill_normals",
    "fill_uniforms",
    "fuse",
    "metropolis",
    "per_chain",
    "philox4x32",
    "sample",
    "warm_up",
    "without_graphs",
]
