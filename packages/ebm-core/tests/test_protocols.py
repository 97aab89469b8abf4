import pytest
import torch

from ebm_core import (
    BaseLoss,
    ConfigurationError,
    EBMError,
    ExactDistribution,
    Moments,
    NumericalError,
    Sampler,
    SampleResult,
    ShapeError,
    TemperedSampler,
)
from ebm_core.testing import QuadraticEnergy, ReferenceLangevin

ENERGY = QuadraticEnergy(torch.zeros(2))


def test_protocols_are_matched_by_shape():
    class Duck:
        def sample_chain(self, x_init, n_steps):
            return x_init

    assert isinstance(Duck(), Sampler)
    assert isinstance(ReferenceLangevin(ENERGY), TemperedSampler)
    assert isinstance(ENERGY, ExactDistribution)
    assert not isinstance(object(), Sampler)


def test_beta_tempers_each_chain():
    beta = torch.tensor([1.0, 4.0]).repeat_interleave(4000)
    x = torch.randn(8000, 2) / beta.sqrt()[:, None]
    torch.manual_seed(0)
    final = ReferenceLangevin(ENERGY, step_size=0.05).sample_chain(x, 20, beta=beta)
    for inverse_temperature in (1.0, 4.0):
        exact = 1 / (inverse_temperature * (1 - 0.05 * inverse_temperature / 2))
        variance = final[beta == inverse_temperature].square().mean()
        assert abs(variance / exact - 1) < 5 * (2 / 8000) ** 0.5 + 0.02


def test_a_stateless_sampler_refuses_a_foreign_state():
    class Still(ReferenceLangevin):
        state_dict = ReferenceLangevin.__mro__[1].state_dict
        load_state_dict = ReferenceLangevin.__mro__[1].load_state_dict

    assert Still(ENERGY).state_dict() == {}
    with pytest.raises(ConfigurationError, match="key"):
        Still(ENERGY).load_state_dict({"key": 1})


class Scaled(BaseLoss):
    def __init__(self, energy, factor):
        super().__init__(energy)
        self.factor = factor

    def compute(self, x):
        return self.factor * self.energy(x).mean(), {"size": len(x)}


def test_data_of_another_dtype_are_told_what_to_do():
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    with pytest.raises(ConfigurationError, match=r"x\.to\('cpu', torch.float32\)"):
        Scaled(network, 1.0)(torch.zeros(3, 2).double())
    with pytest.raises(RuntimeError, match="its own"):
        Scaled(failing, 1.0)(torch.zeros(3, 2).double())


def failing(x):
    raise RuntimeError("its own")


def test_metrics_are_copies():
    class Reported(BaseLoss):
        def compute(self, x):
            loss = self.energy(x).mean()
            return loss, {"loss": loss}

    reported = Reported(ENERGY)
    value = reported(torch.ones(3, 2))
    with torch.no_grad():
        value.add_(1.0)
    assert reported.metrics["loss"] == value - 1.0


def test_a_loss_checks_its_data_and_its_value():
    loss = Scaled(ENERGY, 2.0)
    assert loss(torch.ones(3, 2)) == 2.0
    assert loss.metrics["size"] == 3
    with pytest.raises(ShapeError):
        loss(torch.ones(2))
    with pytest.raises(ConfigurationError, match="TensorDataset"):
        loss([torch.ones(3, 2)])
    with pytest.raises(NumericalError, match="learning rate"):
        Scaled(ENERGY, float("nan"))(torch.ones(3, 2))


def test_moments_equal_those_of_all_draws():
    draws = torch.randn(4, 10, 3, dtype=torch.float64)
    total = Moments.of(draws[:, 0])
    for i in range(1, 10):
        total = total.merged(Moments.of(draws[:, i]))
    torch.testing.assert_close(total.mean, draws.mean(1))
    torch.testing.assert_close(total.variance, draws.var(1))
    torch.testing.assert_close(total.second_moment, draws.square().mean(1))
    assert Moments.of(draws[:, 0]).variance.isnan().all()


def test_a_result_shows_shapes_not_numbers():
    result = ReferenceLangevin(ENERGY).sample(n_samples=3, n_steps=4, seed=0, keep="trajectory")
    assert isinstance(result, SampleResult)
    assert "trajectory=(3, 4, 2)" in repr(result)
    assert (result.n_chains, result.n_draws) == (3, 4)
    with pytest.raises(EBMError, match="first_chain"):
        ReferenceLangevin(ENERGY).sample(n_samples=3, n_steps=4, first_chain=1)
