"""Analytic energies for PyTorch with known normalisers, moments and exact draws."""

from ebm_energies.box import UniformBox
from ebm_energies.distributions import DistributionEnergy
from ebm_energies.funnels import Banana, NealFunnel, Ring
from ebm_energies.gaussian import Gaussian, IllConditionedGaussian, LowRankGaussian
from ebm_energies.heavy_tails import StudentT
from ebm_energies.landscapes import Ackley, Himmelblau, MullerBrown, Rastrigin, StyblinskiTang
from ebm_energies.lattices import Phi4Lattice
from ebm_energies.mixtures import GaussianMixture
from ebm_energies.particles import LennardJonesCluster
from ebm_energies.regression import BayesianLogisticRegression
from ebm_energies.rosenbrock import Rosenbrock
from ebm_energies.separable import SeparableEnergy
from ebm_energies.wells import DoubleWell, Harmonic

__version__ = "0.1.0"

__all__ = [
    "Ackley",
    "Banana",
    "BayesianLogisticRegression",
    "DistributionEnergy",
    "DoubleWell",
    "Gaussian",
    "GaussianMixture",
    "Harmonic",
    "Himmelblau",
    "IllConditionedGaussian",
    "LennardJonesCluster",
    "LowRankGaussian",
    "MullerBrown",
    "NealFunnel",
    "Phi4Lattice",
    "Rastrigin",
    "Ring",
    "Rosenbrock",
    "SeparableEnergy",
    "StudentT",
    "StyblinskiTang",
    "UniformBox",
]
