import pytest
import torch

from ebm_core import ConfigurationError, EBMError, Moments, NumericalError, SampleResult, ShapeError
from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
from ebm_utils import StopWhen, ess, rhat


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cut(draws, n):
    """A run of ``draws`` as it stands after ``n``."""
    return SampleResult(draws[:, n - 1], draws[:, :n], torch.zeros(len(draws), n), {})


def moments(draws, n):
    part = draws[:, :n]
    mean = part.mean(1)
    kept = Moments(n, mean, (part - mean[:, None]).square().sum(1))
    return SampleResult(draws[:, n - 1], None, torch.zeros(len(draws), 1), {}, kept)


def run(stop, draws, step=10, view=cut):
    """Where ``stop`` ends a run; None if nowhere."""
    for n in range(step, draws.shape[1] + 1, step):
        if stop(view(draws, n)):
            return n
    return None


def test_stops_at_the_first_look_that_satisfies_it():
    draws = noise(4, 1000, 2)
    stop = StopWhen(ess=500, rhat=1.02, every=10)
    end = run(stop, draws)

    def enough(n):
        part = draws[:, :n]
        sizes = (ess(part), ess(part, "tail"), ess(part.double().square()))
        return min(s.min() for s in sizes) >= 500 and rhat(part).max() < 1.02

    assert end == next(n for n in range(50, 1001, 10) if enough(n))
    assert [check.n_draws for check in stop.checks] == list(range(50, end + 1, 10))
    assert stop.checks[-1].rhat == rhat(draws[:, :end]).max()
    assert stop.stopped
    assert f"stopped at draw {end}: ESS" in repr(stop)


def test_tails_count():
    """One visit of each chain to the lower tail: its quantile is worth few draws."""
    draws = 100 + noise(4, 400, 1)
    draws[:, 200:220] -= 8
    stop = StopWhen(ess=10_000)
    stop(cut(draws, 400))
    assert stop.checks[0].ess == ess(draws, "tail").min() < 0.5 * ess(draws).min()


def test_looks_are_few():
    draws = noise(4, 5000, 1)
    stop = StopWhen(ess=8000)
    end = run(stop, draws)
    assert end < 1.2 * next(n for n in range(100, 5001, 100) if ess(draws[:, :n]) >= 8000)
    assert len(stop.checks) < 15
    ratios = [b.n_draws / a.n_draws for a, b in zip(stop.checks, stop.checks[1:], strict=False)]
    assert all(1.05 < ratio < 1.7 for ratio in ratios)


def test_never_stops_on_what_does_not_mix():
    apart = noise(4, 500, 1) + torch.arange(4)[:, None, None]
    assert run(StopWhen(rhat=1.05), apart) is None
    constant = torch.cat((noise(4, 500, 1), torch.ones(4, 500, 1)), 2)
    assert run(StopWhen(ess=100), constant) is None
    spins = noise(4, 500, 1).sign()
    assert run(StopWhen(ess=100), spins) is not None


def test_one_target_is_enough_and_serves_several_runs():
    stop = StopWhen(ess=600)
    first = run(stop, noise(4, 1000, 1))
    assert run(stop, noise(4, 1000, 1)) == first
    assert run(stop, noise(4, 100, 1) + torch.arange(4)[:, None, None]) is None
    assert not stop.stopped
    assert run(stop, noise(4, 1000, 1)) == first
    fresh = StopWhen(ess=600)
    run(fresh, noise(4, 1000, 1))
    assert [(c.n_draws, c.ess) for c in stop.checks] == [(c.n_draws, c.ess) for c in fresh.checks]
    assert stop.checks[0].n_draws == 50
    assert stop.checks[0].rhat != stop.checks[0].rhat
    assert "no draws yet" in repr(StopWhen(rhat=1.01))


def test_a_run_of_another_seed_is_another_run():
    stop, draws = StopWhen(ess=1e6), noise(4, 300, 1)

    def of(seed):
        def view(draws, n):
            return SampleResult(draws[:, n - 1], draws[:, :n], torch.zeros(4, n), {}, seed=seed)

        return view

    run(stop, draws[:, :60], view=of(1))
    run(stop, draws, step=100, view=of(2))
    assert stop.checks[0].n_draws == 100


def test_moments_will_do():
    draws = noise(64, 1000, 2)
    stop = StopWhen(ess=20_000, rhat=1.01, every=10)
    end = run(stop, draws, view=moments)
    assert 150 < end < 700  # 64 x 312 draws; of 64 means, errors of 18 %
    apart = draws + noise(64, 1, 2, seed=1)
    assert run(StopWhen(rhat=1.1), apart, view=moments) is None
    assert run(StopWhen(ess=1000), apart, view=moments) is None


def test_ends_a_run():
    sampler = ReferenceLangevin(QuadraticEnergy(torch.zeros(2)), step_size=0.3)
    stop = StopWhen(ess=1000, rhat=1.02)
    result = sampler.sample(n_samples=16, n_steps=2000, keep="trajectory", seed=0, callback=stop)
    assert result.n_draws == stop.checks[-1].n_draws < 2000
    assert ess(result).min() >= 1000


def test_what_it_cannot_judge():
    stop = StopWhen(ess=10)
    with pytest.raises(ConfigurationError, match='keep="moments"'):
        stop(SampleResult(torch.zeros(4, 2), None, torch.zeros(4, 1), {}))
    with pytest.raises(NumericalError, match="chain 0"):
        run(StopWhen(ess=10), torch.full((4, 100, 2), torch.nan))
    with pytest.raises(ShapeError, match="single chain"):
        run(StopWhen(rhat=1.01), noise(1, 100, 2))
    with pytest.raises(ShapeError, match="single chain"):
        run(StopWhen(ess=10), noise(1, 100, 2), view=moments)
    assert run(StopWhen(ess=100), noise(1, 500, 2)) is not None


@pytest.mark.parametrize(
    "options",
    ({}, {"ess": 0}, {"rhat": 1.0}, {"ess": 9, "every": 0}, {"ess": 9, "min_draws": 3}),
    ids=str,
)
def test_targets_that_make_no_sense(options):
    with pytest.raises(EBMError):
        StopWhen(**options)
