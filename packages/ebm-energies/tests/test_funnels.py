import math

import numpy as np
import pytest
import torch
from scipy import stats

from ebm_core import ConfigurationError
from ebm_energies import Banana, NealFunnel, Ring


def test_funnel_is_the_density_that_scipy_gives() -> None:
    energy = NealFunnel(4).double()
    x = energy.exact_sample(500, seed=0)
    v, rest = x[:, 0].numpy(), x[:, 1:].numpy()
    log_density = stats.norm(0, 3).logpdf(v) + stats.norm(0, np.exp(v / 2)[:, None]).logpdf(
        rest
    ).sum(1)
    np.testing.assert_allclose(-energy(x) - energy.log_normalizer(), log_density, rtol=1e-10)
    standard = rest / np.exp(v / 2)[:, None]
    assert stats.kstest(v / 3, "norm").pvalue > 1e-6
    assert stats.kstest(standard.ravel(), "norm").pvalue > 1e-6
    assert energy.covariance().diagonal().tolist() == pytest.approx([9] + [math.exp(4.5)] * 3)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_funnel_holds_far_down_and_far_up_its_neck(dtype: torch.dtype) -> None:
    energy = NealFunnel(2).to(dtype)
    necks = torch.tensor([-3000.0, -500.0, -100.0, 100.0, 3000.0], dtype=dtype)
    x = torch.stack([necks, torch.zeros_like(necks)], dim=1)
    value, gradient = energy.energy_and_gradient(x)
    torch.testing.assert_close(value, necks.square() / 18 + necks / 2)
    torch.testing.assert_close(gradient, torch.stack([necks / 9 + 0.5, torch.zeros_like(necks)], 1))
    x[:2, 1] = 1e-3
    assert energy(x[:2])[0].isinf()


def test_banana_in_more_dimensions_adds_standard_normals() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    flat, deep = Banana(0.5, 2.0), Banana(0.5, 2.0, dim=4)
    torch.testing.assert_close(deep(x), flat(x[:, :2]) + 0.5 * x[:, 2:].square().sum(1))
    difference = deep.log_normalizer() - flat.log_normalizer()
    assert difference.item() == pytest.approx(math.log(2 * math.pi))
    assert deep.exact_sample(7).shape == (7, 4)
    assert deep.covariance().diagonal().tolist() == pytest.approx([4.0, 9.0, 1.0, 1.0])


def test_banana_is_its_formula() -> None:
    energy = Banana()
    u, v = 5.0, -2.0
    expected = 0.5 * u * u / 100 + 0.5 * (v + 0.03 * (u * u - 100)) ** 2
    assert energy(torch.tensor([[u, v]])).item() == pytest.approx(expected)


def test_ring_is_even_around_and_has_a_gradient_at_its_centre() -> None:
    energy = Ring(1.0, 0.8).double()
    draws = energy.exact_sample(50_000, seed=1)
    angles = torch.atan2(draws[:, 1], draws[:, 0])
    assert stats.kstest(angles.numpy(), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-6
    zero = torch.zeros(1, 2, dtype=torch.float64)
    assert torch.equal(energy.gradient(zero), zero)
    assert energy(zero).item() == pytest.approx(0.5 / 0.64)


@pytest.mark.parametrize(
    "make",
    (
        lambda: NealFunnel(1),
        lambda: NealFunnel(scale=-3.0),
        lambda: Banana(curvature=math.nan),
        lambda: Banana(scale=0.0),
        lambda: Banana(dim=1),
        lambda: Ring(radius=-1.0),
        lambda: Ring(width=0.0),
    ),
)
def test_wrong_parameters(make: object) -> None:
    with pytest.raises(ConfigurationError):
        make()
