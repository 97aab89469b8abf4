import math

import pytest
import torch
from scipy import integrate

from ebm_core import ConfigurationError
from ebm_energies import DoubleWell, Harmonic


@pytest.mark.parametrize(("height", "b"), ((2.0, 1.0), (0.01, 3.0), (500.0, 0.5), (1e6, 1.0)))
def test_double_well_against_adaptive_quadrature(height: float, b: float) -> None:
    energy = DoubleWell(torch.tensor(height, dtype=torch.float64), b, dim=3).double()
    top = math.sqrt(b * b + math.sqrt(60 / height))
    width = 1 / math.sqrt(8 * height * b * b)

    def integral(f: object) -> float:
        points = [0, max(b - 10 * width, 0), b, min(b + 10 * width, top)]
        return 2 * integrate.quad(f, 0, top, points=points, epsabs=0, epsrel=1e-11, limit=500)[0]

    z = integral(lambda x: math.exp(-height * (x * x - b * b) ** 2))
    second = integral(lambda x: x * x * math.exp(-height * (x * x - b * b) ** 2)) / z
    assert energy.log_normalizer().item() == pytest.approx(3 * math.log(z), rel=1e-9)
    assert energy.covariance()[1, 1].item() == pytest.approx(second, rel=1e-9)
    assert energy.exact_sample(20_000, seed=0).square().mean().item() == pytest.approx(
        second, rel=0.05
    )


def test_double_well_is_its_formula() -> None:
    x = torch.tensor([[0.5, -1.5]])
    assert DoubleWell(2.0, 1.0)(x).item() == pytest.approx(2 * (0.75**2 + 1.25**2))
    assert DoubleWell(dim=3).minima().shape == (8, 3)


def test_log_normalizer_is_differentiable_in_the_parameters() -> None:
    height = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    energy = DoubleWell(height, torch.tensor(1.0, dtype=torch.float64), dim=1)
    (gradient,) = torch.autograd.grad(energy.log_normalizer(), height)
    draws = energy.exact_sample(200_000, seed=0)
    derivative = -(draws.square() - 1).square()  # d log Z / dh = -E[(x² - b²)²]
    z = (gradient - derivative.mean()) / (derivative.std() / math.sqrt(len(draws)))
    assert abs(z.item()) < 4.5


def test_without_a_dimension_what_depends_on_it_raises() -> None:
    for energy in (DoubleWell(), Harmonic()):
        for method in ("log_normalizer", "mean", "covariance", "minima"):
            with pytest.raises(ConfigurationError, match="give dim="):
                getattr(energy, method)()
        with pytest.raises(ConfigurationError, match="give dim="):
            energy.exact_sample(3)


@pytest.mark.parametrize(
    "make",
    (
        lambda: DoubleWell(-1.0),
        lambda: DoubleWell(b=0.0),
        lambda: DoubleWell(float("nan")),
        lambda: DoubleWell(dim=0),
        lambda: DoubleWell(dim=2.0),
        lambda: DoubleWell(torch.ones(2)),
        lambda: DoubleWell(dim=30).minima(),
        lambda: Harmonic(0.0),
        lambda: Harmonic("stiff"),
    ),
)
def test_wrong_parameters(make: object) -> None:
    with pytest.raises(ConfigurationError):
        make()
