import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats

from ebm_core import (
    ConfigurationError,
    EBMError,
    Moments,
    NumericalError,
    SampleResult,
    ShapeError,
)
from ebm_utils import autocorrelation_time, ess, mcse, nested_rhat, rhat

FUNCTIONS = (rhat, ess, mcse, autocorrelation_time)


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


@pytest.mark.parametrize("n_draws", (4, 5, 7, 8, 9, 200))
@pytest.mark.parametrize("ties", (False, True))
def test_numbers_are_arviz_stats_own(n_draws, ties):
    draws = autoregression(3, n_draws, 0.7, 2)
    if ties:  # rejected proposals, and values on a grid
        draws[:, 1::2, 0] = draws[:, : n_draws // 2 * 2 : 2, 0]
        draws[..., 1] = draws[..., 1].mul(2).round()
    for i in range(2):
        one = draws[..., i].numpy()
        with np.errstate(divide="ignore"):
            assert rhat(draws)[i].item() == pytest.approx(array_stats.rhat(one), rel=1e-12)
        for kind in ("bulk", "mean"):
            theirs = array_stats.ess(one, method=kind)
            assert ess(draws, kind)[i].item() == pytest.approx(theirs, rel=1e-9)
        tail = array_stats.ess(one, method="tail", prob=(0.05, 0.95))
        assert ess(draws, "tail")[i].item() == pytest.approx(tail)
        assert mcse(draws)[i].item() == pytest.approx(array_stats.mcse(one))
        assert mcse(draws, "sd")[i].item() == pytest.approx(array_stats.mcse(one, method="sd"))


@pytest.mark.parametrize("n_draws", (4, 9, 100))
def test_nested_rhat_is_arviz_stats_own(n_draws):
    draws = autoregression(12, n_draws, 0.5, 2) + torch.arange(12)[:, None, None] // 4
    ids = np.arange(12) // 4
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for i in range(2):
        theirs = array_stats.rhat_nested(draws[..., i].numpy(), superchain_ids=ids)
        for ours in (
            nested_rhat(draws, 3),
            nested_rhat(draws, np.int64(3)),
            nested_rhat(draws, ids.tolist()),
            nested_rhat(draws[shuffled], 7 * torch.from_numpy(ids)[shuffled]),
        ):
            assert ours[i].item() == pytest.approx(theirs, rel=1e-12)


def test_nested_rhat_of_one_draw_tells_forgotten_starts():
    """M of 16: sqrt(1 + 1/16) = 1.031 in equilibrium; starts of variance v make it larger."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randn(256, 3, generator=generator).repeat_interleave(16, dim=0)
    rest = torch.randn(4096, 3, generator=generator)
    for memory in (0.0, 0.5):
        final = memory * starts + (1 - memory**2) ** 0.5 * rest
        result = SampleResult(final, None, torch.zeros(4096, 1), {})
        ratio = (memory**2 + (1 - memory**2) / 16) / (1 - memory**2)
        error = ratio * (2 / 255) ** 0.5  # of the variance of 256 means
        values = nested_rhat(result, superchains=256)
        assert ((values.square() - 1 - ratio) / error).abs().max() < 3.5


def test_nested_rhat_of_moments_is_that_of_the_draws_as_they_are():
    draws = autoregression(8, 50, 0.5, 2) + torch.arange(8)[:, None, None] // 2
    moments = Moments(50, draws.mean(1), (draws - draws.mean(1, keepdim=True)).square().sum(1))
    result = SampleResult(draws[:, -1], None, torch.zeros(8, 1), {}, moments)
    for i in range(2):
        theirs = array_stats.rhat_nested(
            draws[..., i].numpy(), superchain_ids=np.arange(8) // 2, method="identity"
        )
        assert nested_rhat(result, 4)[i].item() == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("superchains", "message"),
    (
        (1, "two superchains or more"),
        (5, "as many chains in each"),
        ([0, 0, 0, 0, 0, 1, 1, 1], "as many chains in each"),
        ([0, 1], "one number a chain"),
        ([0.5] * 8, "integers"),
        (0, "at least 1"),
    ),
)
def test_superchains_that_make_no_sense(superchains, message):
    with pytest.raises(EBMError, match=message):
        nested_rhat(torch.randn(8, 10), superchains)


@pytest.mark.parametrize("rho", (0.0, 0.5, 0.9, -0.4))
def test_ess_and_mcse_of_an_autoregression(rho):
    """Against the exact (1 - rho) / (1 + rho) for each draw."""
    draws = autoregression(16, 2000, rho, 4, seed=1)
    exact = 16 * 2000 * (1 - rho) / (1 + rho)
    torch.testing.assert_close(ess(draws), torch.full((4,), exact).double(), rtol=0.12, atol=0)
    torch.testing.assert_close(
        mcse(draws), torch.full((4,), exact**-0.5).double(), rtol=0.08, atol=0
    )
    torch.testing.assert_close(autocorrelation_time(draws), 32000 / ess(draws, "mean"))
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
    with pytest.raises(ShapeError, match="one element or more"):
        rhat(torch.zeros(4, 10, 0))
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


def test_many_elements_are_taken_some_at_a_time(monkeypatch):
    draws = autoregression(4, 50, 0.5, 5, 3)
    whole = rhat(draws), ess(draws)
    monkeypatch.setattr("ebm_utils.draws._VALUES_AT_ONCE", 400)
    torch.testing.assert_close((rhat(draws), ess(draws)), whole)
