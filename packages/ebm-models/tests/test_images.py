"""Convolutional and residual networks: layers by hand, sizes, spectral norms, independence."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ebm_core import ConfigurationError, ShapeError
from ebm_core.testing import ModelConformance
from ebm_models import ConvEnergy, ConvNetwork, ResidualBlock, ResidualNetwork, ResNetEnergy

ENERGIES = {
    "convolutions": lambda: ConvEnergy((1, 8, 8), (4, 6), spectral_norm=True),
    "odd sizes": lambda: ConvEnergy((2, 5, 7), (3, 4, 5), "tanh", base_scale=1.0),
    "residual": lambda: ResNetEnergy((1, 6, 6), (4, 6), 2, spectral_norm=True, base_scale=2.0),
}


class TestConformance(ModelConformance):
    @pytest.fixture(params=ENERGIES)
    def energy(self, request):
        torch.manual_seed(0)
        return ENERGIES[request.param]()

    n_states = 3


def test_convolutions_by_hand():
    torch.manual_seed(0)
    energy = ConvEnergy((2, 6, 6), (3, 4), base_scale=1.5)
    x = torch.randn(5, 2, 6, 6)
    first, second = energy.network.convolutions
    hidden = F.silu(F.conv2d(x, first.weight, first.bias, padding=1))
    hidden = F.silu(F.conv2d(hidden, second.weight, second.bias, stride=2, padding=1))
    assert hidden.shape == (5, 4, 3, 3)
    output = hidden.reshape(5, -1) @ energy.network.output.weight.T + energy.network.output.bias
    want = output[:, 0] + x.square().sum((1, 2, 3)) / (2 * 1.5**2)
    torch.testing.assert_close(energy(x), want)


def test_residual_blocks_by_hand():
    torch.manual_seed(0)
    energy = ResNetEnergy((2, 4, 4), (3, 5), blocks_per_stage=1)
    x = torch.randn(6, 2, 4, 4)
    network = energy.network

    def convolution(layer, x):
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)

    hidden = convolution(network.input, x)
    for i, stage in enumerate(network.stages):
        (block,) = stage
        if i:
            hidden = hidden.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        same = block.first.in_channels == block.first.out_channels
        carried = hidden if same else convolution(block.shortcut, hidden)
        hidden = carried + convolution(
            block.second, F.silu(convolution(block.first, F.silu(hidden)))
        )
    pooled = F.silu(hidden).mean((2, 3))
    want = pooled @ network.output.weight[0] + network.output.bias
    torch.testing.assert_close(energy(x), want)


@pytest.mark.parametrize("shape", ((1, 8, 8), (3, 32, 32), (1, 28, 28)))
@pytest.mark.parametrize("kind", (ConvEnergy, ResNetEnergy))
def test_images_of_usual_sizes(kind, shape):
    energy = kind(shape, (4, 6, 8), base_scale=2.0)
    x = torch.rand(2, *shape)
    assert energy(x).shape == (2,)
    assert energy.gradient(x).shape == x.shape
    torch.testing.assert_close(energy((x > 0.5).to(torch.uint8)), energy((x > 0.5).float()))


@pytest.mark.parametrize("name", ("convolutions", "residual"))
def test_the_spectral_norm_bounds_every_convolution(name):
    torch.manual_seed(0)
    energy = ENERGIES[name]()
    x = torch.randn(2, *energy.event_shape)
    for _ in range(50):  # power iterations
        energy(x)
    energy.eval()
    layers = [m for m in energy.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) > 1
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert abs(largest - 1) < 1e-2
    before = {key: value.clone() for key, value in energy.state_dict().items()}
    energy.gradient(x)
    assert all(torch.equal(before[key], value) for key, value in energy.state_dict().items())
    assert torch.equal(energy(x), energy(x))


@pytest.mark.parametrize("name", ENERGIES)
def test_weights_restore_the_energy(name):
    torch.manual_seed(0)
    energy, twin = ENERGIES[name]().eval(), ENERGIES[name]().eval()
    file = io.BytesIO()
    torch.save(energy.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, *energy.event_shape)
    assert torch.equal(twin(x), energy(x))
    assert torch.equal(copy.deepcopy(energy)(x), energy(x))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    (
        (ConvEnergy, {"event_shape": (8, 8)}),
        (ConvEnergy, {"event_shape": 64}),
        (ConvEnergy, {"channels": ()}),
        (ConvEnergy, {"channels": 32}),
        (ConvEnergy, {"channels": (8, 0)}),
        (ConvEnergy, {"channels": (4, 4, 4, 4, 4)}),
        (ConvEnergy, {"activation": "sigmoidal"}),
        (ConvEnergy, {"spectral_norm": 1}),
        (ConvEnergy, {"base_scale": -1.0}),
        (ResNetEnergy, {"event_shape": (8, 8)}),
        (ResNetEnergy, {"channels": (4, 4, 4, 4, 4)}),
        (ResNetEnergy, {"blocks_per_stage": 0}),
        (ConvNetwork, {"n_outputs": 0}),
        (ResidualNetwork, {"n_outputs": 2.5}),
    ),
)
def test_impossible_arguments_are_refused(kind, arguments):
    with pytest.raises(ConfigurationError):
        kind(**{"event_shape": (1, 8, 8), **arguments})


def test_states_of_the_wrong_shape_are_refused():
    with pytest.raises(ShapeError, match=r"x\[None\]"):
        ConvEnergy((1, 8, 8))(torch.zeros(1, 8, 8))
    assert isinstance(ResidualBlock(2, 3, torch.tanh, False).shortcut, nn.Conv2d)
    assert isinstance(ResidualBlock(3, 3, torch.tanh, False).shortcut, nn.Identity)
