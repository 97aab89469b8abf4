"""Energy discrepancy against quadrature over its noise, and against its limits."""

import math

import numpy as np
import pytest
import torch

from ebm_core import ConfigurationError, NumericalError
from ebm_core.testing import LossConformance, QuadraticEnergy
from ebm_losses import EnergyDiscrepancy, ScoreMatching


class TestConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return EnergyDiscrepancy


def gradients(loss_fn, x):
    loss_fn.zero_grad()
    loss = loss_fn(x)
    loss.backward()
    return torch.stack([loss.detach(), *(p.grad.sum() for p in loss_fn.parameters())])


def by_quadrature(x, mean, precision, t, n_negatives, w, n_points=48):
    """Value, and its gradient in mean and precision, with ξ and each ξ' integrated exactly."""
    points, weights = np.polynomial.hermite_e.hermegauss(n_points)
    points = torch.as_tensor(points)
    weights = torch.as_tensor(weights / weights.sum())
    parameters = [torch.tensor(v).double().requires_grad_() for v in (mean, precision)]

    def energy(x):
        return 0.5 * parameters[1] * (x - parameters[0]) ** 2

    # Axis 0: data; axis 1: ξ; then one axis for each ξ'.
    axes = 2 + n_negatives
    data = x.reshape(-1, *[1] * (axes - 1))

    def along(values, axis):
        return values.reshape(*[-1 if a == axis else 1 for a in range(axes)])

    total, weight = torch.tensor(float(w), dtype=torch.float64), along(weights, 1)
    for j in range(n_negatives):
        recovered = data + math.sqrt(t) * (along(points, 1) + along(points, 2 + j))
        total = total + (energy(data) - energy(recovered)).exp()
        weight = weight * along(weights, 2 + j)
    value = (weight * (total / n_negatives).log()).sum() / len(x)
    return torch.stack([value, *torch.autograd.grad(value, parameters)]).detach()


@pytest.mark.parametrize(
    ("t", "n_negatives", "w"), ((0.25, 1, 1.0), (0.6, 1, 0.3), (0.25, 2, 1.0), (0.4, 2, 2.0))
)
def test_value_and_gradient_are_those_of_quadrature(t, n_negatives, w):
    torch.manual_seed(0)
    x = torch.randn(5).double()
    want = by_quadrature(x, 0.5, 1.7, t, n_negatives, w)
    energy = QuadraticEnergy(torch.full((1,), 0.5).double(), torch.full((1,), 1.7).double())
    loss_fn = EnergyDiscrepancy(energy, t, n_negatives, w)
    # Always the same five data: means over them are exact, only the noise is random.
    calls = torch.stack([gradients(loss_fn, x.repeat(2000)[:, None]) for _ in range(10)])
    z = (calls.mean(0) - want) / (calls.std(0) / len(calls) ** 0.5)
    assert z.abs().max() < 4.5


def test_recoveries_of_a_datum_share_its_perturbation():
    seen = []

    def energy(x):
        seen.append(x)
        return 0.5 * x.square().sum(1)

    torch.manual_seed(0)
    x = torch.zeros(4000, 1).double()
    EnergyDiscrepancy(energy, 0.3, 2)(x)
    recovered = seen[1].reshape(4000, 2)
    # Variances 2t, covariance t; bounds of some five standard errors.
    covariance = torch.cov(recovered.T)
    want = torch.tensor([[0.6, 0.3], [0.3, 0.6]]).double()
    assert (covariance - want).abs().max() < 0.07


@pytest.mark.parametrize("n_negatives", (1, 16))
def test_a_small_time_without_stabilisation_is_score_matching(n_negatives):
    """L_t/t → mean (½ |∇E|² - ΔE) for t → 0 and M → ∞, a theorem of the paper.

    With M recoveries log(1/M Σ exp d_j) is, to first order in t, the mean of the d_j and half their
    variance among each other: ½ |∇E|² (1 - 1/M).
    """
    torch.manual_seed(0)
    energy = QuadraticEnergy(torch.tensor([0.4]).double(), torch.tensor([1.3]).double())
    x, t = torch.tensor([[-2.0], [0.3], [1.5]]).double(), 1e-3
    loss_fn = EnergyDiscrepancy(energy, t, n_negatives, 0.0)
    with torch.no_grad():
        half_square = 0.5 * energy.gradient(x).square().sum(1).mean()
        limit = ScoreMatching(energy)(x) - half_square / n_negatives
        values = torch.stack([loss_fn(x.repeat(20_000, 1)) / t for _ in range(10)])
    error = values.std() / len(values) ** 0.5
    assert error < 0.2
    assert abs(values.mean() - limit) < 4.5 * error + 0.01


def test_huge_differences_of_energy_do_not_overflow():
    energy = QuadraticEnergy(torch.zeros(2), torch.full((2,), 1e6))
    loss = EnergyDiscrepancy(energy)(torch.full((4, 2), 3.0))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(energy.precision.grad).all()


def test_an_energy_without_end_is_refused():
    with pytest.raises(NumericalError):
        EnergyDiscrepancy(lambda x: -torch.exp(x.square().sum(1)))(torch.full((4, 1), 10.0))


def test_metrics():
    torch.manual_seed(0)
    energy = QuadraticEnergy(torch.zeros(2))
    loss_fn, x = EnergyDiscrepancy(energy, 0.25, 3), torch.randn(1000, 2)
    loss_fn(x)
    torch.testing.assert_close(loss_fn.metrics["data_energy"], energy(x).mean())
    # Mean energy after noise of variance 2t: t d more, within five standard errors.
    excess = loss_fn.metrics["negative_energy"] - loss_fn.metrics["data_energy"]
    assert abs(excess - 0.5) < 0.15
    assert 0.25 < loss_fn.metrics["accuracy"] < 1


def test_impossible_arguments_are_refused():
    energy = QuadraticEnergy(torch.zeros(2))
    for arguments in ({"t": 0.0}, {"t": float("nan")}, {"n_negatives": 0}, {"w": -1.0}):
        with pytest.raises(ConfigurationError):
            EnergyDiscrepancy(energy, **arguments)
