"""Denoising score matching against its closed form on Gaussians."""

import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ebm_core import ConfigurationError, ShapeError, SupportError, as_energy
from ebm_core.testing import LossConformance, QuadraticEnergy
from ebm_losses import DenoisingScoreMatching


class TestConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return DenoisingScoreMatching


@pytest.mark.parametrize("sigma", (0.1, 0.8))
def test_value_and_gradient_are_the_closed_form_on_a_gaussian(sigma):
    """For E = Σ ½ p (x - m)² the residual is -σ p (x - m) + (1 - σ² p) ξ: everything is known."""
    torch.manual_seed(0)
    energy = QuadraticEnergy(torch.tensor([0.5, -1.0]).double(), torch.tensor([2.0, 0.7]).double())
    m, p = energy.location.detach(), energy.precision.detach()
    x = torch.randn(5, 2).double()
    loss_fn, calls = DenoisingScoreMatching(energy, sigma), []
    # Always the same five data: means over them are exact, only the noise is random.
    data = x.repeat(200, 1)
    for _ in range(200):
        energy.zero_grad()
        loss = loss_fn(data)
        loss.backward()
        calls.append(torch.cat([loss.detach()[None], energy.location.grad, energy.precision.grad]))
    calls = torch.stack(calls)
    first, second = (x - m).mean(0), (x - m).square().mean(0)
    value = 0.5 * (sigma**2 * p**2 * second + (1 - sigma**2 * p) ** 2).sum()
    location = -(sigma**2) * p**2 * first
    precision = sigma**2 * p * second - sigma**2 * (1 - sigma**2 * p)
    want = torch.cat([value[None], location, precision])
    z = (calls.mean(0) - want) / (calls.std(0) / len(calls) ** 0.5)
    assert z.abs().max() < 4.5


@pytest.mark.parametrize("event_shape", ((12,), (3, 2, 2), (1, 3, 4)))
def test_value_and_gradient_do_not_depend_on_the_shape_of_the_event(event_shape):
    torch.manual_seed(0)
    mean, precision = torch.randn(12).double(), torch.rand(12).double() + 0.5
    x = torch.randn(8, 12).double()
    results = []
    for shape in (event_shape, (12,)):
        energy = QuadraticEnergy(mean.reshape(shape), precision.reshape(shape))
        torch.manual_seed(1)
        loss = DenoisingScoreMatching(energy, 0.3)(x.reshape(8, *shape))
        loss.backward()
        results.append((loss, energy.precision.grad.flatten(), energy.location.grad.flatten()))
    for have, want in zip(*results, strict=True):
        torch.testing.assert_close(have, want)


def test_gradient_of_a_network_is_that_of_central_differences():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)).double()
    loss_fn = DenoisingScoreMatching(as_energy(lambda x: network(x).squeeze(1), network), 0.5)
    x = torch.randn(16, 2).double()

    def value():
        torch.manual_seed(2)
        return loss_fn(x)

    value().backward()
    weight = network[0].weight
    for index in ((0, 0), (5, 1)):
        difference = 0.0
        for sign in (1.0, -1.0):
            with torch.no_grad():
                weight[index] += sign * 1e-5
                difference += sign * value().item() / 2e-5
                weight[index] -= sign * 1e-5
        assert abs(difference - weight.grad[index].item()) < 1e-8


def test_the_optimum_is_the_density_of_the_noisy_data():
    torch.manual_seed(0)
    sigma, n = 0.5, 50_000
    x = 1.0 + 0.8 * torch.randn(n, 1).double()
    energy = QuadraticEnergy(torch.zeros(1).double())
    loss_fn = DenoisingScoreMatching(energy, sigma)
    optimizer = torch.optim.LBFGS(energy.parameters(), line_search_fn="strong_wolfe", max_iter=50)

    def closure():
        torch.manual_seed(1)
        optimizer.zero_grad()
        loss = loss_fn(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    # Bounds of some five standard errors for this n.
    assert abs(energy.location.item() - 1.0) < 0.04
    assert abs(energy.precision.item() - 1 / (0.8**2 + sigma**2)) < 0.04


def test_metrics_and_noise_follow_torchs_seed():
    energy = QuadraticEnergy(torch.zeros(2))
    loss_fn, x = DenoisingScoreMatching(energy), torch.zeros(4, 2)
    torch.manual_seed(0)
    first = loss_fn(x)
    torch.manual_seed(0)
    assert torch.equal(first, loss_fn(x))
    assert not torch.equal(first, loss_fn(x))
    torch.manual_seed(0)
    loss_fn(x)
    torch.manual_seed(0)
    noisy = 0.1 * torch.randn(4, 2)
    torch.testing.assert_close(loss_fn.metrics["noisy_energy"], 0.5 * noisy.square().sum(1).mean())
    torch.testing.assert_close(loss_fn.metrics["score_rms"], noisy.square().mean().sqrt())


def test_works_without_grad_mode_for_evaluation():
    loss_fn = DenoisingScoreMatching(QuadraticEnergy(torch.zeros(2)))
    with torch.no_grad():
        assert not loss_fn(torch.zeros(4, 2)).requires_grad


def test_impossible_arguments_are_refused():
    for sigma in (0.0, -1.0, float("nan"), "a"):
        with pytest.raises(ConfigurationError):
            DenoisingScoreMatching(lambda x: x.sum(1), sigma)
    with pytest.raises(SupportError):
        DenoisingScoreMatching(as_energy(lambda x: x.sum(1), support=constraints.boolean))
    loss_fn = DenoisingScoreMatching(QuadraticEnergy(torch.zeros(2)))
    with pytest.raises(ConfigurationError, match="floating"):
        loss_fn(torch.zeros(4, 2, dtype=torch.int64))
    for shape in ((2,), (4, 3), (0, 2), (2, 4, 2)):
        with pytest.raises(ShapeError):
            loss_fn(torch.zeros(shape))
