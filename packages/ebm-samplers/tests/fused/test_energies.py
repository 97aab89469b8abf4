import pytest
import torch
from targets import TARGETS, DoubleWell
from torch import nn

from ebm_core import ConfigurationError, EnergyFunction, as_energy
from ebm_samplers.fused import counts, fuse


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("name", tuple(TARGETS))
def test_energies_and_gradients_are_those_of_torch(name, dtype):
    make, event = TARGETS[name]
    energy = as_energy(make(dtype))
    x = torch.randn(70, *event, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        dtype
    )
    have = fuse(energy)(x)
    want = energy.energy_and_gradient(x)
    tight = 2e-6 if dtype == torch.float32 else 1e-12
    for a, b in zip(have, want, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert ((a - b).abs() / (1 + b.abs().max())).max() < tight


def test_parameters_are_followed_without_tracing_or_compiling():
    energy = DoubleWell()
    compiled = fuse(energy)
    x = torch.randn(5, 2)
    compiled(x)
    before = dict(counts)
    with torch.no_grad():
        energy.b.add_(0.5)
    energy.height = torch.tensor(3.0)
    torch.testing.assert_close(compiled(x)[0], energy(x).detach())
    assert dict(counts) == before


def test_closed_over_tensors_are_followed_in_place_and_noticed_when_rebound():
    scale = torch.ones(2)
    holder = {"scale": scale, "power": 2.0}
    energy = as_energy(lambda x: (holder["scale"] * x.abs() ** holder["power"]).sum(1))
    compiled = fuse(energy)
    x = torch.rand(5, 2) + 0.5
    compiled(x)
    before = dict(counts)
    scale.mul_(3)
    torch.testing.assert_close(compiled(x)[0], energy(x))
    assert dict(counts) == before
    holder["scale"] = torch.tensor([5.0, 7.0])  # rebound
    torch.testing.assert_close(compiled(x)[0], energy(x))
    assert counts["traced"] == before["traced"] + 1
    holder["power"] = 3.0  # a Python number
    torch.testing.assert_close(compiled(x)[0], energy(x))


def test_moved_module_in_a_closure_is_noticed():
    net = nn.Linear(2, 1)
    energy = as_energy(lambda x: net(x).squeeze(1))
    compiled = fuse(energy)
    compiled(torch.randn(3, 2))
    net.double()
    x = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(compiled(x)[0], energy(x).detach())


class Dropped(EnergyFunction):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, True).sum(1)


REFUSED = {
    "batch mean": (lambda x: (x - x.mean(0)).square().sum(1), "mixes the states"),
    "control flow": (lambda x: x.sum(1) if x.sum() > 0 else -x.sum(1), "leaves torch"),
    "item": (lambda x: x.sum(1) * x[0, 0].item(), "leaves torch"),
    "random": (lambda x: (x * torch.randn_like(x)).sum(1), "randn_like draws random numbers"),
    "dropout": (Dropped(), "random numbers"),
    "sort": (lambda x: x.sort(1)[0][:, 0], "aten.sort has no rule"),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy()).sum(1) + x.sum(1), "mixes the states"),
    "double inside": (lambda x: x.double().square().sum(1).float(), "float64"),
}


@pytest.mark.parametrize("name", tuple(REFUSED))
def test_what_cannot_be_fused_is_refused_by_name(name):
    energy, words = REFUSED[name]
    with pytest.raises(ConfigurationError, match=words) as caught:
        fuse(energy)(torch.randn(6, 2))
    if name in ("control flow", "item", "random", "sort"):
        assert "test_energies.py:" in str(caught.value)


def test_in_place_writes_are_followed():
    def energy(x):
        y = x.clone()
        y[:, 0] += 1
        return y.square().flatten(1).sum(1) * torch.tensor(2.0)

    x = torch.randn(4, 2)
    e, g = fuse(energy)(x)
    torch.testing.assert_close(e, energy(x))
    torch.testing.assert_close(g, 4 * (x + torch.tensor([1.0, 0.0])))


def test_dropout_module_is_off():
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 1))
    energy = as_energy(lambda x: net(x).squeeze(1), net)
    x = torch.randn(4, 2)
    have = fuse(energy)(x)[0]
    assert net.training
    torch.testing.assert_close(have, energy.eval()(x).detach())


OPERATIONS = {
    "cat": lambda x: torch.cat([x, x.square()], 1).sum(1) * torch.stack([x[:, 0], x[:, 1]], 1).prod(1),
    "pow": lambda x: (x.abs() + 0.1).pow(1.7).sum(1) + (x**3).sum(1) + (x.abs() + 1).pow(-2).sum(1),
    "clamp": lambda x: x.clamp(-0.5, 0.5).sum(1) + torch.maximum(x[:, 0], x[:, 1]),
    "activations": lambda x: sum(
        f(x).sum(1) for f in (nn.functional.gelu, nn.functional.elu, nn.functional.relu, nn.functional.silu,
                              nn.functional.softplus, nn.functional.logsigmoid, torch.tanh, torch.sigmoid)
    ),
    "functions": lambda x: (torch.log1p(x**2) + torch.expm1(x) + torch.sin(3 * x) * torch.cos(x) + torch.rsqrt(1 + x**2)
                            + torch.erf(x) + torch.atan(x)).sum(1),
    "flip and roll": lambda x: (x.flip(1) * x).sum(1) + (torch.roll(x, 1, 1) * torch.arange(2.0)).sum(1),
    "index": lambda x: (x[:, torch.tensor([1, 0, 1])] ** torch.tensor([1.0, 2.0, 3.0])).sum(1),
    "where": lambda x: torch.where(x > 0, x, x.exp()).sum(1),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1) + torch.softmax(x, 1)[:, 0],
    "einsum": lambda x: torch.einsum("bi,ij,bj->b", x, torch.tensor([[1.0, 0.3], [0.3, 2.0]]), x),
    "distribution": lambda x: -torch.distributions.Normal(0.5, 2.0, validate_args=False).log_prob(x).sum(1),
}  # fmt: skip


@pytest.mark.parametrize("name", tuple(OPERATIONS))
def test_operations(name):
    energy = as_energy(OPERATIONS[name])
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(2))
    for have, want in zip(fuse(energy)(x), energy.energy_and_gradient(x), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=2e-6)
