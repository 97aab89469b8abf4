"""Objectives that define a density recover a correlated Gaussian in ten dimensions.

The energy is quadratic with every mean and every entry of the precision free. Each objective is
minimised on one data set, its own noise held fixed, and the estimate is compared with the truth in
units of its standard error, by the sandwich formula H⁻¹ G H⁻¹ (Huber 1967): H is the Hessian of the
objective, G the covariance of its gradients over batches.
"""

import math

import pytest
import torch
from torch import nn

from ebm_core import EnergyFunction
from ebm_losses import (
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    NoiseContrastiveEstimation,
    ScoreMatching,
    SlicedScoreMatching,
)

DIM, N_DATA, SIGMA = 10, 3000, 0.5


class GaussianEnergy(EnergyFunction):
    """½ (x - mean)ᵀ P (x - mean), P symmetric: 10 + 55 parameters in one vector."""

    def __init__(self, mean, precision):
        super().__init__()
        self.rows, self.columns = torch.tril_indices(DIM, DIM)
        free = precision[self.rows, self.columns]
        self.free = nn.Parameter(torch.cat([mean, free]))

    def forward(self, x):
        lower = torch.zeros(DIM, DIM, dtype=x.dtype)
        lower = lower.index_put((self.rows, self.columns), self.free[DIM:])
        precision = lower + lower.T - torch.diag(lower.diagonal())
        centred = x - self.free[:DIM]
        return 0.5 * ((centred @ precision) * centred).sum(1)


class WideGaussian:
    """Noise for noise-contrastive estimation: N(mean, 1.5 times the data's covariance)."""

    def __init__(self, mean, covariance):
        self.law = torch.distributions.MultivariateNormal(mean, 1.5 * covariance)

    def __call__(self, x):
        return -self.law.log_prob(x)

    def exact_sample(self, n, seed=None):
        return self.law.sample((n,))

    def log_normalizer(self):
        return torch.tensor(0.0).double()


@pytest.fixture(scope="module")
def truth():
    """Mean and covariance, with correlations and scales from 0.6 to 1.6."""
    torch.manual_seed(0)
    scales = torch.linspace(0.6, 1.6, DIM).double()
    rotation = torch.linalg.qr(torch.randn(DIM, DIM).double()).Q
    return torch.linspace(-1, 1, DIM).double(), rotation @ torch.diag(scales**2) @ rotation.T


OBJECTIVES = {
    "exact": lambda energy, truth: ScoreMatching(energy),
    "sliced": lambda energy, truth: SlicedScoreMatching(energy, 2),
    "sliced, plain": lambda energy, truth: SlicedScoreMatching(energy, 2, False),
    "denoising": lambda energy, truth: DenoisingScoreMatching(energy, SIGMA),
    "discrepancy, M = 1": lambda energy, truth: EnergyDiscrepancy(energy, n_negatives=1),
    "discrepancy, M = 16": lambda energy, truth: EnergyDiscrepancy(energy),
    "noise-contrastive": lambda energy, truth: NoiseContrastiveEstimation(
        energy, WideGaussian(*truth), log_normalizer=DIM / 2 * math.log(2 * math.pi)
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_precision_of_a_correlated_gaussian_is_recovered(name, truth):
    torch.manual_seed(1)
    mean, covariance = truth
    x = mean + torch.randn(N_DATA, DIM).double() @ torch.linalg.cholesky(covariance).T
    energy = GaussianEnergy(torch.zeros(DIM).double(), torch.eye(DIM).double())
    loss_fn = OBJECTIVES[name](energy, truth)
    parameters = list(loss_fn.parameters())

    def slope(data, seed=2, create_graph=False):
        torch.manual_seed(seed)
        parts = torch.autograd.grad(loss_fn(data), parameters, create_graph=create_graph)
        return torch.cat([part.reshape(-1) for part in parts])

    def closure():
        torch.manual_seed(2)
        optimizer.zero_grad()
        loss = loss_fn(x)
        loss.backward()
        return loss

    optimizer = torch.optim.LBFGS(parameters, max_iter=60, line_search_fn="strong_wolfe")
    optimizer.step(closure)
    remaining = slope(x, create_graph=True)
    rows = [torch.autograd.grad(s, parameters, retain_graph=True) for s in remaining]
    curvature = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    slopes = torch.stack([slope(data, seed) for seed, data in enumerate(x.split(N_DATA // 25))])
    inverse = torch.linalg.inv(curvature)
    errors = (inverse @ torch.cov(slopes.T) @ inverse / len(slopes)).diagonal().sqrt()
    assert ((inverse @ remaining).abs() < 0.1 * errors).all(), "the optimiser has not converged"

    noisy = covariance + (SIGMA**2 * torch.eye(DIM).double() if name == "denoising" else 0.0)
    want = GaussianEnergy(mean, torch.linalg.inv(noisy)).free.detach()
    errors = errors[-len(want) :]
    z = (energy.free.detach() - want) / errors
    assert z.abs().max() < 5
    # The test is sharp: entries of the precision are known to a few per cent of its largest.
    assert errors[DIM:].max() < 0.1 * want[DIM:].max()
