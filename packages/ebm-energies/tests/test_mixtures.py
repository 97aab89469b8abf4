import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ebm_core import EBMError
from ebm_energies import GaussianMixture

MEANS = torch.tensor([[0.0, 0.0], [5.0, 1.0], [-3.0, 4.0]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[1.0, 0.3], [0.3, 0.5]], [[0.2, -0.1], [-0.1, 0.2]], [[2.0, 0.0], [0.0, 1.0]]],
    dtype=torch.float64,
)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def test_is_the_density_that_scipy_gives() -> None:
    energy = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
    x = 4 * torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    density = sum(
        w * stats.multivariate_normal(m, c).pdf(x)
        for w, m, c in zip(WEIGHTS.tolist(), MEANS, COVARIANCES, strict=True)
    )
    np.testing.assert_allclose(-energy(x), np.log(density), rtol=1e-10)
    assert energy.log_normalizer() == 0
    assert torch.autograd.gradcheck(energy, x[:4].clone().requires_grad_())


def test_far_from_every_component_the_nearest_one_counts() -> None:
    energy = GaussianMixture([[-1.0], [1.0]])
    x = torch.tensor([[1e4], [-1e4], [1e10], [-1e15]])
    torch.testing.assert_close(energy.gradient(x), x, rtol=1e-3, atol=0)
    assert energy(torch.tensor([[1e25]])).isinf()


def test_variances_stand_for_diagonal_covariances() -> None:
    variances = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)
    thin = GaussianMixture(MEANS, variances)
    dense = GaussianMixture(MEANS, torch.diag_embed(variances))
    torch.testing.assert_close(thin(MEANS), dense(MEANS))
    torch.testing.assert_close(thin.covariance(), dense.covariance())


def test_draws_fall_to_the_components_by_weight() -> None:
    n = 100_000
    energy = GaussianMixture(10 * MEANS, COVARIANCES, WEIGHTS)
    draws = energy.exact_sample(n, seed=0)
    nearest = torch.cdist(draws, 10 * MEANS).argmin(1).bincount()
    z = (nearest / n - WEIGHTS) / (WEIGHTS * (1 - WEIGHTS) / n).sqrt()
    assert z.abs().max() < 4.5


def test_means_can_be_learned() -> None:
    means = nn.Parameter(MEANS.clone())
    energy = GaussianMixture(means, COVARIANCES)
    assert [p is means for p in energy.parameters()] == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ({"weights": [0.5, 0.4, 0.2]}, "weights sum to 1.1"),
        ({"weights": [0.5, 0.7, -0.2]}, "smallest is -0.2"),
        ({"weights": [0.5, 0.5]}, "weights has shape"),
        ({"weights": [math.nan, 0.5, 0.5]}, "weights holds NaN"),
        ({"weights": nn.Parameter(WEIGHTS)}, "nn.Parameter"),
        ({"covariances": COVARIANCES[:2]}, "covariances has shape"),
        ({"covariances": COVARIANCES[0]}, "covariances has shape"),
        ({"covariances": -COVARIANCES}, "not positive definite"),
        ({"covariances": COVARIANCES + torch.tensor([[0.0, 0.1], [0.0, 0.0]])}, "not symmetric"),
        ({"covariances": COVARIANCES * math.nan}, "NaN"),
        ({"means": MEANS[0]}, "means has shape"),
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_parameters(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(EBMError, match=message):
        GaussianMixture(**{"means": MEANS, "covariances": COVARIANCES, **arguments})
