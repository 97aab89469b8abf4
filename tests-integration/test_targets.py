"""The entry without knobs on targets with known moments: right, or it says that it is not."""

import sys
from pathlib import Path

import pytest

import ebm_samplers

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from targets import TARGETS

LIMIT = 4.5


def largest_z(result, target):
    """Of means and variances, against the reference, errors from independent chains."""
    n_chains, n_draws = result.trajectory.shape[:2]
    flat = target.statistic(result.trajectory.flatten(0, 1)).double()
    values = flat.view(n_chains, n_draws, -1)
    scores = []
    for found, exact, error in (
        (values, target.mean, target.mean_error),
        ((values - target.mean).square(), target.variance, target.variance_error),
    ):
        by_chain = found.mean(1)
        mcse = by_chain.std(0) / n_chains**0.5
        scores.append((by_chain.mean(0) - exact).abs() / (mcse**2 + error**2) ** 0.5)
    return max(score.max().item() for score in scores)


@pytest.mark.parametrize("name", TARGETS)
def test_draws_are_right_or_a_warning_says_otherwise(name):
    target = TARGETS[name]
    result = ebm_samplers.sample(target.energy, dim=target.dim, seed=0)
    assert result.trajectory.shape == (64, 1000, target.dim)
    if target.easy:
        assert result.warnings == ()
        assert result.report["checks"]["rhat"] < 1.01
        assert largest_z(result, target) < LIMIT
    else:
        assert result.warnings
    if name == "mixture_8":
        assert any("separate modes" in warning for warning in result.warnings)
    if name in ("eight_schools_centred", "funnel"):
        assert any("ended in a divergence" in warning for warning in result.warnings)


@pytest.mark.parametrize("name", TARGETS)
def test_few_chains_are_right_or_warned_of_too(name):
    target = TARGETS[name]
    result = ebm_samplers.sample(target.energy, n_chains=8, n_samples=500, dim=target.dim, seed=1)
    assert result.report["method"] == "NUTS"
    if name in ("mixture_8", "eight_schools_centred"):
        assert result.warnings
    elif not result.warnings:
        assert largest_z(result, target) < 7.1  # as rare as 4.5, with errors from eight chains
