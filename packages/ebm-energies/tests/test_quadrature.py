import math

import pytest
from scipy import stats

from ebm_core import ConfigurationError, NumericalError, make_generator
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


def test_a_kink_converges_slower_and_is_taken() -> None:
    line = tabulate(lambda u: u.abs(), -40.0, 40.0)
    assert line.log_integral().item() == pytest.approx(math.log(2.0), abs=1e-9)


def test_intervals_that_make_no_sense_are_named() -> None:
    with pytest.raises(NumericalError, match="1 nats above its minimum.*wider interval"):
        tabulate(lambda u: u.square(), -1.0, 1.0)
    with pytest.raises(ConfigurationError, match="low < high"):
        tabulate(lambda u: u.square(), 5.0, -5.0)
