import math

import pytest
import scipy.stats
import torch

from ebm_core import ConfigurationError, NumericalError, SampleResult, ShapeError
from ebm_core.testing import QuadraticEnergy
from ebm_utils import (
    energy_distance,
    kernel_stein_discrepancy,
    mmd,
    permutation_test,
    sliced_wasserstein,
    stein_test,
)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def z_score(values, exact):
    values = torch.stack(list(values))
    return abs((values.mean() - exact) / (values.std() / len(values) ** 0.5)).item()


def pairs(mean, scale, dim, repetitions=200, n=40, m=60):
    """Sets from N(0, 1) and N(mean, scale²) in each dimension."""
    for i in range(repetitions):
        yield noise(n, dim, seed=i), mean + scale * noise(m, dim, seed=10_000 + i)


def folded_mean(mean, scale):
    """E|N(mean, scale²)|."""
    normal = scipy.stats.norm
    z = mean / scale
    return 2 * scale * normal.pdf(z) + mean * (1 - 2 * normal.cdf(-z))


@pytest.mark.parametrize("mean", (0.0, 0.7))
def test_mmd_of_gaussians(mean):
    """The unbiased form against the closed form, as a mean over repetitions."""
    scale, width, dim = 1.5, 0.8, 3

    def expected_kernel(offset, variance):
        total = width**2 + variance
        return (width**2 / total) ** (dim / 2) * math.exp(-dim * offset**2 / (2 * total))

    exact = (
        expected_kernel(0, 2.0)
        + expected_kernel(0, 2 * scale**2)
        - 2 * expected_kernel(mean, 1 + scale**2)
    )
    values = [mmd(x, y, bandwidth=width) for x, y in pairs(mean, scale, dim)]
    assert z_score(values, exact) < 3.5
    biased = [mmd(x, y, bandwidth=width, unbiased=False) for x, y in pairs(mean, scale, dim)]
    assert z_score(biased, exact) > 10
    assert min(biased) > 0


@pytest.mark.parametrize("mean", (0.0, 0.7))
def test_energy_distance_of_gaussians(mean):
    scale = 1.5
    exact = (
        2 * folded_mean(mean, (1 + scale**2) ** 0.5)
        - folded_mean(0, 2**0.5)
        - folded_mean(0, 2**0.5 * scale)
    )
    values = [energy_distance(x, y) for x, y in pairs(mean, scale, 1)]
    assert z_score(values, exact) < 3.5


def test_energy_distance_is_the_square_of_scipys():
    x, y = noise(50, 1), noise(70, 1, seed=1) * 2
    theirs = scipy.stats.energy_distance(x[:, 0], y[:, 0])
    ours = energy_distance(x, y, unbiased=False)
    assert ours.item() == pytest.approx(theirs**2, rel=1e-6)


def test_pairs_are_averaged_as_they_are_defined():
    """Against sums over all pairs written out; many tiles."""
    x, y = noise(23, 2), noise(31, 2, seed=1) + 0.3

    def mean(a, b, kernel, unbiased):
        values = kernel(torch.cdist(a, b))
        n = len(a)
        if a is b and unbiased:
            return (values.sum() - values.trace()) / (n * (n - 1))
        return values.mean()

    kernels = {
        "gaussian": lambda r: torch.exp(-(r**2) / (2 * 0.7**2)),
        "imq": lambda r: 1 / torch.sqrt(1 + r**2 / 0.7**2),
    }
    for name, kernel in kernels.items():
        for unbiased in (True, False):
            by_hand = sum(mean(a, a, kernel, unbiased) for a in (x, y))
            by_hand = by_hand - 2 * mean(x, y, kernel, unbiased)
            for rows in (512, 10):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("ebm_utils.discrepancies._ROWS", rows)
                    ours = mmd(x, y, kernel=name, bandwidth=0.7, unbiased=unbiased)
                torch.testing.assert_close(ours, by_hand)


def test_the_bandwidth_is_the_median_distance():
    x, y = noise(40, 2), noise(40, 2, seed=1)
    median = torch.pdist(torch.cat((x, y))).median().item()
    torch.testing.assert_close(mmd(x, y), mmd(x, y, bandwidth=median))
    torch.testing.assert_close(mmd(10 * x, 10 * y), mmd(x, y))  # whatever the units
    with pytest.raises(NumericalError, match="pass a number as bandwidth"):
        mmd(torch.zeros(10, 2), torch.zeros(10, 2))


@pytest.mark.parametrize("order", (1.0, 2.0, 3.0))
@pytest.mark.parametrize("n", (60, 45))
def test_wasserstein_distances_on_a_line(order, n):
    x, y = noise(60, 1), noise(n, 1, seed=1) * 2 + 1
    ours = sliced_wasserstein(x, y, order=order)
    if order == 1:
        theirs = scipy.stats.wasserstein_distance(x[:, 0], y[:, 0])
        assert ours.item() == pytest.approx(theirs)
    repeated = x.repeat_interleave(n, 0).sort(0).values, y.repeat_interleave(60, 0).sort(0).values
    by_hand = (repeated[0] - repeated[1]).abs().pow(order).mean() ** (1 / order)
    torch.testing.assert_close(ours, by_hand)


def test_sliced_wasserstein_of_a_shift():
    """A shift by v costs |v·θ| along θ, whose mean square is |v|²/d."""
    x = noise(30, 4, 2)
    shift = torch.zeros(4, 2, dtype=torch.float64)
    shift[1, 1] = 3.0
    ours = sliced_wasserstein(x, x + shift, n_projections=4000, seed=0)
    assert ours.item() == pytest.approx(3 / 8**0.5, rel=0.05)
    assert torch.equal(ours, sliced_wasserstein(x, x + shift, n_projections=4000, seed=0))
    assert not torch.equal(ours, sliced_wasserstein(x, x + shift, n_projections=4000, seed=1))


def stein_kernel_by_autograd(x, y, score_x, score_y, scale, exponent):
    """k₀(x, y) of Gorham & Mackey, with the derivatives of k by autograd."""

    def k(a, b):
        return (scale**2 + (a - b).square().sum()) ** exponent

    by_x = torch.func.grad(k, 0)(x, y)
    by_y = torch.func.grad(k, 1)(x, y)
    both = torch.func.jacrev(torch.func.grad(k, 0), 1)(x, y).trace()
    return score_x @ score_y * k(x, y) + score_x @ by_y + score_y @ by_x + both


@pytest.mark.parametrize("exponent", (-0.5, -0.3))
def test_stein_discrepancy_as_it_is_defined(exponent):
    x = noise(6, 3)
    energy = QuadraticEnergy(torch.zeros(3, dtype=torch.float64))
    score = energy.score(x)
    values = torch.stack(
        [
            torch.stack(
                [
                    stein_kernel_by_autograd(x[i], x[j], score[i], score[j], 1.3, exponent)
                    for j in range(6)
                ]
            )
            for i in range(6)
        ]
    )
    for unbiased in (True, False):
        by_hand = (values.sum() - values.trace()) / 30 if unbiased else values.mean()
        for rows in (512, 4):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("ebm_utils.discrepancies._ROWS", rows)
                ours = kernel_stein_discrepancy(
                    x, energy, scale=1.3, exponent=exponent, unbiased=unbiased
                )
            torch.testing.assert_close(ours, by_hand)


def test_stein_discrepancy_of_exact_draws_is_zero_on_average():
    energy = QuadraticEnergy(torch.zeros(2, dtype=torch.float64))

    def values(scale):
        draws = (scale * noise(50, 2, seed=i) for i in range(200))
        return [kernel_stein_discrepancy(x, energy, scale=1.0) for x in draws]

    assert z_score(values(1.0), 0.0) < 3.5
    assert z_score(values(1.2), 0.0) > 7


def test_stein_test_keeps_its_level_and_has_power():
    energy = QuadraticEnergy(torch.zeros(2))
    p_values = [
        stein_test(noise(60, 2, seed=i), energy, n_resamples=99, seed=i).p_value for i in range(200)
    ]
    rejected = sum(p <= 0.1 for p in p_values)
    assert abs(rejected - 20) < 3.5 * (200 * 0.1 * 0.9) ** 0.5
    wrong = noise(200, 2, seed=5) + torch.tensor([0.5, 0.0])
    found = stein_test(wrong, energy, n_resamples=99, seed=0)
    assert found.p_value == 0.01
    assert found.value == pytest.approx(kernel_stein_discrepancy(wrong, energy).item())
    again = stein_test(wrong, energy, n_resamples=99, seed=0)
    assert torch.equal(found.null, again.null)


def test_equal_statistics_of_discrete_states_count():
    """18 of 30 coins against 10 of 30, by any statistic: twice the hypergeometric tail, 0.0692."""
    x, y = torch.zeros(30, 1), torch.zeros(30, 1)
    x[:18], y[:10] = 1.0, 1.0

    def kernel(a, b):
        return mmd(a, b, bandwidth=1.0)

    for statistic in (energy_distance, kernel, lambda a, b: (a.mean() - b.mean()).abs()):
        found = permutation_test(x, y, statistic, n_permutations=2000, seed=0).p_value
        assert abs(found - 0.0692) < 4 * (0.0692 * 0.93 / 2000) ** 0.5


def test_statistics_may_be_integers_but_not_nan():
    x, y = torch.arange(8.0)[:, None], torch.arange(8.0)[:, None] + 0.5
    found = permutation_test(x, y, lambda a, b: (a > b).sum(), n_permutations=20, seed=0)
    assert 0 < found.p_value <= 1

    def broken(a, b):
        return (a.mean() - 3.5).sqrt()

    with pytest.raises(NumericalError, match="not finite"):
        permutation_test(x, y, broken, n_permutations=20, seed=0)


@pytest.mark.parametrize("statistic", (energy_distance, mmd), ids=("energy", "mmd"))
def test_permutations_keep_their_level_and_have_power(statistic):
    p_values = [
        permutation_test(x, y, statistic, n_permutations=19, seed=i).p_value
        for i, (x, y) in enumerate(pairs(0.0, 1.0, 2, repetitions=60, n=15, m=20))
    ]
    rejected = sum(p <= 0.1 for p in p_values)
    assert abs(rejected - 6) < 3.5 * (60 * 0.1 * 0.9) ** 0.5
    found = permutation_test(noise(40, 2), noise(40, 2, seed=1) + 1, statistic, seed=0)
    assert found.p_value == 1 / 201
    assert "p_value=0.00498" in repr(found)


FUNCTIONS = (mmd, energy_distance, sliced_wasserstein)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_events_and_results(function):
    draws = noise(4, 10, 2, 3)
    result = SampleResult(draws[:, -1], draws, torch.zeros(4, 10), {})
    final = SampleResult(draws[:, -1], None, torch.zeros(4, 1), {})
    other = noise(30, 2, 3, seed=1)
    options = {"seed": 0} if function is sliced_wasserstein else {}
    for given, states in ((result, draws.flatten(0, 1)), (final, draws[:, -1])):
        torch.testing.assert_close(
            function(given, other, **options), function(states, other, **options)
        )
        flat = function(states.flatten(1), other.flatten(1).numpy(), **options)
        torch.testing.assert_close(function(given, other, **options), flat)
    scalars = function(draws[0, :, 0, 0], other[:, 0, 0], **options)
    assert scalars.shape == ()
    assert scalars.dtype == torch.float64


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_cannot_be_compared(function):
    with pytest.raises(ShapeError, match="same event shape"):
        function(noise(9, 2), noise(9, 3))
    with pytest.raises(ShapeError, match="two states or more"):
        function(noise(1, 2), noise(9, 2))
    with pytest.raises(NumericalError, match="1 of 9 states of y"):
        y = noise(9, 2)
        y[3, 1] = torch.nan
        function(noise(9, 2), y)


def test_bad_arguments():
    x = noise(9, 2)
    energy = QuadraticEnergy(torch.zeros(2))
    for call in (
        lambda: mmd(x, x, kernel="box"),
        lambda: mmd(x, x, bandwidth=0),
        lambda: sliced_wasserstein(x, x, order=0.5),
        lambda: sliced_wasserstein(x, x, n_projections=0),
        lambda: kernel_stein_discrepancy(x, energy, exponent=-1),
        lambda: kernel_stein_discrepancy(x, energy, scale=-1),
        lambda: stein_test(x, energy, n_resamples=0),
        lambda: permutation_test(x, x, n_permutations=0),
    ):
        with pytest.raises(ConfigurationError, match="pass another|pass one of"):
            call()

    def with_hole(states):
        return states[:, 0] * torch.where(states[:, 0] == x[4, 0], torch.nan, 1.0)

    with pytest.raises(NumericalError, match="at draw 4"):
        kernel_stein_discrepancy(x, with_hole)
    with pytest.raises(ShapeError):
        kernel_stein_discrepancy(noise(9, 3), energy)
    with pytest.raises(ShapeError, match="same event shape"):
        permutation_test(noise(9, 3), x)
