"""The perceptron's value with known weights, its layers, and Fourier features."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError
from ebm_models import FourierFeatures, MLPEnergy


def test_value_with_known_weights():
    energy = MLPEnergy(2, (2,), "relu", base_scale=1.0).double()
    with torch.no_grad():
        energy.hidden[0].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0]]))
        energy.hidden[0].bias.copy_(torch.tensor([0.5, -1.0]))
        energy.output.weight.copy_(torch.tensor([[2.0, 3.0]]))
        energy.output.bias.fill_(0.25)
    # Units: relu(1 + 4 + .5) = 5.5 and relu(-1 + 2 - 1) = 0; base: (1 + 4) / 2.
    x = torch.tensor([[1.0, 2.0], [-3.0, 1.0]]).double()
    # Second state: relu(-.5) = 0 and relu(3 + 1 - 1) = 3; base: (9 + 1) / 2.
    want = torch.tensor([2 * 5.5 + 0.25 + 2.5, 3 * 3.0 + 0.25 + 5.0]).double()
    torch.testing.assert_close(energy(x), want)


@pytest.mark.parametrize(
    ("name", "function"),
    (
        ("silu", nn.functional.silu),
        ("softplus", nn.functional.softplus),
        ("tanh", torch.tanh),
        ("gelu", nn.functional.gelu),
        ("elu", nn.functional.elu),
        ("relu", torch.relu),
    ),
)
def test_an_activation_by_name_is_the_function(name, function):
    torch.manual_seed(0)
    named = MLPEnergy(3, (7, 5), name)
    given = MLPEnergy(3, (7, 5), function)
    given.load_state_dict(named.state_dict())
    x = torch.randn(9, 3)
    torch.testing.assert_close(named(x), given(x))
    by_hand = x
    for layer in named.hidden:
        by_hand = function(by_hand @ layer.weight.T + layer.bias)
    by_hand = (by_hand @ named.output.weight.T + named.output.bias)[:, 0]
    torch.testing.assert_close(named(x), by_hand)


def test_events_of_any_shape_are_flattened():
    torch.manual_seed(0)
    flat, image = MLPEnergy(12, (8,), base_scale=2.0), MLPEnergy((3, 2, 2), (8,), base_scale=2.0)
    image.load_state_dict(flat.state_dict())
    x = torch.randn(5, 12)
    torch.testing.assert_close(flat(x), image(x.reshape(5, 3, 2, 2)))
    assert image.event_shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("options", "widths"),
    (
        ({}, (2, 128, 128, 128, 1)),
        ({"hidden": (64,)}, (2, 64, 1)),
        ({"hidden": []}, (2, 1)),
        ({"hidden": (64,), "n_frequencies": 10}, (22, 64, 1)),
    ),
)
def test_widths_of_layers(options, widths):
    energy = MLPEnergy(2, **options)
    layers = [m for m in energy.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == list(pairwise(widths))


def test_initial_energies_are_small_and_follow_torchs_seed():
    torch.manual_seed(0)
    energies = MLPEnergy(2)(torch.randn(1000, 2))
    assert energies.std() < 0.3
    torch.manual_seed(0)
    first = MLPEnergy(2, n_frequencies=3).state_dict()
    torch.manual_seed(0)
    second = MLPEnergy(2, n_frequencies=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fourier_features_are_the_formula_with_the_asked_frequencies():
    torch.manual_seed(0)
    features = FourierFeatures(3, 5000, scale=2.5).double()
    x = torch.randn(4, 3).double()
    phases = torch.einsum("mi,bi->bm", features.frequencies, x)
    want = torch.cat([x, torch.sin(phases), torch.cos(phases)], 1)
    torch.testing.assert_close(features(x), want)
    assert features.n_outputs == want.shape[1]
    n = features.frequencies.numel()
    assert abs(features.frequencies.std() / 2.5 - 1) < 4.5 / (2 * n) ** 0.5
    assert not list(features.parameters())
    assert list(features.state_dict()) == ["frequencies"]


def test_frequencies_are_saved_with_the_model():
    first, second = (MLPEnergy(2, (4,), n_frequencies=3) for _ in range(2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(5, 2)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(
    "options",
    (
        {"event_shape": 0},
        {"event_shape": None},
        {"hidden": 128},
        {"hidden": (0,)},
        {"hidden": (8, 2.5)},
        {"hidden": "128"},
        {"activation": "sigmoidal"},
        {"activation": nn.SiLU},
        {"activation": 3},
        {"n_frequencies": -1},
        {"n_frequencies": 4, "frequency_scale": 0.0},
        {"base_scale": 0.0},
    ),
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigurationError):
        MLPEnergy(**{"event_shape": 2, **options})


@pytest.mark.parametrize("hidden", ((8, 4), ()))
def test_the_input_gain_scales_the_first_layer_alone(hidden):
    torch.manual_seed(0)
    plain = MLPEnergy(3, hidden)
    torch.manual_seed(0)
    scaled = MLPEnergy(3, hidden, input_gain=4.0)
    for index, (a, b) in enumerate(zip(plain.parameters(), scaled.parameters(), strict=True)):
        torch.testing.assert_close(b, 4.0 * a if index < 2 else a)
