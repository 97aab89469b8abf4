import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn

from ebm_core import EBMError
from ebm_energies import BayesianLogisticRegression

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(60, 4, dtype=torch.float64, generator=GENERATOR)
LABELS = (torch.rand(60, dtype=torch.float64, generator=GENERATOR) < 0.6).long()


def test_is_the_negative_log_posterior_that_scipy_gives() -> None:
    energy = BayesianLogisticRegression(FEATURES, LABELS, prior_scale=torch.tensor(2.0).double())
    w = 3 * torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chances = 1 / (1 + np.exp(-(w @ FEATURES.mT).numpy()))
    log_likelihood = stats.bernoulli(chances).logpmf(LABELS.numpy()).sum(1)
    log_prior = stats.norm(0, 2).logpdf(w).sum(1) + 4 * math.log(2 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(energy(w), -(log_likelihood + log_prior), rtol=1e-9)
    assert torch.autograd.gradcheck(energy, w.requires_grad_())


@pytest.mark.parametrize("prior_scale", (0.5, 50.0))
def test_minimum_is_that_of_a_general_optimiser(prior_scale: float) -> None:
    labels = (FEATURES[:, 0] > 0).long()  # separable: only the prior keeps the coefficients finite
    energy = BayesianLogisticRegression(FEATURES, labels, prior_scale).double()
    found = optimize.minimize(
        lambda w: energy(torch.as_tensor(w)[None]).item(),
        np.zeros(4),
        jac=lambda w: energy.gradient(torch.as_tensor(w)[None])[0].numpy(),
        tol=1e-12,
    )
    minimum = energy.minima()
    assert energy(minimum).item() <= found.fun + 1e-9
    assert energy.gradient(minimum).abs().max() < 1e-7


def test_confident_mistakes_cost_their_margin() -> None:
    energy = BayesianLogisticRegression([[1.0]], [0], prior_scale=1e10)
    value, gradient = energy.energy_and_gradient(torch.tensor([[1e4], [-1e4]]))
    assert value.tolist() == pytest.approx([1e4, 0.0])
    assert gradient.flatten().tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((FEATURES, LABELS + 1), "labels hold 2"),
        ((FEATURES, LABELS - 0.5), "labels hold"),
        ((FEATURES, LABELS[:5]), "labels has shape"),
        ((FEATURES[0], LABELS), "features has shape"),
        ((FEATURES[:, :0], LABELS), "features has shape"),
        ((FEATURES * math.nan, LABELS), "NaN"),
        ((FEATURES, LABELS, 0.0), "prior_scale is 0"),
        ((nn.Parameter(FEATURES), LABELS), "features is an nn.Parameter"),
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_parameters(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(EBMError, match=message):
        BayesianLogisticRegression(*arguments)
