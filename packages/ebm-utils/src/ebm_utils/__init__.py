"""Training, data sets, diagnostics, quadrature and figures for energy-based models."""

from ebm_utils.chains import ModeOccupancy, bfmi, mode_occupancy, stuck_chains
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
from ebm_utils.diagnostics import autocorrelation_time, ess, mcse, nested_rhat, rhat
from ebm_utils.discrepancies import (
    energy_distance,
    kernel_stein_discrepancy,
    mmd,
    sliced_wasserstein,
)
from ebm_utils.evaluation import auroc, expected_calibration_error, ood_auroc
from ebm_utils.image_grid import plot_images
from ebm_utils.plots import (
    plot_landscape,
    plot_samples,
    plot_traces,
    plot_training,
    plot_trajectories,
)
from ebm_utils.quadrature import exact_kl, exact_nll, log_partition
from ebm_utils.significance import Significance, permutation_test, stein_test
from ebm_utils.stopping import Check, StopWhen
from ebm_utils.summaries import Summary, Table, summary
from ebm_utils.training import FitResult, ParameterAverage, cosine_schedule, fit

__version__ = "0.1.0"

__all__ = [
    "Check",
    "Checkerboard",
    "Circles",
    "DensityDataset",
    "EightGaussians",
    "FitResult",
    "GaussianMixture",
    "Grid",
    "ModeOccupancy",
    "ParameterAverage",
    "Pinwheel",
    "Significance",
    "Spirals",
    "StopWhen",
    "Summary",
    "SwissRoll",
    "SyntheticDataset",
    "Table",
    "TwoMoons",
    "auroc",
    "autocorrelation_time",
    "bfmi",
    "cosine_schedule",
    "energy_distance",
    "ess",
    "exact_kl",
    "exact_nll",
    "expected_calibration_error",
    "fit",
    "kernel_stein_discrepancy",
    "log_partition",
    "mcse",
    "mmd",
    "mode_occupancy",
    "nested_rhat",
    "ood_auroc",
    "permutation_test",
    "plot_images",
    "plot_landscape",
    "plot_samples",
    "plot_traces",
    "plot_training",
    "plot_trajectories",
    "rhat",
    "sliced_wasserstein",
    "stein_test",
    "stuck_chains",
    "summary",
    "to_arviz",
]
