"""Data sets in the plane, seeded and reproducible, most of them with an exact density."""

from ebm_utils.datasets.base import DensityDataset, SyntheticDataset
from ebm_utils.datasets.checkers import Checkerboard
from ebm_utils.datasets.gaussians import EightGaussians, GaussianMixture, Grid, TwoMoons
from ebm_utils.datasets.rings import Circles
from ebm_utils.datasets.spirals import Pinwheel, Spirals, SwissRoll

__all__ = [
    "Checkerboard",
    "Circles",
    "DensityDataset",
    "EightGaussians",
    "GaussianMixture",
    "Grid",
    "Pinwheel",
    "Spirals",
    "SwissRoll",
    "SyntheticDataset",
    "TwoMoons",
]
