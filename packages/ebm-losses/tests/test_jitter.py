"""Noise on data: its law, and its place in an objective."""

import math

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, as_energy
from ebm_losses import ContrastiveDivergence, DataJitter


def test_gaussian_noise_has_its_scale_and_uniform_noise_fills_a_cell():
    torch.manual_seed(0)
    x = torch.randint(4, (20_000, 2, 3)).double()
    n = x.numel()
    noise = DataJitter(0.3)(x) - x
    assert abs(noise.mean()) < 4.5 * 0.3 / n**0.5
    assert abs(noise.square().mean() / 0.09 - 1) < 4.5 * (2 / n) ** 0.5
    assert abs(noise.pow(4).mean() / (3 * 0.3**4) - 1) < 4.5 * (96 / 9 / n) ** 0.5
    noise = DataJitter(0.5, "uniform")(x) - x
    assert noise.min() >= 0
    assert noise.max() < 0.5
    assert abs(noise.mean() - 0.25) < 4.5 * 0.5 / (12 * n) ** 0.5


def test_noise_is_fresh_follows_torchs_seed_and_leaves_the_data():
    jitter, x = DataJitter(0.1), torch.zeros(5, 2)
    torch.manual_seed(0)
    first = jitter(x)
    assert not torch.equal(first, jitter(x))
    torch.manual_seed(0)
    assert torch.equal(first, jitter(x))
    torch.manual_seed(0)
    torch.testing.assert_close(first, 0.1 * torch.randn(5, 2))
    assert not x.any()
    assert jitter(x.double()).dtype == torch.float64


def test_impossible_arguments_are_refused():
    for scale in (0.0, -1.0, math.nan, "a"):
        with pytest.raises(ConfigurationError):
            DataJitter(scale)
    with pytest.raises(ConfigurationError, match="gaussian"):
        DataJitter(0.1, "cauchy")
    with pytest.raises(ConfigurationError, match="floating"):
        DataJitter(0.1)(torch.zeros(3, 2, dtype=torch.int64))
    assert repr(DataJitter(0.1)) == "DataJitter(scale=0.1, law='gaussian')"


# In an objective


class Frozen:
    def sample_chain(self, x_init, n_steps):
        self.start = x_init
        return x_init


def test_jitter_is_noise_of_its_scale_on_data_alone():
    torch.manual_seed(0)
    x, sampler = torch.zeros(40_000, 2), Frozen()
    energy = as_energy(lambda x: x.square().sum(1))
    negatives = torch.ones(5, 2)
    loss_fn = ContrastiveDivergence(energy, sampler, jitter=0.3)
    loss_fn(x, negatives)
    assert loss_fn.metrics["negative_energy"] == 2.0
    mean = 2 * 0.3**2
    assert abs(loss_fn.metrics["data_energy"] - mean) < 4.5 * mean / 40_000**0.5
    loss_fn(x)
    first = sampler.start
    assert abs(first.std() - 0.3) < 4.5 * 0.3 / (2 * 80_000) ** 0.5
    loss_fn(x)
    assert not torch.equal(first, sampler.start)
    assert (x == 0).all()


def test_jitter_may_be_any_function_and_is_off_by_default():
    energy, x = as_energy(lambda x: x.sum(1)), torch.zeros(4, 2)
    sampler = Frozen()
    ContrastiveDivergence(energy, sampler)(x)
    assert torch.equal(sampler.start, x)
    ContrastiveDivergence(energy, sampler, jitter=lambda x: x + 1.0)(x)
    assert torch.equal(sampler.start, x + 1.0)
    module = nn.Identity()
    assert ContrastiveDivergence(energy, sampler, jitter=module).jitter is module
    with pytest.raises(ConfigurationError, match="jitter gave"):
        ContrastiveDivergence(energy, sampler, jitter=lambda x: x.double())(x)


@pytest.mark.parametrize("jitter", (0.0, -1.0, "no", float("nan")))
def test_impossible_jitter_is_refused(jitter):
    with pytest.raises(ConfigurationError, match="jitter is"):
        ContrastiveDivergence(lambda x: x.sum(1), Frozen(), jitter=jitter)
