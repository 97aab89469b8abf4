import math

import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ebm_core import (
    ConfigurationError,
    EnergyFunction,
    MixtureEnergy,
    ScaledEnergy,
    ShapeError,
    SumEnergy,
    SupportError,
    as_energy,
    spin,
)
from ebm_core.testing import QuadraticEnergy

X = torch.randn(5, 2, dtype=torch.float64)
A = QuadraticEnergy(torch.tensor([1.0, 0.0], dtype=torch.float64))
B = QuadraticEnergy(torch.tensor([0.0, -2.0], dtype=torch.float64))


def abs_sum(x):
    return x.abs().sum(1)


@pytest.mark.parametrize(
    ("composed", "expected"),
    (
        (A + B, A(X) + B(X)),
        (A + B + A, 2 * A(X) + B(X)),
        (A + abs_sum, A(X) + abs_sum(X)),
        (abs_sum + A, A(X) + abs_sum(X)),
        (0.3 * A, 0.3 * A(X)),
        (A * 0.3, 0.3 * A(X)),
        (torch.tensor(0.3, dtype=torch.float64) * A, 0.3 * A(X)),
        (-A, -A(X)),
        (A.tempered(4.0), A(X) / 4),
    ),
)
def test_values(composed, expected):
    assert isinstance(composed, EnergyFunction)
    torch.testing.assert_close(composed(X), expected)
    assert composed.event_shape == (2,)


def test_a_sum_of_sums_is_one_sum():
    assert len((A + B + (A + B)).terms) == 4


def test_a_mixture_has_the_density_of_its_parts():
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    normalizers = torch.stack([A.log_normalizer(), B.log_normalizer()]).detach()
    mixture = MixtureEnergy([A, B], weights.log() - normalizers)
    density = sum(
        w * torch.exp(-e(X) - e.log_normalizer()) for w, e in zip(weights, (A, B), strict=True)
    )
    torch.testing.assert_close(mixture(X), -density.log())


def test_a_mixture_stays_finite_far_out():
    far = torch.full((1, 2), 1e4, dtype=torch.float64)
    energy, gradient = MixtureEnergy([A, B], [0.0, 0.0]).energy_and_gradient(far)
    assert torch.isfinite(energy).all()
    assert torch.isfinite(gradient).all()


def test_parts_stay_trainable_and_movable():
    factor, weights = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(2))
    energy = QuadraticEnergy(torch.zeros(2))
    whole = MixtureEnergy([ScaledEnergy(energy, factor), energy + energy], weights)
    assert {id(p) for p in whole.parameters()} == {
        id(p) for p in (factor, weights, *energy.parameters())
    }
    assert (0.5 * whole).double()(X).dtype == torch.float64
    assert (0.1 * A).factor.dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "error"),
    (
        (lambda: A + QuadraticEnergy(torch.zeros(3)), ShapeError),
        (
            lambda: (
                A
                + as_energy(abs_sum, support=spin)
                + as_energy(abs_sum, support=constraints.boolean)
            ),
            SupportError,
        ),
        (lambda: MixtureEnergy([A, B], [0.0]), ShapeError),
        (lambda: MixtureEnergy([A, B], [0.0, math.nan]), ConfigurationError),
        (lambda: MixtureEnergy([], []), ConfigurationError),
        (lambda: SumEnergy(), ConfigurationError),
        (lambda: math.inf * A, ConfigurationError),
        (lambda: A * torch.ones(2), ConfigurationError),
        (lambda: A.tempered(0.0), ConfigurationError),
        (lambda: A + 3.0, TypeError),
    ),
)
def test_what_cannot_be_composed_is_refused(make, error):
    with pytest.raises(error):
        make()


def test_supports_combine():
    box = constraints.interval(torch.zeros(2), torch.ones(2))
    boxed = as_energy(abs_sum, support=box)
    assert (A + boxed).support is box
    assert (boxed + A).support is box
    same = constraints.interval(torch.zeros(2), torch.ones(2))
    assert (boxed + as_energy(abs_sum, support=same)).support is box
    other = constraints.interval(torch.zeros(2), 2 * torch.ones(2))
    with pytest.raises(SupportError):
        boxed + as_energy(abs_sum, support=other)


def test_a_mixture_keeps_its_gradient_far_out_in_float32():
    parts = [QuadraticEnergy(torch.tensor([c, 0.0])) for c in (-1.0, 1.0)]
    far = torch.tensor([[0.0, 5000.0]])
    gradient = MixtureEnergy(parts, [0.0, 0.0]).gradient(far)
    torch.testing.assert_close(gradient, far)


def test_a_mixture_is_infinite_where_all_parts_are():
    outside = as_energy(lambda x: torch.where(x.sum(1) > 0, torch.inf, x.sum(1)))
    energy = MixtureEnergy([outside, outside], [0.0, 0.0])
    assert torch.isposinf(energy(torch.ones(1, 2))).all()


def test_compositions_made_under_inference_mode_can_be_differentiated():
    with torch.inference_mode():
        energies = (0.5 * A, A.tempered(2.0), MixtureEnergy([A, B], [0.0, 0.0]))
    for energy in energies:
        assert energy.gradient(X).shape == X.shape


def test_sums_differences_and_quotients():
    torch.testing.assert_close(sum([A, B])(X), A(X) + B(X))
    torch.testing.assert_close((A - B)(X), A(X) - B(X))
    torch.testing.assert_close((A - abs_sum)(X), A(X) - abs_sum(X))
    torch.testing.assert_close((A / 4)(X), A(X) / 4)


def test_supports_follow_the_parts():
    class Box(EnergyFunction):
        event_ndim = 1

        def __init__(self):
            super().__init__()
            self.register_buffer("high", torch.ones(2))

        @property
        def support(self):
            return constraints.interval(torch.zeros_like(self.high), self.high)

        def forward(self, x):
            return x.sum(-1)

    whole = (2.0 * (Box() + abs_sum)).double()
    assert whole.support.upper_bound.dtype == torch.float64
    vectors = as_energy(abs_sum, support=constraints.independent(constraints.real, 1))
    assert isinstance((vectors + Box()).support, constraints.interval)


def test_events_of_other_ranks_are_not_combined():
    """A vector's energy would take an image's last axis for its event."""

    class Image(EnergyFunction):
        event_shape = torch.Size([2, 3])

        def forward(self, x):
            return x.square().sum((-2, -1))

    class Vector(EnergyFunction):
        event_ndim = 1

        def forward(self, x):
            return x.square().sum(-1)

    with pytest.raises(ShapeError, match="1 and 2 axes"):
        Image() + Vector()
    with pytest.raises(ShapeError, match="1 and 2 axes"):
        MixtureEnergy([Vector(), Image()], [0.0, 0.0])
    assert (Image() + as_energy(lambda x: x.sum((1, 2))))(torch.ones(4, 2, 3)).tolist() == [
        12.0
    ] * 4


def test_a_temperature_that_would_not_be_trained_is_refused():
    temperature = nn.Parameter(torch.tensor(2.0))
    for make in (lambda e: e.tempered(temperature), lambda e: e / temperature):
        with pytest.raises(ConfigurationError, match="beta"):
            make(QuadraticEnergy(torch.zeros(2)))
