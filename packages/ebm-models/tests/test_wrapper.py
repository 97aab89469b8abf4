"""Any network as an energy."""

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, ShapeError
from ebm_models import ModuleEnergy


class Squared(nn.Module):
    """Gives (batch,)."""

    def forward(self, x):
        return x.square().flatten(1).sum(1)


@pytest.mark.parametrize("module", (Squared(), nn.Sequential(nn.Flatten(), nn.Linear(12, 1))))
def test_the_networks_output_is_the_energy(module):
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(ModuleEnergy(module)(x), module(x).reshape(5))
    based = ModuleEnergy(module, (3, 4), base_scale=0.5)
    torch.testing.assert_close(based(x), module(x).reshape(5) + 2 * x.square().sum((1, 2)))
    assert based.event_shape == (3, 4)


def test_the_network_is_registered():
    network = nn.Linear(2, 1)
    energy = ModuleEnergy(network)
    assert energy.module is network
    assert list(energy.state_dict()) == ["module.weight", "module.bias"]
    assert not energy.eval().module.training


def test_impossible_modules_are_refused():
    for module in (None, torch.sin, nn.Linear):
        with pytest.raises(ConfigurationError, match="instance"):
            ModuleEnergy(module)
    with pytest.raises(ShapeError, match="one number a state"):
        ModuleEnergy(nn.Linear(2, 3))(torch.zeros(4, 2))
    with pytest.raises(ShapeError, match=r"x\[None\]"):
        ModuleEnergy(nn.Linear(2, 1), 2)(torch.zeros(2))


@pytest.mark.parametrize("output", (lambda x: (x, x), lambda x: {"energy": x}, lambda x: 0.5))
def test_a_module_that_gives_no_tensor_is_refused(output):
    class Outputs(nn.Module):
        def forward(self, x):
            return output(x)

    name = type(output(None)).__name__
    with pytest.raises(ShapeError, match=f"gave a {name} .*one number a state"):
        ModuleEnergy(Outputs())(torch.zeros(4, 1))
