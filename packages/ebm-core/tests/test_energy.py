import copy

import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ebm_core import ConfigurationError, EnergyFunction, ShapeError, as_energy, spin
from ebm_core.energy import evaluation_mode, state_options
from ebm_core.testing import QuadraticEnergy


class Quartic(EnergyFunction):
    event_ndim = 1

    def forward(self, x):
        return x.pow(4).sum(-1)


class Scalar(EnergyFunction):
    event_shape = torch.Size([])

    def forward(self, x):
        return x.square()


def test_gradient_equals_the_closed_form_on_any_number_of_batch_axes():
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    value, gradient = Quartic().energy_and_gradient(x)
    torch.testing.assert_close(gradient, 4 * x**3)
    torch.testing.assert_close(value, x.pow(4).sum(-1))
    torch.testing.assert_close(Scalar().gradient(x), 2 * x)


def test_create_graph_reaches_parameters_and_states():
    energy = QuadraticEnergy(torch.zeros(2), torch.tensor([1.0, 3.0]))
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    energy.score(x, create_graph=True).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * energy.precision.detach() ** 2 * x.detach())
    torch.testing.assert_close(
        energy.precision.grad, (2 * energy.precision * x**2).squeeze(0).detach()
    )


def test_integer_states_are_taken_as_numbers():
    energy = as_energy(lambda s: -(s[:, 1:] * s[:, :-1]).sum(1), support=spin)
    spins = torch.tensor([[1, -1, 1]], dtype=torch.int8)
    assert torch.equal(energy.gradient(spins), torch.tensor([[1.0, -2.0, 1.0]]))


@pytest.mark.parametrize(
    "forward",
    (
        lambda x: x.square(),
        lambda x: x.square().sum(1, keepdim=True),
        lambda x: x.square().sum(),
        lambda x: 3.0,
    ),
    ids=("elementwise", "keepdim", "total", "number"),
)
def test_a_forward_without_one_number_a_state_is_refused(forward):
    with pytest.raises(ShapeError, match=r"one number a state, shape \(4,\)"):
        as_energy(forward).gradient(torch.zeros(4, 4))


def test_a_forward_cut_from_autograd_is_refused():
    weight = nn.Parameter(torch.ones(()))
    for forward in (lambda x: x.detach().sum(1), lambda x: weight * x.detach().sum(1)):
        with pytest.raises(ConfigurationError, match="autograd"):
            as_energy(forward).gradient(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("energy", "shape", "hint"),
    (
        (Quartic(), (3,), r"x\[None\]"),
        (QuadraticEnergy(torch.zeros(2)), (2,), r"x\[None\]"),
        (QuadraticEnergy(torch.zeros(2)), (5, 3), "event shape"),
        (as_energy(lambda x: x.sum(1)), (), r"x\[None\]"),
    ),
)
def test_states_of_the_wrong_shape_are_refused(energy, shape, hint):
    with pytest.raises(ShapeError, match=hint):
        energy.batch_shape(torch.zeros(shape))


def test_states_of_another_dtype_are_told_what_to_do():
    network = as_energy(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))
    with pytest.raises(ConfigurationError, match=r"x\.to\('cpu', torch.float32\)"):
        network.gradient(torch.zeros(3, 2).double())
    with pytest.raises(RuntimeError, match="same dtype"):
        network.gradient(torch.zeros(3, 5).double())


def test_as_energy_registers_modules():
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 1))
    closure = as_energy(lambda x: net(x).squeeze(1), net)
    module = as_energy(nn.Sequential(net, nn.Flatten(0)))
    bound = as_energy(QuadraticEnergy(torch.zeros(2)).forward)
    assert len(list(closure.parameters())) == len(list(module.parameters())) == 4
    assert len(list(bound.parameters())) == 2
    closure.eval()
    assert not net.training
    assert closure.double().gradient(torch.ones(1, 2, dtype=torch.float64)).dtype == torch.float64
    assert as_energy(closure) is closure
    assert as_energy(lambda x: net(x).squeeze(1)).state_dict() == {}


def test_a_copy_has_modules_of_its_own_or_is_refused():
    net = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    x = torch.ones(3, 2)
    for energy in (as_energy(net), as_energy(QuadraticEnergy(torch.zeros(2)).forward)):
        twin, value = copy.deepcopy(energy), energy(x)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        assert not torch.equal(twin(x), value)
        assert torch.equal(energy(x), value)
    with pytest.raises(ConfigurationError, match="subclass of EnergyFunction"):
        copy.deepcopy(as_energy(lambda x: net(x), net))
    copy.deepcopy(as_energy(lambda x: x.sum(1)))


def test_as_energy_takes_over_what_a_duck_says_of_itself():
    class Duck:
        event_shape = torch.Size([3])
        support = constraints.positive

        def __call__(self, x):
            return x.sum(-1)

    energy = as_energy(Duck())
    assert energy.event_shape == (3,)
    Duck.event_shape = 3
    assert as_energy(Duck()).event_shape == (3,)
    Duck.event_shape = 2.5
    with pytest.raises(ConfigurationError, match="event_shape"):
        as_energy(Duck())
    Duck.event_shape = [3]
    assert energy.support is constraints.positive
    assert as_energy(Duck(), event_shape=(2, 2)).event_shape == (2, 2)
    for wrong in (Duck, 3.0, None):
        with pytest.raises(ConfigurationError, match="callable"):
            as_energy(wrong)


class Noisy(nn.Linear):
    noisy = True

    def train(self, mode=True):
        self.noisy = mode
        return super().train(mode)


def test_evaluation_mode_tells_modules_that_want_to_know():
    net = nn.Sequential(Noisy(1, 1), nn.Dropout(), nn.Sequential(nn.Dropout()))
    net[2].eval()
    net[2][0].train()
    flags = [part.training for part in net.modules()]
    with evaluation_mode(net):
        assert not net[0].noisy
        assert not any(part.training for part in net.modules())
    assert net[0].noisy
    assert [part.training for part in net.modules()] == flags


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_evaluation_mode_of_scripted_modules():
    net = torch.jit.script(nn.Sequential(nn.Linear(2, 9), nn.Dropout(0.5)))
    x = torch.ones(1, 2)
    for _ in range(2):
        with evaluation_mode(net):
            assert torch.equal(net(x), net(x))
        assert net.training
    net.eval()
    assert not net.training


def test_evaluation_mode_restores_each_submodule():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    net[1].eval()
    with pytest.raises(KeyError), evaluation_mode(net):
        assert not any(part.training for part in net.modules())
        raise KeyError
    assert [part.training for part in net.modules()] == [True, True, False, False]


def test_state_options_follow_parameters_then_buffers():
    module = nn.BatchNorm1d(2, affine=False)
    assert state_options(module)[1] == torch.float32
    assert state_options(copy.deepcopy(module).double())[1] == torch.float64
    assert state_options(nn.Identity())[1] == torch.get_default_dtype()


def test_a_single_state_for_a_free_energy_is_told_of_the_batch_axis():
    energy = as_energy(lambda x: x.square().sum(-1))
    with pytest.raises(ShapeError, match=r"x\[None\]"):
        energy.gradient(torch.ones(2))
