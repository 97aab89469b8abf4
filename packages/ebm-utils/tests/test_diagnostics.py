import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from ebm_core import ConfigurationError, EBMError, NumericalError, SampleResult, ShapeError
from ebm_utils import ess, mcse, rhat

FUNCTIONS = (rhat, ess, mcse)


def autoregression(n_chains, n_draws, rho, *event, seed=0):
    """Stationary AR(1) chains of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_chains, n_draws, *event, generator=generator, dtype=torch.float64)
    x = noise.clone()
    for t in range(1, n_draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return x


def result_of(draws, **stats):
    return SampleResult(draws[:, -1], draws, torch.zeros(draws.shape[:2]), stats)


@pytest.mark.parametrize("event", ((), (3,), (2, 3)), ids=str)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_number_for_each_element(function, event):
    draws = autoregression(4, 60, 0.5, *event)
    numbers = function(draws)
    assert numbers.shape == event
    assert numbers.dtype == torch.float64
    if event:
        last = (slice(None), slice(None), *(n - 1 for n in event))
        torch.testing.assert_close(function(draws[last]), numbers.flatten()[-1])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_and_draws_agree(function):
    draws = autoregression(4, 50, 0.5, 3).float().requires_grad_()
    torch.testing.assert_close(function(result_of(draws)), function(draws))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arrays_are_taken(function):
    draws = autoregression(4, 50, 0.5, 3)
    array = draws.numpy()
    read_only = array.copy()
    read_only.flags.writeable = False
    for given in (array, read_only, array[::-1], array.tolist()):
        torch.testing.assert_close(function(given), function(draws), rtol=1e-3, atol=0)
    for wrong in ("draws", None, array.astype(complex), np.array([["a"] * 5] * 4)):
        with pytest.raises(EBMError, match="wanted"):
            function(wrong)


def test_numbers_are_arviz_stats_own():
    draws = autoregression(3, 200, 0.7, 2)
    for i in range(2):
        one = draws[..., i].numpy()
        assert rhat(draws)[i].item() == pytest.approx(array_stats.rhat(one))
        assert ess(draws)[i].item() == pytest.approx(array_stats.ess(one))
        tail = array_stats.ess(one, method="tail", prob=(0.05, 0.95))
        assert ess(draws, "tail")[i].item() == pytest.approx(tail)
        assert mcse(draws)[i].item() == pytest.approx(array_stats.mcse(one))
        assert mcse(draws, "sd")[i].item() == pytest.approx(array_stats.mcse(one, method="sd"))


@pytest.mark.parametrize("rho", (0.0, 0.5, 0.9, -0.4))
def test_ess_and_mcse_of_an_autoregression(rho):
    """Against the exact (1 - rho) / (1 + rho) for each draw."""
    draws = autoregression(16, 2000, rho, 4, seed=1)
    exact = 16 * 2000 * (1 - rho) / (1 + rho)
    torch.testing.assert_close(ess(draws), torch.full((4,), exact).double(), rtol=0.12, atol=0)
    torch.testing.assert_close(
        mcse(draws), torch.full((4,), exact**-0.5).double(), rtol=0.08, atol=0
    )
    assert (rhat(draws) < 1.03).all()


def test_rhat_sees_chains_that_disagree_in_place_or_scale():
    draws = autoregression(4, 500, 0.3, 3)
    draws[0, :, 0] += 2
    draws[0, :, 1] *= 4
    values = rhat(draws)
    assert (values[:2] > 1.05).all()
    assert values[2] < 1.01


def test_integer_draws():
    spins = torch.where(autoregression(4, 400, 0.2, 2) > 0, 1, -1).to(torch.int8)
    assert (rhat(spins) < 1.02).all()
    assert (ess(spins) > 400).all()


def test_chains_that_stand_still_each_at_its_own_place():
    draws = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0)).expand(5, 20, 2)
    assert (rhat(draws) > 1e6).all()
    assert (ess(draws) < 10).all()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_element_that_never_varies_has_no_number(function):
    draws = autoregression(4, 50, 0.5, 3)
    draws[..., 1] = 0.25
    assert function(draws).isnan().tolist() == [False, True, False]
    assert function(torch.ones(4, 10)).isnan()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("bad", (math.nan, math.inf))
def test_draws_that_are_not_finite_raise(function, bad):
    draws = autoregression(4, 50, 0.5, 3)
    draws[2, 7, 1] = bad
    with pytest.raises(NumericalError, match="of 1 of 4 chains .* first those of chain 2"):
        function(draws)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_too_little_is_refused(function):
    with pytest.raises(ShapeError, match="at least . chain"):
        function(torch.randn(4, 3, 2))
    with pytest.raises(ShapeError, match=r"draws\[None\]"):
        function(torch.randn(100))
    final = SampleResult(torch.zeros(4, 2), None, torch.zeros(4, 1), {})
    with pytest.raises(ConfigurationError, match='keep="trajectory"'):
        function(final)


def test_one_chain_has_no_rhat_but_an_ess():
    draws = autoregression(1, 500, 0.0, 2)
    with pytest.raises(ShapeError, match="1 chains"):
        rhat(draws)
    assert (ess(draws) > 250).all()


@pytest.mark.parametrize("call", (lambda x: ess(x, "middle"), lambda x: mcse(x, "median")))
def test_unknown_kinds_raise(call):
    with pytest.raises(EBMError, match="one of"):
        call(torch.randn(4, 10))


def test_numpys_settings_stay(recwarn):
    before = np.geterr()
    rhat(torch.zeros(4, 1, 1).expand(4, 10, 1) + torch.arange(4.0)[:, None, None])
    assert np.geterr() == before
    assert not recwarn
