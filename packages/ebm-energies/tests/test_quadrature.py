import math

import pytest
from scipy import stats

from ebm_core import NumericalError, make_generator
from ebm_energies._quadrature import tabulate


def test_integral_and_moments_of_a_normal_density() -> None:
    line = tabulate(lambda x: 0.5 * ((x - 1) / 0.01).square(), -4.0, 5.0)
    assert line.log_integral().item() == pytest.approx(0.5 * math.log(2 * math.pi) + math.log(0.01))
    assert line.expectation(line.nodes).item() == pytest.approx(1.0)
    draws = line.sample((20_000,), make_generator(0))
    assert stats.kstest(draws.numpy(), stats.norm(1, 0.01).cdf).pvalue > 1e-6


def test_the_step_is_halved_until_the_density_is_resolved() -> None:
    line = tabulate(lambda x: 0.5 * (x / 1e-5).square(), -1.0, 1.5)
    assert line.log_integral().item() == pytest.approx(0.5 * math.log(2 * math.pi) + math.log(1e-5))


def test_a_density_too_narrow_is_refused() -> None:
    with pytest.raises(NumericalError, match="less steep"):
        tabulate(lambda x: 0.5 * ((x - 0.3) / 1e-8).square(), -1.0, 1.0)
