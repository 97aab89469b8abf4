"""The law of the noise on data."""

import math

import pytest
import torch

from ebm_core import ConfigurationError
from ebm_losses import DataJitter


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
