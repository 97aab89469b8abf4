"""What objectives on continuous supports that need no sampler of the caller's have in common."""

import pytest
import torch
from torch.distributions import constraints

from ebm_core import ConfigurationError, ShapeError, SupportError, as_energy
from ebm_core.testing import QuadraticEnergy
from ebm_losses import (
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    EnergyMatching,
    EquilibriumMatching,
    ScoreMatching,
    SlicedScoreMatching,
)

OBJECTIVES = {
    "exact score matching": ScoreMatching,
    "sliced score matching": SlicedScoreMatching,
    "denoising, one level": lambda energy: DenoisingScoreMatching(energy, 0.3),
    "denoising, three levels": lambda energy: DenoisingScoreMatching(energy, (0.1, 0.3, 1.0)),
    "energy discrepancy": lambda energy: EnergyDiscrepancy(energy, 0.3, 4),
    "equilibrium matching": EquilibriumMatching,
    "energy matching": lambda energy: EnergyMatching(energy, 0, n_steps=5),
}


@pytest.fixture(params=OBJECTIVES)
def make(request):
    return OBJECTIVES[request.param]


@pytest.mark.parametrize("event_shape", ((3, 2, 2), (1, 3, 4)))
def test_value_and_gradient_do_not_depend_on_the_shape_of_the_event(make, event_shape):
    torch.manual_seed(0)
    mean, precision = torch.randn(12).double(), torch.rand(12).double() + 0.5
    x = torch.randn(8, 12).double()
    results = []
    for shape in (event_shape, (12,)):
        energy = QuadraticEnergy(mean.reshape(shape), precision.reshape(shape))
        torch.manual_seed(1)
        loss = make(energy)(x.reshape(8, *shape))
        loss.backward()
        results.append((loss, energy.precision.grad.flatten(), energy.location.grad.flatten()))
    for have, want in zip(*results, strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize("context", (torch.no_grad, torch.inference_mode))
def test_works_without_grad_mode_for_evaluation(make, context):
    torch.manual_seed(0)
    loss_fn, x = make(QuadraticEnergy(torch.zeros(2))), torch.randn(4, 2)
    torch.manual_seed(1)
    want = loss_fn(x)
    assert want.requires_grad
    torch.manual_seed(1)
    with context():
        value = loss_fn(x.clone())
    assert not value.requires_grad
    torch.testing.assert_close(value, want.detach())


def test_impossible_data_and_supports_are_refused(make):
    with pytest.raises(SupportError):
        make(as_energy(lambda x: x.sum(1), support=constraints.boolean))
    loss_fn = make(QuadraticEnergy(torch.zeros(2)))
    with pytest.raises(ConfigurationError, match="floating"):
        loss_fn(torch.zeros(4, 2, dtype=torch.int64))
    for shape in ((2,), (4, 3), (0, 2), (2, 4, 2)):
        with pytest.raises(ShapeError):
            loss_fn(torch.zeros(shape))
