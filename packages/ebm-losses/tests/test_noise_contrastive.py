"""Noise-contrastive estimation against quadrature on one-dimensional Gaussians."""

import math

import pytest
import torch

from ebm_core import ConfigurationError, NumericalError
from ebm_core.testing import LossConformance, QuadraticEnergy
from ebm_losses import NoiseContrastiveEstimation


def gaussian(mean, precision):
    return QuadraticEnergy(torch.tensor([mean]).double(), torch.tensor([precision]).double())


def log_density(distribution, x):
    return (-distribution(x) - distribution.log_normalizer()).detach()


class StandardNormal:
    """Noise of any event shape and dtype, by shape alone."""

    def __init__(self, event_shape, dtype):
        self.event_shape, self.dtype = event_shape, dtype

    def __call__(self, x):
        return 0.5 * x.square().flatten(1).sum(1)

    def exact_sample(self, n, seed=None):
        return torch.randn(n, *self.event_shape, dtype=self.dtype)

    def log_normalizer(self):
        return torch.tensor(0.5 * math.prod(self.event_shape) * math.log(2 * math.pi))


class TestConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        def make(energy):
            event_shape = getattr(energy, "event_shape", None) or self.event_shapes[0]
            dtype = next(iter(energy.parameters())).dtype if hasattr(energy, "parameters") else None
            return NoiseContrastiveEstimation(energy, StandardNormal(event_shape, dtype))

        return make


def population(energy, c, data, noise, ratio):
    """The loss in expectation, by quadrature with the trapezoidal rule (exact to rounding here)."""
    grid = torch.linspace(-15, 15, 4001).double()[:, None]
    weight = 30 / 4000
    p, q = log_density(data, grid).exp() * weight, log_density(noise, grid).exp() * weight
    ratio_of_densities = -energy(grid) - c - log_density(noise, grid)
    posterior = torch.sigmoid(ratio_of_densities - math.log(ratio))
    return -(p * posterior.log()).sum() - ratio * (q * (-posterior).log1p()).sum()


@pytest.mark.parametrize("ratio", (1, 3))
def test_value_and_gradient_equal_quadrature(ratio):
    torch.manual_seed(0)
    data, noise, energy = gaussian(0.3, 1.5), gaussian(0.0, 0.6), gaussian(-0.2, 1.2)
    loss_fn = NoiseContrastiveEstimation(energy, noise, ratio, log_normalizer=0.4)
    parameters = [energy.location, energy.precision, loss_fn.log_normalizer]
    calls = []
    for _ in range(200):
        loss = loss_fn(data.exact_sample(1000))
        calls.append(torch.stack([loss, *(g.sum() for g in torch.autograd.grad(loss, parameters))]))
    calls = torch.stack(calls).detach()
    value = population(energy, loss_fn.log_normalizer, data, noise, ratio)
    want = torch.stack([value, *(g.sum() for g in torch.autograd.grad(value, parameters))]).detach()
    z = (calls.mean(0) - want) / (calls.std(0) / len(calls) ** 0.5)
    assert z.abs().max() < 4.5


@pytest.mark.parametrize("ratio", (1, 3))
def test_the_optimum_is_the_datas_density_with_its_normaliser(ratio):
    """Fitted to fixed draws, all three parameters lie within errors by the sandwich formula."""
    torch.manual_seed(0)
    data, noise, n = gaussian(0.3, 1.5), gaussian(0.0, 0.6), 20_000
    x, draws = data.exact_sample(n), noise.exact_sample(ratio * n)
    noise.exact_sample = lambda n, seed=None: draws
    energy = gaussian(0.0, 1.0)
    loss_fn = NoiseContrastiveEstimation(energy, noise, ratio)
    parameters = [energy.location, energy.precision, loss_fn.log_normalizer]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    truth = torch.tensor([0.3, 1.5, data.log_normalizer().item()]).double()
    fitted = torch.cat([p.detach().reshape(1) for p in parameters])

    def score(states):  # derivative of log p by mean, precision and c
        z = states - fitted[0]
        return torch.cat([fitted[1] * z, -0.5 * z.square(), -torch.ones_like(z)], dim=1)

    def posterior(states):
        log_p = -energy(states) - loss_fn.log_normalizer
        return torch.sigmoid(log_p - log_density(noise, states) - math.log(ratio)).detach()[:, None]

    by_data = (1 - posterior(x)) * score(x)
    by_noise = ratio * posterior(draws) * score(draws)
    u = score(x)
    hessian = (u.T * (1 - posterior(x)).T) @ u / n
    covariance = by_data.T.cov() / n + by_noise.T.cov() / (ratio * n)
    inverse = torch.linalg.inv(hessian)
    errors = (inverse @ covariance @ inverse.T).diagonal().sqrt()
    assert errors.max() < 0.05
    assert ((fitted - truth).abs() / errors).max() < 4.5


@pytest.mark.parametrize("ratio", (1, 3))
def test_at_the_truth_the_population_gradient_vanishes(ratio):
    """The independent value used above has its optimum where it must."""
    data, noise, energy = gaussian(0.3, 1.5), gaussian(0.0, 0.6), gaussian(0.3, 1.5)
    c = energy.log_normalizer().detach().requires_grad_()
    value = population(energy, c, data, noise, ratio)
    for gradient in torch.autograd.grad(value, [energy.location, energy.precision, c]):
        assert gradient.abs().max() < 1e-12


def test_value_does_not_depend_on_the_shape_of_the_event():
    torch.manual_seed(0)
    x = torch.randn(8, 12)
    values = []
    for shape in ((12,), (3, 2, 2)):
        energy, noise = (QuadraticEnergy(torch.full(shape, v)) for v in (0.5, 0.0))
        torch.manual_seed(1)
        values.append(NoiseContrastiveEstimation(energy, noise)(x.reshape(8, *shape)))
    torch.testing.assert_close(*values)


def test_a_noise_module_is_registered_but_not_trained():
    energy, noise = (QuadraticEnergy(torch.zeros(2)) for _ in range(2))
    loss_fn = NoiseContrastiveEstimation(energy, noise)
    assert "noise.location" in loss_fn.state_dict()
    assert any(p is loss_fn.log_normalizer for p in loss_fn.parameters())
    loss_fn(torch.ones(8, 2)).backward()
    assert all(p.grad is None for p in noise.parameters())
    assert loss_fn.log_normalizer.grad is not None


def test_metrics():
    energy, noise = (QuadraticEnergy(torch.zeros(1).double()) for _ in range(2))
    c = noise.log_normalizer().item()
    loss_fn = NoiseContrastiveEstimation(energy, noise, 2, log_normalizer=c)
    x = torch.tensor([[1.0], [2.0]]).double()
    # The model is the noise: the posterior is the prior, 1 to 2.
    loss = loss_fn(x)
    assert abs(loss.item() - (math.log(3.0) + 2 * math.log(1.5))) < 1e-12
    assert set(loss_fn.metrics) == {"data_energy", "noise_energy", "accuracy", "log_normalizer"}
    assert abs(loss_fn.metrics["data_energy"].item() - 1.25) < 1e-12
    assert abs(loss_fn.metrics["log_normalizer"].item() - c) < 1e-12
    torch.testing.assert_close(loss_fn.log_density(x), log_density(noise, x))
    far = gaussian(30.0, 1.0)
    loss_fn = NoiseContrastiveEstimation(far, gaussian(0.0, 0.01))
    loss_fn(far.exact_sample(100))
    assert loss_fn.metrics["accuracy"] > 0.9


def test_states_may_be_integers():
    class Coins:
        def __call__(self, x):
            return torch.zeros(len(x))

        def exact_sample(self, n, seed=None):
            return torch.randint(2, (n, 3))

        def log_normalizer(self):
            return torch.tensor(3 * math.log(2.0))

    field = torch.zeros(3, requires_grad=True)
    loss_fn = NoiseContrastiveEstimation(
        lambda x: x.float() @ field, Coins(), log_normalizer=3 * math.log(2.0)
    )
    loss = loss_fn(torch.tensor([[1, 1, 1], [1, 0, 1]]))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(2 * math.log(2.0)))
    assert field.grad is not None
    assert loss_fn.metrics["accuracy"] == 0.5


def test_logits_beyond_the_range_of_exp_stay_finite():
    energy = QuadraticEnergy(torch.zeros(1), torch.full((1,), 1e6))
    loss_fn = NoiseContrastiveEstimation(energy, QuadraticEnergy(torch.zeros(1)))
    loss_fn(torch.full((4, 1), 10.0)).backward()
    assert torch.isfinite(energy.precision.grad).all()


def test_noise_of_the_wrong_kind_is_refused():
    for noise in (None, torch.nn.Linear(1, 1), QuadraticEnergy, torch.randn):
        with pytest.raises(ConfigurationError, match="exact_sample"):
            NoiseContrastiveEstimation(lambda x: x.sum(1), noise)
    energy, noise = QuadraticEnergy(torch.zeros(2)), QuadraticEnergy(torch.zeros(2))
    for options in ({"noise_ratio": 0}, {"noise_ratio": 1.5}, {"log_normalizer": math.inf}):
        with pytest.raises(ConfigurationError):
            NoiseContrastiveEstimation(energy, noise, **options)
    with pytest.raises(ConfigurationError, match=r"float32.*float64"):
        NoiseContrastiveEstimation(energy, noise)(torch.zeros(4, 2).double())
    with pytest.raises(ConfigurationError, match="event shape"):
        NoiseContrastiveEstimation(energy, QuadraticEnergy(torch.zeros(3)))(torch.zeros(4, 2))


def test_noise_that_does_not_cover_the_data_is_refused():
    class Box(StandardNormal):
        def __call__(self, x):
            return torch.where(x.abs().amax(1) < 1.0, 0.0, torch.inf)

    energy, box = QuadraticEnergy(torch.zeros(1)), Box((1,), torch.float32)
    with pytest.raises(NumericalError, match="1 of 2 data"):
        NoiseContrastiveEstimation(energy, box)(torch.tensor([[0.0], [2.0]]))
