"""The contracts by which the components of energy-based modelling meet."""

from ebm_core.composition import MixtureEnergy, ScaledEnergy, SumEnergy
from ebm_core.energy import EnergyFunction, EnergyLike, as_energy, evaluation_mode, state_options
from ebm_core.errors import ConfigurationError, EBMError, NumericalError, ShapeError, SupportError
from ebm_core.protocols import (
    BaseLoss,
    BaseSampler,
    BipartiteBinary,
    BlockConditionals,
    Evaluator,
    ExactDistribution,
    Sampler,
    TemperedSampler,
    Terms,
)
from ebm_core.results import Moments, SampleResult
from ebm_core.seeding import draw_key, make_generator
from ebm_core.support import is_discrete, require_continuous, require_discrete, spin

__version__ = "0.1.0"

__all__ = [
    "BaseLoss",
    "BaseSampler",
    "BipartiteBinary",
    "BlockConditionals",
    "ConfigurationError",
    "EBMError",
    "EnergyFunction",
    "EnergyLike",
    "Evaluator",
    "ExactDistribution",
    "MixtureEnergy",
    "Moments",
    "NumericalError",
    "SampleResult",
    "Sampler",
    "ScaledEnergy",
    "ShapeError",
    "SumEnergy",
    "SupportError",
    "TemperedSampler",
    "Terms",
    "as_energy",
    "draw_key",
    "evaluation_mode",
    "is_discrete",
    "make_generator",
    "require_continuous",
    "require_discrete",
    "spin",
    "state_options",
]
