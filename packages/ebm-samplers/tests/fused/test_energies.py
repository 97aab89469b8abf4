import pytest
import torch
from targets import TARGETS, DoubleWell
from torch import nn

from ebm_core import ConfigurationError, EnergyFunction, as_energy
from ebm_samplers.fused import counts, fuse


@pytest.mark.parametrize(
    ("name", "dtype"),
    (
        ("double well", torch.float32),
        ("funnel", torch.float32),
        ("logistic", torch.float32),
        ("perceptron", torch.float64),
    ),
    ids=str,
)
def test_energies_and_gradients_are_those_of_torch(name, dtype):
    make, event = TARGETS[name]
    energy = as_energy(make(dtype))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(70, *event, generator=generator, dtype=torch.float64).to(dtype)
    have = fuse(energy)(x)
    want = energy.energy_and_gradient(x)
    tight = 2e-6 if dtype == torch.float32 else 1e-12
    for a, b in zip(have, want, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        assert ((a - b).abs() / (1 + b.abs().max())).max() < tight


def test_all_functions_compile():
    def energy(x):
        y = x.exp().log1p() + x.abs().log() + x.sin() * x.cos() + x.tanh() + (0.3 * x).expm1()
        z = torch.sigmoid(x) + nn.functional.softplus(x) + x.erf() + x.atan() + x.floor()
        w = torch.asin(0.1 * x) + torch.acos(0.1 * x) + (x.abs() + 0.1) ** 1.7
        return (y + z + w).sum(1) + torch.maximum(x[:, 0], x[:, 1])

    x = torch.randn(70, 2, generator=torch.Generator().manual_seed(2))
    for have, want in zip(fuse(energy)(x), as_energy(energy).energy_and_gradient(x), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=2e-6)


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


def test_moved_module_in_a_closure_is_noticed_and_dropout_is_off():
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 1))
    energy = as_energy(lambda x: net(x).squeeze(1), net)
    compiled = fuse(energy)
    net.train()
    for dtype in (torch.float32, torch.float64):
        net.to(dtype)
        x = torch.randn(3, 2, dtype=dtype)
        have = compiled(x)[0]
        assert net.training
        torch.testing.assert_close(have, energy.eval()(x).detach())
        net.train()


class Dropped(EnergyFunction):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, True).sum(1)


class Counting(EnergyFunction):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x.sum(1)


def halved(x):
    while x.norm() > 1:
        x = x / 2
    return x.sum(1)


def written_into(x):
    x += 1
    return x.square().sum(1)


SPREAD = torch.eye(2) + 0.1
REFUSED = {
    "batch mean": (lambda x: (x - x.mean(0)).square().sum(1), "mixes the states"),
    "control flow": (lambda x: x.sum(1) if x.sum() > 0 else -x.sum(1), "leaves torch"),
    "item": (lambda x: x.sum(1) * x[0, 0].item(), "leaves torch"),
    "random": (lambda x: (x * torch.randn_like(x)).sum(1), "randn_like draws random numbers"),
    "dropout": (Dropped(), "random numbers"),
    "sort": (lambda x: x.sort(1)[0][:, 0], "aten.sort has no rule"),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy()).sum(1) + x.sum(1), "mixes the states"),
    "counter": (Counting(), "writes in place"),
    "while": (halved, "leaves torch"),
    "float": (lambda x: x.sum(1) * float(x[0, 0]), "leaves torch"),
    "list": (lambda x: x.sum(1) * x.tolist()[0][0], "tracing failed"),
    "dropout function": (lambda x: nn.functional.dropout(x, 0.5, True).sum(1), "random numbers"),
    "generator": (lambda x: (x * torch.rand(2, generator=torch.Generator())).sum(1), "aten.rand"),
    "shuffled": (lambda x: x[:, torch.randperm(2)][:, 0], "aten.randperm draws random numbers"),
    "fft": (lambda x: torch.fft.rfft(x).abs().sum(1), "aten._fft_r2c has no rule"),
    "determinant": (
        lambda x: torch.linalg.det(SPREAD + x[:, None] * x[:, :, None]),
        "aten._linalg_det has no rule",
    ),
    "batch norm": (
        lambda x: nn.functional.batch_norm(x, None, None, training=True).sum(1),
        "more than 1 value per channel",
    ),
    "batch sum": (lambda x: x.square().sum().expand(len(x)), "mixes the states"),
    "batch size": (lambda x: x.square().sum(1) * len(x), "mixes the states"),
    "into the states": (written_into, "writes in place into the states"),
    "integers": (lambda x: x.long().sum(1).float(), "torch.int64"),
    "detached": (lambda x: x.detach().square().sum(1), "cannot trace to x"),
    "integers inside": (lambda x: (x.round().int() * x).sum(1), "torch.int32"),
    "column": (lambda x: x.sum(1, keepdim=True), r"forward gave torch.Size\(\[1, 1\]\)"),
    "total": (lambda x: x.sum(), r"forward gave torch.Size\(\[\]\)"),
    "nothing": (lambda x: None, "forward gave NoneType"),
    "large": (
        lambda x: (x[:, :, None] * WIDE).cos().sum((1, 2)),
        "4,000,000 torch's batches are quicker",
    ),
    "double inside": (lambda x: x.double().square().sum(1).float(), "float64"),
}


WIDE = torch.ones(2, 1_000_000)
PLACED = (
    "control flow", "item", "random", "sort", "while", "float", "list", "dropout function",
    "generator", "shuffled", "fft", "determinant", "batch norm", "integers inside",
)  # fmt: skip


@pytest.mark.parametrize("name", tuple(REFUSED))
def test_what_cannot_be_fused_is_refused_by_name(name):
    energy, words = REFUSED[name]
    with pytest.raises(ConfigurationError, match=words) as caught:
        fuse(energy)(torch.randn(6, 2))
    if name in PLACED:
        assert "test_energies.py:" in str(caught.value)
