"""Data sets, diagnostics, quadrature and figures for energy-based models."""

from ebm_utils.conversion import to_arviz
from ebm_utils.datasets import (
    Checkerboard,
    Circles,
    DensityDataset,
    EightGaussians,
    GaussianMixture,
    Grid,
    Pinwheel,
    Spirals,
    SwissRoll,
    SyntheticDataset,
    TwoMoons,
)
from ebm_utils.diagnostics import ess, mcse, rhat
from ebm_utils.plots import (
    plot_landscape,
    plot_samples,
    plot_traces,
    plot_training,
    plot_trajectories,
)
from ebm_utils.quadrature import exact_kl, log_partition

__version__ = "0.1.0"

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
    "ess",
    "exact_kl",
    "log_partition",
    "mcse",
    "plot_landscape",
    "plot_samples",
    "plot_traces",
    "plot_training",
    "plot_trajectories",
    "rhat",
    "to_arviz",
]
