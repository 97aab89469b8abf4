"""Neural networks, and Boltzmann machines, as energies.

A model gives one number a state; `BaseModel` adds what networks share (shape checks, an optional
Gaussian base term), and a subclass is a network of its author's design. `save` and `load` keep any
model as a safetensors file.
"""

from ebm_models.base import BaseModel
from ebm_models.conditional import ClassifierEnergy, ConditionalEnergy, GivenLabels
from ebm_models.convolutional import ConvEnergy, ConvNetwork
from ebm_models.features import FourierFeatures
from ebm_models.mlp import MLPEnergy
from ebm_models.rbm import BernoulliRBM
from ebm_models.residual import ResidualBlock, ResidualNetwork, ResNetEnergy
from ebm_models.saving import constructor_arguments, load, load_into, register, save
from ebm_models.wrapper import ModuleEnergy

__version__ = "0.1.0"

__all__ = [
    "BaseModel",
    "BernoulliRBM",
    "ClassifierEnergy",
    "ConditionalEnergy",
    "ConvEnergy",
    "ConvNetwork",
    "FourierFeatures",
    "GivenLabels",
    "MLPEnergy",
    "ModuleEnergy",
    "ResNetEnergy",
    "ResidualBlock",
    "ResidualNetwork",
    "constructor_arguments",
    "load",
    "load_into",
    "register",
    "save",
]
