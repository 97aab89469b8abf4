"""Equilibrium matching against quadrature, and as a landscape to descend."""

import numpy as np
import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, as_energy
from ebm_core.testing import LossConformance, QuadraticEnergy
from ebm_losses import EquilibriumMatching


class TestConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return EquilibriumMatching


def by_quadrature(x, mean, precision, a, scale):
    """Value, and its gradient in mean and precision, with γ and ε integrated."""
    points, weights = np.polynomial.hermite_e.hermegauss(30)
    noise, noise_weight = torch.as_tensor(points), torch.as_tensor(weights / weights.sum())
    # Two Gauss rules, as the decay has a corner at a.
    nodes, node_weights = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(20))
    gamma = torch.cat([a * (nodes + 1) / 2, a + (1 - a) * (nodes + 1) / 2])
    gamma_weight = torch.cat([a * node_weights / 2, (1 - a) * node_weights / 2])
    parameters = [torch.tensor(v).double().requires_grad_() for v in (mean, precision)]
    data, gamma, noise = x[:, None, None], gamma[None, :, None], noise[None, None, :]
    mixed = gamma * data + (1 - gamma) * noise
    decay = torch.where(gamma <= a, scale, scale * (1 - gamma) / (1 - a))
    squares = (parameters[1] * (mixed - parameters[0]) - decay * (noise - data)) ** 2
    value = (squares * gamma_weight[:, None] * noise_weight).sum() / len(x)
    return torch.stack([value, *torch.autograd.grad(value, parameters)]).detach()


@pytest.mark.parametrize(("a", "scale"), ((0.8, 4.0), (0.3, 1.0), (0.0, 2.0), (1.0, 1.0)))
def test_value_and_gradient_are_those_of_quadrature(a, scale):
    torch.manual_seed(0)
    x = torch.randn(5).double()
    want = by_quadrature(x, 0.5, 1.7, min(a, 1 - 1e-12), scale)
    energy = QuadraticEnergy(torch.full((1,), 0.5).double(), torch.full((1,), 1.7).double())
    loss_fn, calls = EquilibriumMatching(energy, a, scale), []
    # Always the same five data: means over them are exact, only noise and γ are random.
    for _ in range(200):
        energy.zero_grad()
        loss = loss_fn(x.repeat(1000)[:, None])
        loss.backward()
        calls.append(torch.cat([loss.detach()[None], energy.location.grad, energy.precision.grad]))
    calls = torch.stack(calls)
    z = (calls.mean(0) - want) / (calls.std(0) / len(calls) ** 0.5)
    assert z.abs().max() < 4.5


def test_descent_on_the_landscape_of_two_points_ends_at_them():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU()).append(
        nn.Linear(32, 1)
    )
    energy = as_energy(lambda x: network(x).squeeze(1), network)
    loss_fn = EquilibriumMatching(energy)
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    data = torch.tensor([-1.0, 1.0]).repeat(128)[:, None]
    for _ in range(300):
        optimizer.zero_grad()
        loss_fn(data).backward()
        optimizer.step()
        schedule.step()
    x = torch.randn(200, 1)
    for _ in range(200):
        x = x - 0.01 * energy.gradient(x)
    near = ((x.abs() - 1).abs() < 0.15).float().mean()
    assert near > 0.9
    assert 0.35 < (x > 0).float().mean() < 0.65


def test_metrics_are_those_of_the_mixed_states():
    energy = QuadraticEnergy(torch.zeros(2), torch.full((2,), 3.0))
    loss_fn, x = EquilibriumMatching(energy, 1.0, 2.0), torch.randn(50, 2)
    torch.manual_seed(0)
    loss_fn(x)
    torch.manual_seed(0)
    noise, gamma = torch.randn_like(x), torch.rand(50, 1)
    mixed = gamma * x + (1 - gamma) * noise
    torch.testing.assert_close(loss_fn.metrics["energy"], energy(mixed).mean())
    torch.testing.assert_close(loss_fn.metrics["gradient_rms"], (3 * mixed).square().mean().sqrt())
    want = (2 * (noise - x)).square().mean().sqrt()
    torch.testing.assert_close(loss_fn.metrics["target_rms"], want)


def test_impossible_arguments_are_refused():
    energy = QuadraticEnergy(torch.zeros(2))
    for arguments in ({"decay_start": -0.1}, {"decay_start": 1.1}, {"gradient_scale": 0.0}):
        with pytest.raises(ConfigurationError):
            EquilibriumMatching(energy, **arguments)
