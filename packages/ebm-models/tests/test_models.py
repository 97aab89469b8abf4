"""What all models share: the conformance suite, copies, precision, tracing, training."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from ebm_core.testing import ModelConformance, ReferenceLangevin
from ebm_models import (
    BaseModel,
    ClassifierEnergy,
    ConditionalEnergy,
    ConvEnergy,
    ConvNetwork,
    MLPEnergy,
    ModuleEnergy,
    ResidualNetwork,
    ResNetEnergy,
)


class Convolutional(BaseModel):
    """A network of one's own."""

    def __init__(self):
        super().__init__((1, 4, 4), base_scale=2.0)
        self.network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 1))

    def network_energy(self, x):
        return self.network(x)


def perceptron(n_outputs=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, n_outputs))


MODELS = {
    "default": lambda: MLPEnergy(2),
    "softplus and base": lambda: MLPEnergy(3, (16, 16), "softplus", base_scale=3.0),
    "blocks": lambda: MLPEnergy((2, 2, 2), (8,), nn.Tanh(), n_frequencies=5, frequency_scale=2.0),
    "sine": lambda: MLPEnergy(2, (8, 8), torch.sin, base_scale=1.0, n_frequencies=3),
    "scalars": lambda: MLPEnergy((), (8,), "gelu", base_scale=1.0),
    "wrapped": lambda: ModuleEnergy(perceptron(), (2, 3), base_scale=2.0),
    "subclass": Convolutional,
    "convolutions": lambda: ConvEnergy((1, 4, 4), (3, 5), base_scale=2.0),
    "residual": lambda: ResNetEnergy((2, 4, 4), (3, 4), 1, "softplus"),
    "classifier": lambda: ClassifierEnergy(ConvNetwork((1, 4, 4), (3,), 3), 3, (1, 4, 4), 2.0),
    "conditional": lambda: ConditionalEnergy(perceptron(3), 3, (2, 3)),
    "given": lambda: ConditionalEnergy(perceptron(3), 3, (2, 3), 1.0).given(1),
    "residual classifier": lambda: ClassifierEnergy(
        ResidualNetwork((1, 4, 4), (3,), 2, 1), 2, (1, 4, 4)
    ),
}


@pytest.fixture(params=MODELS)
def energy(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


class TestConformance(ModelConformance):
    pass


def states(energy, n=6, dtype=torch.float32):
    return torch.randn(n, *energy.event_shape, dtype=dtype)


def test_gradients_pass_gradcheck(energy):
    energy = energy.double()
    x = states(energy, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(energy, x)
    assert torch.autograd.gradgradcheck(energy, x)


def test_pickles_and_copies_are_the_same_energy_and_apart(energy):
    x = states(energy)
    before = energy(x)
    for twin in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert torch.equal(twin(x), before)
        for parameter in twin.parameters():
            parameter.data.add_(1.0)
        assert torch.equal(energy(x), before)


def test_is_traced_once_for_all_states_and_weights(energy):
    """Parameters stay arguments: the graph holds no branch and no value of the traced call."""
    x = states(energy)
    tensors = dict(energy.named_parameters()) | dict(energy.named_buffers())

    def value(tensors, x):
        return torch.func.functional_call(energy, tensors, (x,))

    graph = make_fx(value)(tensors, x)
    changed = {
        name: tensor + 0.5 if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    torch.testing.assert_close(graph(changed, 2 * x), value(changed, 2 * x))
    rows = torch.func.vmap(lambda row: energy(row[None])[0])(x)
    torch.testing.assert_close(rows, energy(x))


def test_integer_states_are_numbers():
    energy = MLPEnergy(3, (8,), base_scale=1.0)
    x = torch.tensor([[1, -1, 1], [0, 1, 100]], dtype=torch.int8)
    torch.testing.assert_close(energy(x), energy(x.float()))


def test_an_empty_batch_has_no_energies(energy):
    assert energy(states(energy, 0)).shape == (0,)


def test_chains_run_and_the_model_learns(energy):
    sampler = ReferenceLangevin(energy, 0.01)
    assert torch.isfinite(sampler.sample_chain(states(energy), 5)).all()
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.01)
    low, high = torch.zeros(1, *energy.event_shape), torch.ones(1, *energy.event_shape)
    for _ in range(20):
        optimizer.zero_grad()
        (energy(low) - energy(high)).sum().backward()
        optimizer.step()
    assert energy(low) < energy(high)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moves_to_a_cuda_device(energy):
    x = states(energy)
    want = energy(x)
    torch.testing.assert_close(energy.cuda()(x.cuda()).cpu(), want)
