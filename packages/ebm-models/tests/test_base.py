"""The base class: the base term's value and what it bounds, a network of one's own, errors."""

import math

import pytest
import torch

from ebm_core import ConfigurationError, ShapeError
from ebm_models import BaseModel, MLPEnergy


class Sum(BaseModel):
    """Σ x, with the axes that a test asks for."""

    def __init__(self, event_shape=None, base_scale=None, keep=False):
        super().__init__(event_shape, base_scale)
        self.keep = keep

    def network_energy(self, x):
        total = x.unsqueeze(-1).flatten(1).sum(1)
        return total[:, None] if self.keep else total


@pytest.mark.parametrize("event_shape", ((), (3,), (2, 2), (1, 2, 2)))
@pytest.mark.parametrize("keep", (False, True))
@pytest.mark.parametrize("known", (False, True))
def test_the_base_term_is_that_of_a_gaussian(event_shape, keep, known):
    x = torch.randn(5, *event_shape).double()
    shape = event_shape if known else None
    plain, based = Sum(shape, None, keep), Sum(shape, 2.0, keep)
    assert plain(x).shape == (5,)
    flat = x.reshape(5, -1)
    torch.testing.assert_close(plain(x), flat.sum(1))
    normal = torch.distributions.Normal(0.0, 2.0)
    log_density = normal.log_prob(flat).sum(1) + flat.shape[1] * math.log(2 * (2 * math.pi) ** 0.5)
    torch.testing.assert_close(based(x), flat.sum(1) - log_density, atol=1e-5, rtol=1e-5)
    assert based(x).dtype == torch.float64


def test_the_scale_is_a_buffer():
    model = Sum(2, 4.0)
    assert model.base_scale == 4.0
    assert model.state_dict() == {"base_scale": torch.tensor(4.0)}
    assert Sum(2).base_scale is None
    assert not Sum(2).state_dict()
    other = Sum(2, 1.0)
    other.load_state_dict(model.state_dict())
    assert other.base_scale == 4.0


def test_the_base_term_makes_the_density_integrable():
    """log Z on growing boxes: it settles with the base term and goes on growing without."""
    torch.manual_seed(0)

    def log_normalizer(model, bound):
        grid = torch.linspace(-bound, bound, 801).double()
        x = torch.cartesian_prod(grid, grid)
        with torch.no_grad():
            return torch.logsumexp(-model(x), 0) + 2 * math.log(2 * bound / 800)

    model = MLPEnergy(2, (32, 32), base_scale=2.0).double()
    inner, outer = log_normalizer(model, 14.0), log_normalizer(model, 28.0)
    assert abs(inner - outer) < 1e-6
    model.base_scale = None
    assert log_normalizer(model, 28.0) - log_normalizer(model, 14.0) > 0.5


@pytest.mark.parametrize("output", ((5, 2), (5, 1, 1), (4,), ()))
def test_a_network_of_many_outputs_is_refused(output):
    class Wide(BaseModel):
        def network_energy(self, x):
            return torch.zeros(output)

    with pytest.raises(ShapeError, match="one number a state"):
        Wide()(torch.zeros(5, 3))


def test_states_of_the_wrong_shape_are_refused():
    model = Sum((2, 3))
    with pytest.raises(ShapeError, match=r"x\[None\]"):
        model(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"\(batch, 2, 3\)"):
        model(torch.zeros(5, 3, 2))
    with pytest.raises(ShapeError, match="flatten"):
        model(torch.zeros(4, 5, 2, 3))
    with pytest.raises(ShapeError):
        Sum()(torch.zeros(()))


@pytest.mark.parametrize(
    "options",
    (
        {"base_scale": 0.0},
        {"base_scale": -1.0},
        {"base_scale": math.nan},
        {"base_scale": "wide"},
        {"event_shape": 0},
        {"event_shape": (2, -1)},
        {"event_shape": 2.0},
    ),
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigurationError):
        Sum(**options)


def test_the_base_class_alone_is_no_model():
    with pytest.raises(TypeError, match="network_energy"):
        BaseModel(2)
