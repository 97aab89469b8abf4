"""Denoising score matching against its closed form on Gaussians."""

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, EnergyFunction, as_energy
from ebm_core.testing import LossConformance, QuadraticEnergy
from ebm_losses import DenoisingScoreMatching


class TestConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return DenoisingScoreMatching


class TestConformanceAtSeveralLevels(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: DenoisingScoreMatching(energy, (0.1, 0.4), reference_scale=0.2)


class TestConformanceOfConditionalEnergies(LossConformance):
    @pytest.fixture
    def make_loss(self):
        def make(energy):
            def at_level(x, sigma):
                return as_energy(energy)(x) / sigma

            modules = (energy,) if isinstance(energy, nn.Module) else ()
            conditional = as_energy(
                at_level, *modules, event_shape=getattr(energy, "event_shape", None)
            )
            return DenoisingScoreMatching(conditional, (0.1, 0.4), conditional=True)

        return make


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


@pytest.mark.parametrize("reference", (None, 0.6))
def test_several_levels_are_the_mean_of_their_closed_forms(reference):
    """As above, with σ p in the residual replaced by σ0² p / σ where there is a reference."""
    torch.manual_seed(0)
    energy = QuadraticEnergy(torch.tensor([0.5, -1.0]).double(), torch.tensor([2.0, 0.7]).double())
    m, p = energy.location.detach(), energy.precision.detach()
    x, levels = torch.randn(5, 2).double(), torch.tensor([0.2, 0.5, 1.0]).double()
    loss_fn, calls = DenoisingScoreMatching(energy, levels, reference_scale=reference), []
    data = x.repeat(200, 1)
    for _ in range(300):
        energy.zero_grad()
        loss = loss_fn(data)
        loss.backward()
        calls.append(torch.cat([loss.detach()[None], energy.location.grad, energy.precision.grad]))
    calls = torch.stack(calls)
    first, second = (x - m).mean(0), (x - m).square().mean(0)
    want = []
    for sigma in levels:
        # The residual is -a p (x - m) + (1 - a σ p) ξ.
        a = sigma if reference is None else reference**2 / sigma
        value = 0.5 * (a**2 * p**2 * second + (1 - a * sigma * p) ** 2).sum()
        precision = a**2 * p * second - a * sigma * (1 - a * sigma * p)
        want.append(torch.cat([value[None], -(a**2) * p**2 * first, precision]))
    z = (calls.mean(0) - torch.stack(want).mean(0)) / (calls.std(0) / len(calls) ** 0.5)
    assert z.abs().max() < 4.5


def test_several_levels_are_fitted_by_a_mixture_with_weights_sigma_squared():
    """Data N(0, ½²): the gradient in the mixture's weights vanishes at σ², and only there."""
    torch.manual_seed(0)
    levels = torch.tensor([0.3, 0.8, 1.5]).double()
    variances = 0.25 + levels.square()

    def z_scores(weights):
        logits = weights.log().requires_grad_()

        def energy(x):
            return -(logits - 0.5 * variances.log() - 0.5 * x.square() / variances).logsumexp(1)

        loss_fn, slopes = DenoisingScoreMatching(energy, tuple(levels.tolist())), []
        for _ in range(60):
            loss = loss_fn(0.5 * torch.randn(4000, 1).double())
            slopes.append(torch.autograd.grad(loss, logits)[0])
        slopes = torch.stack(slopes)
        return slopes.mean(0) / (slopes.std(0) / len(slopes) ** 0.5)

    assert z_scores(levels.square()).abs().max() < 4.5
    assert z_scores(torch.ones(3).double()).abs().max() > 20


def test_a_conditional_energy_sees_the_level_of_each_state():
    seen = []

    class Conditional(EnergyFunction):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()).double())

        def forward(self, x, sigma):
            seen.append((x.detach(), sigma))
            return self.scale * 0.5 * x.square().sum((1, 2)) / (0.49 + sigma**2)

    torch.manual_seed(0)
    energy, levels = Conditional(), (0.1, 1.0)
    loss_fn = DenoisingScoreMatching(energy, levels, conditional=True)
    loss_fn(torch.zeros(20_000, 1, 2).double())
    x, sigma = seen[0]
    assert sigma.shape == (20_000,)
    for level in levels:
        at_level = (sigma - level).abs() < 1e-12
        # Five standard errors, of a proportion and of a variance.
        assert abs(at_level.double().mean() - 0.5) < 0.018
        assert abs(x[at_level].var() / level**2 - 1) < 0.05
    # For data N(0, 0.7²) the energy is that of every level: the gradient vanishes.
    slopes = []
    for _ in range(50):
        loss = loss_fn(0.7 * torch.randn(2000, 1, 2).double())
        slopes.append(torch.autograd.grad(loss, energy.scale)[0])
    slopes = torch.stack(slopes)
    assert abs(slopes.mean() / (slopes.std() / 50**0.5)) < 4.5


def test_a_sequence_of_one_level_is_that_level():
    energy = QuadraticEnergy(torch.zeros(2), torch.full((2,), 1.5))
    x, values = torch.randn(6, 2), []
    for scale in (0.3, (0.3,), torch.tensor(0.3), torch.tensor([0.3])):
        torch.manual_seed(0)
        values.append(DenoisingScoreMatching(energy, scale)(x))
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])


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


def test_impossible_arguments_are_refused():
    for sigma in (0.0, -1.0, float("nan"), "a", (), (0.1, 0.0), [[0.1, 0.2]], None):
        with pytest.raises(ConfigurationError):
            DenoisingScoreMatching(lambda x: x.sum(1), sigma)
    with pytest.raises(ConfigurationError):
        DenoisingScoreMatching(lambda x: x.sum(1), reference_scale=0.0)
    with pytest.raises(ConfigurationError, match="scaling"):
        DenoisingScoreMatching(lambda x: x.sum(1), reference_scale=0.1, conditional=True)


def test_a_conditional_energy_can_be_evaluated_in_inference_mode():
    scale = torch.tensor(1.5, requires_grad=True)
    loss_fn = DenoisingScoreMatching(
        lambda x, sigma: scale * x.square().sum(1) / sigma, (0.1, 1.0), conditional=True
    )
    with torch.inference_mode():
        assert torch.isfinite(loss_fn(torch.randn(8, 2)))
    loss_fn(torch.randn(8, 2)).backward()
    assert scale.grad is not None
