"""The suites of ebm_core.testing, run on core's own objects, and shown to catch broken ones."""

import pytest
import torch
from torch import nn

from ebm_core import EnergyFunction, MixtureEnergy, as_energy
from ebm_core.protocols import BaseLoss
from ebm_core.testing import (
    BaseSamplerConformance,
    EnergyConformance,
    LossConformance,
    ModelConformance,
    QuadraticEnergy,
    ReferenceLangevin,
)

QUADRATIC = QuadraticEnergy(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0]))
NET = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0))


class TestComposedEnergies(EnergyConformance):
    @pytest.fixture(
        params=(
            QUADRATIC,
            QUADRATIC + QUADRATIC,
            0.5 * QUADRATIC,
            -QUADRATIC,
            QUADRATIC.tempered(3.0),
            MixtureEnergy([QUADRATIC, 2.0 * QUADRATIC], [-0.5, 0.5]),
            as_energy(lambda x: x.pow(4).sum(-1)),
        )
    )
    def energy(self, request):
        return request.param


class TestNetworks(ModelConformance):
    @pytest.fixture(
        params=(as_energy(NET, event_shape=2), as_energy(NET, event_shape=2) + QUADRATIC)
    )
    def energy(self, request):
        return request.param


class TestReferenceLangevin(BaseSamplerConformance):
    bias = 0.08  # h λ / 2 at the stiffest precision, 2, and h = 0.05 is 0.05

    @pytest.fixture
    def make_sampler(self):
        return lambda energy: ReferenceLangevin(energy, step_size=0.05)


class MeanEnergy(BaseLoss):
    def compute(self, x):
        energies = self.energy(x)
        return energies.mean(), {"mean": energies.mean()}


class TestPlainLoss(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return MeanEnergy


class Coupled(EnergyFunction):
    """States of a batch mix, as with batch normalisation."""

    def forward(self, x):
        return (x - x.mean(0)).square().sum(1)


class WrongGradient(EnergyFunction):
    def forward(self, x):
        return x.square().sum(1)

    def energy_and_gradient(self, x, create_graph=False):
        return self(x), x


class Frozen(BaseLoss):
    def compute(self, x):
        return self.energy(x).detach().mean(), {}


@pytest.mark.parametrize(
    ("suite", "test", "broken"),
    (
        (EnergyConformance, "test_states_of_a_batch_do_not_mix", Coupled()),
        (EnergyConformance, "test_gradient_equals_central_differences", WrongGradient()),
        (ModelConformance, "test_every_parameter_is_trained_by_the_energy", Coupled()),
        (LossConformance, "test_is_a_scalar_that_trains_the_energy", Frozen),
        (LossConformance, "test_metrics_are_detached_scalars", Frozen),
    ),
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_the_suites_catch_what_they_are_for(suite, test, broken):
    with pytest.raises((AssertionError, RuntimeError)):
        getattr(suite(), test)(broken)


def biased(energy):
    """A Langevin sampler whose noise lacks the factor sqrt(2)."""

    class Biased(ReferenceLangevin):
        def _step(self, x, key, step, factor):
            clean = x - self.step_size * factor * self.energy.gradient(x)
            return clean + (super()._step(x, key, step, factor) - clean) / 2**0.5

    return Biased(energy, step_size=0.05)


def test_the_sampler_suite_catches_a_wrong_temperature():
    suite = TestReferenceLangevin()
    with pytest.raises(AssertionError):
        suite.test_keeps_the_target(biased)
