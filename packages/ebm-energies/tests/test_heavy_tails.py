import math

import numpy as np
import pytest
import torch
from scipy import stats

from ebm_core import ConfigurationError, EBMError
from ebm_energies import StudentT

LOCATION = torch.tensor([1.0, -1.0], dtype=torch.float64)
SCALE = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize("df", (0.5, 1.0, 3.0, 30.0))
def test_is_the_density_that_scipy_gives(df: float) -> None:
    energy = StudentT(df, LOCATION, SCALE)
    x = energy.exact_sample(200, seed=0)
    reference = stats.multivariate_t(LOCATION, SCALE, df=df)
    np.testing.assert_allclose(-energy(x) - energy.log_normalizer(), reference.logpdf(x), rtol=1e-9)
    assert torch.autograd.gradcheck(energy, x[:3].clone().requires_grad_())


@pytest.mark.parametrize("df", (0.5, 3.0))
def test_draws_have_the_right_marginals(df: float) -> None:
    draws = StudentT(df, LOCATION, SCALE).exact_sample(50_000, seed=1)
    for k in range(2):
        marginal = stats.t(df, LOCATION[k].item(), SCALE[k, k].sqrt().item())
        assert stats.kstest(draws[:, k].numpy(), marginal.cdf).pvalue > 1e-6
    oblique = stats.t(df, 0, (SCALE.sum()).sqrt().item())  # the sum of both elements, centred
    assert stats.kstest(draws.sum(1).numpy(), oblique.cdf).pvalue > 1e-6


@pytest.mark.parametrize("df", (1e3, 1e5, 1e8))
def test_many_degrees_of_freedom_keep_their_digits_in_float32(df: float) -> None:
    found = StudentT(df, torch.zeros(3)).log_normalizer()
    wanted = StudentT(df, torch.zeros(3).double()).log_normalizer()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_moments_exist_one_by_one() -> None:
    torch.testing.assert_close(StudentT(5.0, LOCATION, SCALE).covariance(), SCALE * 5 / 3)
    torch.testing.assert_close(StudentT(1.5, LOCATION).mean(), LOCATION)
    with pytest.raises(ConfigurationError, match="no mean"):
        StudentT(1.0, LOCATION).mean()
    with pytest.raises(ConfigurationError, match="no covariance"):
        StudentT(2.0, LOCATION).covariance()


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((0.0, LOCATION), "df is 0"),
        ((math.nan, LOCATION), "df is nan"),
        ((3.0, LOCATION, -SCALE), "not positive definite"),
        ((3.0, LOCATION, torch.ones(3)), "shape"),
        ((3.0, torch.zeros(2, 2)), "location has shape"),
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_parameters(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(EBMError, match=message):
        StudentT(*arguments)
