import math

import pytest
import torch

from ebm_core import ConfigurationError, EBMError
from ebm_energies import Gaussian, UniformBox

BOX = UniformBox([-1.0, 0.0], [1.0, 4.0])


def test_energy_is_zero_inside_and_infinite_outside() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 4.0], [1.5, 1.0], [0.0, -1e-6], [math.inf, 1.0]])
    assert BOX(x).tolist() == [0.0, 0.0, math.inf, math.inf, math.inf]
    assert torch.equal(BOX.gradient(x[:2]), torch.zeros(2, 2))
    assert torch.equal((2.0 * BOX).gradient(x[:2]), torch.zeros(2, 2))
    assert BOX(torch.full((1, 2), math.nan)).isnan().all()


def test_moments_and_draws() -> None:
    assert BOX.log_normalizer().item() == pytest.approx(math.log(8))
    assert BOX.mean().tolist() == [0.0, 2.0]
    torch.testing.assert_close(BOX.covariance(), torch.tensor([[4 / 12, 0.0], [0.0, 16 / 12]]))
    n = 50_000
    unit = (BOX.exact_sample(n, seed=0) - BOX.low) / (BOX.high - BOX.low)
    ranks = torch.arange(1, n + 1)[:, None] / n
    bound = math.sqrt(math.log(2e6) / (2 * n))
    assert (unit.sort(0).values - ranks).abs().max() < bound


def test_support_follows_the_box() -> None:
    box = UniformBox([0.0], [0.1]).double()
    assert box.support.lower_bound.dtype == torch.float64
    assert box.support.check(torch.tensor([[0.05], [2.0]])).tolist() == [[True], [False]]


def test_added_to_an_energy_it_truncates() -> None:
    energy = Gaussian(torch.zeros(2)) + BOX
    value, gradient = energy.energy_and_gradient(torch.tensor([[0.5, 1.0], [2.0, 1.0]]))
    assert value.tolist() == [0.625, math.inf]
    assert gradient[0].tolist() == [0.5, 1.0]
    assert energy.support.upper_bound.tolist() == [1.0, 4.0]


def test_numbers_need_a_dimension() -> None:
    box = UniformBox(0.0, 2.0)
    assert box(torch.ones(1, 7)).tolist() == [0.0]
    with pytest.raises(ConfigurationError, match="give dim="):
        box.log_normalizer()
    assert UniformBox(0.0, 2.0, dim=3).log_normalizer().item() == pytest.approx(3 * math.log(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((1.0, 0.0), "low is not below high"),
        (([0.0, 0.0], [1.0, 0.0]), "low is not below high"),
        (([0.0, 0.0], [1.0, 1.0, 1.0]), "low has shape"),
        ((torch.zeros(2, 2), 1.0), "low has shape"),
        ((0.0, [1.0, 2.0], 2), "dim is 2"),
        ((-math.inf, 0.0), "NaN or infinity"),
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_parameters(arguments: tuple[object, ...], message: str) -> None:
    dim = {"dim": arguments[2]} if len(arguments) == 3 else {}
    with pytest.raises(EBMError, match=message):
        UniformBox(*arguments[:2], **dim)
