"""Neural networks as energies.

A model gives one number a state; `BaseModel` adds what they share (shape checks, an optional
Gaussian base term), and a subclass is a network of its author's design.
"""

from ebm_models.base import BaseModel
from ebm_models.features import FourierFeatures
from ebm_models.mlp import MLPEnergy
from ebm_models.rbm import BernoulliRBM
from ebm_models.wrapper import ModuleEnergy

__version__ = "0.1.0"

__all__ = ["BaseModel", "BernoulliRBM", "FourierFeatures", "MLPEnergy", "ModuleEnergy"]
