"""Chains that begin as noise at each call."""

import pytest
import torch
from torch.distributions import constraints

from ebm_core import ConfigurationError, as_energy
from ebm_core.testing import LossConformance, ReferenceLangevin
from ebm_losses import ShortRunContrastiveDivergence

COUNT = as_energy(lambda x: x.sum(1), support=constraints.boolean)  # of bits that are set


class Still:
    def sample_chain(self, x_init, n_steps):
        return x_init


class TestConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: ShortRunContrastiveDivergence(
            energy, ReferenceLangevin(energy, 0.01), k_steps=2
        )


def test_short_runs_begin_as_noise_at_each_call_and_take_k_steps():
    class Recorder:
        starts = ()

        def sample_chain(self, x_init, n_steps):
            self.starts = (*self.starts, x_init.clone())
            return x_init + n_steps

    torch.manual_seed(0)
    sampler = Recorder()
    loss_fn = ShortRunContrastiveDivergence(
        lambda x: x.flatten(1).sum(1), sampler, k_steps=3, n_negatives=5000
    )
    for _ in range(2):
        loss_fn(torch.zeros(4, 1, 2, dtype=torch.float64))
    first, second = sampler.starts
    assert first.shape == (5000, 1, 2)
    assert first.dtype == torch.float64
    for start in (first, second):
        assert abs(start.mean()) < 4.5 / 10_000**0.5
        assert abs(start.var() - 1) < 4.5 * (2 / 10_000) ** 0.5
    assert abs((first * second).mean()) < 4.5 / 10_000**0.5
    assert torch.equal(loss_fn.negatives, second + 3)


def test_short_runs_begin_as_the_support_or_the_initializer_says():
    x = torch.ones(16, 4)
    loss_fn = ShortRunContrastiveDivergence(COUNT, Still())
    loss_fn(x)
    assert loss_fn.negatives.shape == x.shape
    assert set(loss_fn.negatives.unique().tolist()) == {0.0, 1.0}
    loss_fn = ShortRunContrastiveDivergence(COUNT, Still(), initializer=torch.ones)
    loss_fn(x)
    assert (loss_fn.negatives == 1).all()


@pytest.mark.parametrize("options", ({"k_steps": 0}, {"n_negatives": 0}, {"initializer": 3}))
def test_impossible_options_of_short_runs_are_refused(options):
    with pytest.raises(ConfigurationError):
        ShortRunContrastiveDivergence(COUNT, Still(), **options)
