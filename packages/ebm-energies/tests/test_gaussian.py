import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ebm_core import ConfigurationError, EBMError, ShapeError
from ebm_energies import Gaussian, IllConditionedGaussian, LowRankGaussian

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-1.0, 0.3, 0.7]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.mT
STATES = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

FORMS = (
    {"covariance": COVARIANCE},
    {"precision": torch.linalg.inv(COVARIANCE)},
    {"cholesky": ROOT},
)
DIAGONAL_FORMS = (
    {"covariance": torch.tensor([4.0, 0.25, 1.0])},
    {"precision": torch.tensor([0.25, 4.0, 1.0])},
    {"cholesky": torch.tensor([2.0, 0.5, 1.0])},
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
def test_every_form_is_the_density_that_scipy_gives(form: dict[str, torch.Tensor]) -> None:
    energy = Gaussian(MEAN, **form)
    log_density = -energy(STATES) - energy.log_normalizer()
    reference = stats.multivariate_normal(MEAN, COVARIANCE).logpdf(STATES)
    np.testing.assert_allclose(log_density, reference, rtol=1e-10)
    torch.testing.assert_close(energy.covariance(), COVARIANCE)
    torch.testing.assert_close(energy.mean(), MEAN)


@pytest.mark.parametrize("form", DIAGONAL_FORMS, ids=lambda form: next(iter(form)))
def test_diagonals_equal_dense_matrices(form: dict[str, torch.Tensor]) -> None:
    ((kind, diagonal),) = form.items()
    thin, dense = Gaussian(MEAN.float(), **form), Gaussian(MEAN.float(), **{kind: diagonal.diag()})
    x = STATES.float()
    assert thin.whitening.shape == (3,)
    torch.testing.assert_close(thin(x), dense(x))
    torch.testing.assert_close(thin.log_normalizer(), dense.log_normalizer())
    torch.testing.assert_close(thin.covariance(), torch.tensor([4.0, 0.25, 1.0]).diag())
    torch.testing.assert_close(thin.exact_sample(5, seed=1), dense.exact_sample(5, seed=1))


def test_low_rank_equals_dense() -> None:
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    diagonal = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    low_rank = LowRankGaussian(MEAN, factor, diagonal)
    dense = Gaussian(MEAN, factor @ factor.mT + diagonal.diag())
    torch.testing.assert_close(low_rank(STATES), dense(STATES))
    torch.testing.assert_close(low_rank.gradient(STATES), dense.gradient(STATES))
    torch.testing.assert_close(low_rank.log_normalizer(), dense.log_normalizer())
    torch.testing.assert_close(low_rank.covariance(), dense.covariance())


def test_low_rank_keeps_its_digits_in_float32() -> None:
    factor = torch.tensor([[1000.0], [1000.0]])
    energy = LowRankGaussian(torch.zeros(2), factor, torch.ones(2))
    x = torch.tensor([[700.0, 701.0], [700.0, 699.0]])
    torch.testing.assert_close(energy(x), energy.double()(x.double()).float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("rotation_seed", (None, 4))
def test_ill_conditioned_spectrum(rotation_seed: int | None) -> None:
    energy = IllConditionedGaussian(4, 1e4, rotation_seed=rotation_seed).double()
    spectrum = torch.linalg.eigvalsh(energy.covariance())
    expected = torch.logspace(-4, 0, 4, dtype=torch.float64)
    torch.testing.assert_close(spectrum, expected, rtol=1e-4, atol=0)
    assert (energy.whitening.ndim == 1) == (rotation_seed is None)


def test_parameters_stay_parameters() -> None:
    mean = nn.Parameter(torch.zeros(2))
    energy = Gaussian(mean)
    assert [p is mean for p in energy.parameters()] == [True]
    energy.whitening = nn.Parameter(energy.whitening)
    loss = energy(torch.ones(4, 2)).mean() + energy.log_normalizer()
    loss.backward()
    torch.testing.assert_close(energy.whitening.grad, torch.zeros(2))  # variance 1 is the best fit
    torch.testing.assert_close(mean.grad, -torch.ones(2))


def test_dtype_and_numbers_follow_what_is_given() -> None:
    assert Gaussian([0.1], [[1.0]]).location.dtype == torch.float32
    double = Gaussian([0.1], torch.ones(1, 1, dtype=torch.float64))
    assert double.location.item() == 0.1
    assert Gaussian(np.zeros(2)).location.dtype == torch.float64
    assert len(Gaussian(torch.zeros(2)).covariance()) == 2


@pytest.mark.parametrize("name", ("factor", "diagonal"))
def test_low_rank_refuses_parameters_that_it_would_not_learn(name: str) -> None:
    arguments = {"factor": torch.ones(2, 1), "diagonal": torch.ones(2)}
    with pytest.raises(ConfigurationError, match=f"{name} is an nn.Parameter"):
        LowRankGaussian(torch.zeros(2), **{**arguments, name: nn.Parameter(arguments[name])})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_low_rank_is_where_its_mean_is() -> None:
    energy = LowRankGaussian(torch.zeros(2, device="cuda"), torch.ones(2, 1), torch.ones(2))
    assert {buffer.device.type for buffer in energy.buffers()} == {"cuda"}
    assert energy(torch.ones(3, 2, device="cuda")).device.type == "cuda"


NAN = math.nan
WRONG = (
    ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, "not positive definite"),
    ({"precision": [[1.0, 2.0], [2.0, 1.0]]}, "not positive definite"),
    ({"covariance": [[1.0, 1.0], [1.0, 1.0]]}, "not positive definite"),
    ({"covariance": [[1.0, 0.5], [0.4, 1.0]]}, "not symmetric"),
    ({"precision": [[1.0, 0.5], [0.4, 1.0]]}, "not symmetric"),
    ({"covariance": [[1.0, NAN], [NAN, 1.0]]}, "NaN"),
    ({"covariance": [1.0, -1.0]}, "covariance has the element -1"),
    ({"precision": [0.0, 1.0]}, "precision has the element 0"),
    ({"cholesky": [[1.0, 0.5], [0.0, 1.0]]}, "not lower triangular"),
    ({"cholesky": [[1.0, 0.0], [0.5, -1.0]]}, "not lower triangular"),
    ({"covariance": [1.0, 1.0, 1.0]}, r"shape \(3,\)"),
    ({"covariance": 1.0}, "shape"),
    ({"covariance": "wide"}, "covariance is 'wide'"),
    ({"covariance": [1.0, 1.0], "precision": [1.0, 1.0]}, "covariance and precision were given"),
    ({"cholesky": nn.Parameter(torch.eye(2))}, "nn.Parameter"),
)


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else ""
)
def test_wrong_matrices(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(EBMError, match=message):
        Gaussian(torch.zeros(2), **arguments)


@pytest.mark.parametrize(
    ("make", "error"),
    (
        (lambda: Gaussian(torch.zeros(2, 2)), ShapeError),
        (lambda: Gaussian([0.0, math.inf]), ConfigurationError),
        (lambda: LowRankGaussian(torch.zeros(2), torch.ones(3, 1), torch.ones(2)), ShapeError),
        (lambda: LowRankGaussian(torch.zeros(2), torch.ones(2), torch.ones(2)), ShapeError),
        (lambda: LowRankGaussian(torch.zeros(2), torch.ones(2, 1), [1.0, 0.0]), ConfigurationError),
        (lambda: LowRankGaussian(torch.zeros(2), [[NAN], [0.0]], [1.0, 1.0]), ConfigurationError),
        (lambda: IllConditionedGaussian(1), ConfigurationError),
        (lambda: IllConditionedGaussian(3, 0.5), ConfigurationError),
        (lambda: Gaussian(torch.zeros(2)).exact_sample(0), ConfigurationError),
        (lambda: Gaussian(torch.zeros(2)).exact_sample(3, seed=-1), ConfigurationError),
    ),
)
def test_wrong_arguments(make: object, error: type[EBMError]) -> None:
    with pytest.raises(error):
        make()
