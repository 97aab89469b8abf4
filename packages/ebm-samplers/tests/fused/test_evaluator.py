"""Terms of objectives by kernels: their values, and their derivatives by parameters."""

import copy
import pickle

import pytest
import torch
from objectives import (
    TERMS,
    Energies,
    Perceptron,
    Scaled,
    Slopes,
    compare,
    drawn,
    gradients,
)
from targets import DoubleWell
from torch import nn

from ebm_core import ConfigurationError, EnergyFunction, as_energy
from ebm_samplers import FusedEvaluator
from ebm_samplers.fused import counts, lookup, trainable
from ebm_samplers.fused.matrices import _onednn, rows_by_rows
from ebm_samplers.fused.sensitivities import Product

f = nn.functional


class Tied(EnergyFunction):
    """One weight in two layers, and once more transposed; a skip; a scale; an unused parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.tied = nn.Linear(2, 24), nn.Linear(24, 24)
        self.scale, self.unused = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.ones(3))

    def forward(self, x):
        hidden = self.first(x).tanh()
        hidden = hidden + self.tied(hidden).tanh()
        hidden = f.silu(self.tied(hidden)) @ self.tied.weight
        hidden = torch.einsum("ni,io->no", hidden, self.tied.weight.mT)
        return self.scale * hidden.square().mean(1) + self.scale.exp()


class Particles(EnergyFunction):
    """The same layers for each of five particles: products with an inner length of five."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 20), nn.SiLU(), nn.Linear(20, 20), nn.GELU())

    def forward(self, x):
        return self.layers(x).sum((1, 2)) + x.square().sum((1, 2))


class Shapes(EnergyFunction):
    """One weight as matrices of two shapes; another that is also penalised, twice."""

    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Linear(2, 40), nn.Linear(40, 40)
        self.weight = nn.Parameter(torch.randn(1600).mul_(0.2))

    def forward(self, x):
        hidden = self.first(x).tanh() @ self.weight.view(40, 40)
        hidden = torch.cat((hidden.sin(), hidden.cos()), 1) @ self.weight.view(80, 20)
        penalty = self.other.weight.sum() + (3 * self.other.weight).sum()
        return hidden.sum(1) + self.other(self.first(x)).tanh().sum(1) + 0.01 * penalty


ENERGIES = {
    "perceptron": (Perceptron, (2,)),
    "gelu": (lambda: Perceptron(nn.GELU), (2,)),
    "tanh, no bias": (lambda: Perceptron(nn.Tanh, bias=False), (2,)),
    "straight-line": (lambda: Perceptron(width=4), (2,)),
    "image": (lambda: Perceptron(n_inputs=6), (2, 3)),
    "tied": (Tied, (2,)),
    "particles": (Particles, (5, 3)),
    "shapes": (Shapes, (2,)),
    "no products": (DoubleWell, (3,)),
}


FEW = ("perceptron", "straight-line")
"""Energies that are looked at with one state, too: another kernel."""


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("name", ENERGIES)
def test_values_and_derivatives_are_those_of_autograd(name, terms):
    make, event = ENERGIES[name]
    torch.manual_seed(0)
    energy = make().double()
    term, evaluator = TERMS[terms][0](energy), FusedEvaluator("fused")
    for n in (1, 70) if name in FEW else (70,):
        arguments, slopes = drawn(terms, event, n), torch.linspace(-1, 2, n).double()
        have, want = evaluator(term, *arguments), term(*arguments)
        assert not any(other.requires_grad for other in have[1:])
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-9)
        found = zip(
            gradients(energy, have[0], slopes), gradients(energy, want[0], slopes), strict=True
        )
        for a, b in found:
            assert (a is None) == (b is None)  # optimisers tell None from zero
            if b is not None:
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("terms", TERMS)
def test_single_precision(terms):
    torch.manual_seed(0)
    energy = Perceptron(width=128)
    term, arguments = TERMS[terms][0](energy), drawn(terms, (2,), 300, torch.float32)
    slopes = torch.full((300,), 1 / 300)
    have = gradients(energy, FusedEvaluator("fused")(term, *arguments)[0], slopes)
    double = copy.deepcopy(energy).double()
    exact = TERMS[terms][0](double)(*(a.double() for a in arguments))[0]
    for a, b in zip(have, gradients(double, exact, slopes.double()), strict=True):
        assert (a is None) == (b is None)
        assert b is None or (a - b).abs().max() < 2e-5 * (1 + b.abs().max())


def test_what_changes_is_followed():
    torch.manual_seed(0)
    energy, evaluator = Perceptron().double(), FusedEvaluator("fused")
    (x,) = drawn("energies", (2,), 30)

    def check():
        term, slopes = Energies(energy), torch.linspace(-1, 1, 30).double()
        have, want = evaluator(term, x)[0], term(x)[0]
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            gradients(energy, have, slopes), gradients(energy, want, slopes), rtol=1e-8, atol=1e-9
        )

    check()
    with torch.no_grad():
        energy.layers[2].weight.mul_(0.5)  # as an optimiser does
    traced = counts["traced"]
    check()
    assert counts["traced"] == traced
    energy.layers[0].weight = nn.Parameter(energy.layers[0].weight.detach() + 1)
    check()
    energy.layers[2].weight.requires_grad_(False)  # frozen: one derivative less
    check()
    energy.width = 0.8  # a number that no tensor holds
    check()
    assert counts["traced"] > traced


def test_modes_are_told_apart():
    """Dropout has a kernel in eval mode, and is torch's in training."""
    energy = Perceptron(width=16)
    energy.layers[1] = nn.Sequential(nn.SiLU(), nn.Dropout(0.5))
    (x,) = drawn("energies", (2,), 64, torch.float32)
    evaluator, insisting, term = FusedEvaluator(), FusedEvaluator("fused"), Energies(energy)
    energy.eval()
    torch.testing.assert_close(insisting(term, x)[1], term(x)[1])
    energy.train()
    with pytest.raises(ConfigurationError, match="random"):
        insisting(term, x)
    first, second = evaluator(term, x)[1], evaluator(term, x)[1]
    assert not torch.equal(first, second)
    energy.eval()
    torch.testing.assert_close(insisting(term, x)[1], term(x)[1])


def test_attempts_leave_running_statistics_alone():
    energy = Perceptron(width=16)
    energy.layers[1] = nn.Sequential(nn.SiLU(), nn.BatchNorm1d(16))
    other, (x,) = copy.deepcopy(energy), drawn("energies", (2,), 64, torch.float32)
    assert torch.equal(FusedEvaluator()(Energies(energy), x)[1], Energies(other)(x)[1])
    assert all(map(torch.equal, energy.buffers(), other.buffers()))


class Mixed(Perceptron):
    def forward(self, x):
        energies = super().forward(x)
        return energies - energies.mean()


class Bounded(nn.Module):
    def forward(self, weight):
        return weight.tanh()


class Parametrised(Perceptron):
    def __init__(self):
        super().__init__(width=64)
        nn.utils.parametrize.register_parametrization(self.layers[2], "weight", Bounded())


def hooked():
    energy = Perceptron(width=16)
    energy.layers[2].register_forward_hook(lambda module, inputs, output: None)
    return energy


REFUSED = {
    "convolution": (
        lambda: as_energy(lambda x: net(x[:, None, None]).sum((1, 2, 3)), net)
        if (net := nn.Conv2d(1, 2, 1)) else None, "no rule|convolution",
    ),
    "hook": (hooked, "Linear does more in forward"),
    "tensor of a closure": (lambda: Scaled(torch.ones(1, requires_grad=True)), "no parameter"),
    "states that meet": (Mixed, "mixes the states"),
    "parametrised weight": (Parametrised, "a product of matrices"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_kernel_is_evaluated_by_torch(name):
    make, reason = REFUSED[name]
    torch.manual_seed(0)
    energy = make()
    term, (x,) = Energies(energy), drawn("energies", (2,), 64, torch.float32)
    with pytest.raises(ConfigurationError, match=reason):
        FusedEvaluator("fused")(term, x)
    have, want = FusedEvaluator()(term, x)[0], term(x)[0]
    assert torch.equal(have, want)
    slopes = torch.linspace(-1, 1, 64)
    torch.testing.assert_close(gradients(energy, have, slopes), gradients(energy, want, slopes))
    assert "torch" in FusedEvaluator().explain(term, x)


class Heads(EnergyFunction):
    """One weight, split; and weights that are computed from the state."""

    def __init__(self, computed):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 24))
        self.layer, self.computed = nn.Linear(3, 24), computed

    def forward(self, x):
        if self.computed:
            mixed = self.layer(x).view(-1, 3, 8).transpose(1, 2) @ x.unsqueeze(2)
            return mixed.tanh().sum((1, 2))
        heads = self.weight.view(3, 4, 6).transpose(0, 1)
        return (x[:, None, None] @ heads).tanh().square().sum((1, 2, 3))


@pytest.mark.parametrize("computed", (False, True))
def test_heads(computed):
    torch.manual_seed(0)
    energy = Heads(computed).double()
    arguments = drawn("slopes", (3,), 70)
    compare(energy, FusedEvaluator("fused"), Slopes(energy), *arguments)


def test_small_energies_are_watched_as_closely():
    class Small(Perceptron):
        scale = 1e-4

        def forward(self, x):
            return self.scale * super().forward(x)

    torch.manual_seed(0)
    energy, evaluator = Small(), FusedEvaluator("fused")
    (x,) = drawn("energies", (2,), 70, torch.float32)
    for scale in (1e-4, 2e-4):
        energy.scale = scale
        torch.testing.assert_close(
            evaluator(Energies(energy), x)[0], energy(x), rtol=1e-3, atol=1e-8
        )


class Unhashable(Energies):
    __hash__ = None


class Alone(Energies):
    def __call__(self, x):
        return (self.energy(x),)


@pytest.mark.parametrize("kind", (Unhashable, Alone))
def test_terms_of_another_form_are_called(kind):
    term, x = kind(Perceptron()), torch.randn(300, 2)
    assert torch.equal(FusedEvaluator()(term, x)[0], term(x)[0])


def test_states_that_are_not_finite_do_not_bar_the_others():
    energy, evaluator = Perceptron().double(), FusedEvaluator("fused")
    (x,) = drawn("energies", (2,), 70)
    bad = x.clone()
    bad[1] = torch.nan
    assert evaluator(Energies(energy), bad)[0].isnan().sum() == 1
    compare(energy, evaluator, Energies(energy), x)


def test_what_pays_is_told(monkeypatch):
    monkeypatch.setattr(trainable, "PAYS", 100)
    term, slopes = Energies(Perceptron()), Slopes(Perceptron())
    x, target = torch.randn(20_000, 2), torch.randn(20_000, 2)
    assert "operations" in FusedEvaluator().explain(term, x)
    assert torch.equal(FusedEvaluator()(term, x)[0], term(x)[0])
    assert "engine 'fused'" in FusedEvaluator("fused").explain(term, x[:8])
    assert "engine 'fused'" in FusedEvaluator().explain(slopes, x[:8], target[:8])


def test_a_matrix_that_derivatives_use_again_is_packed_once():
    energy, evaluator = Perceptron(), FusedEvaluator("fused")
    evaluator(Slopes(energy), *drawn("slopes", (2,), 64, torch.float32))
    (joined,) = evaluator._known.values()
    (fused,) = lookup._lookups[joined].known.values()
    layout = fused.layout
    packed, blocks = layout.now(), [b for b in layout.blocks if b.stop - b.start > 24]
    matrices = [packed[block.start : block.stop].tobytes() for block in blocks]
    assert len(matrices) == len(set(matrices)) <= 4  # two layers, and their transposes


def test_copies_work_and_few_kernels_are_kept():
    energy, evaluator = Perceptron(width=8), FusedEvaluator("fused")
    x = torch.randn(64, 2)
    want = evaluator(Energies(energy), x)[1]
    for other in (copy.deepcopy(evaluator), pickle.loads(pickle.dumps(evaluator))):
        torch.testing.assert_close(other(Energies(energy), x)[1], want)
    for _ in range(20):
        evaluator(Energies(Perceptron(width=2)), x)
    assert len(evaluator._known) <= 16


def test_a_kernel_that_differs_from_autograd_is_not_used(monkeypatch):
    term, x = Energies(Perceptron(width=16)), torch.randn(64, 2)
    right = Product.total
    monkeypatch.setattr(Product, "total", lambda *given: 1.01 * right(*given))
    with pytest.raises(ConfigurationError, match="differ from autograd's"):
        FusedEvaluator("fused")(term, x)
    assert torch.equal(FusedEvaluator()(term, x)[0], term(x)[0])


def test_a_wrong_engine_is_refused():
    with pytest.raises(ConfigurationError, match="engine"):
        FusedEvaluator("torch")


@pytest.mark.parametrize("shape", ((160, 128, 96), (3, 500, 2), (130, 1, 200)))
def test_products_of_rows(shape):
    p, n, q = shape
    a, b = (torch.randn(m, n, generator=torch.Generator().manual_seed(m)) for m in (p, q))
    for left, right in ((a, b), (a.repeat(1, 2)[:, :n], b.repeat(1, 2)[:, :n])):
        want = left.double() @ right.double().t()
        torch.testing.assert_close(rows_by_rows(left, right).double(), want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rows_by_rows(left.double(), right.double()), want)


def test_products_do_without_the_other_library(monkeypatch):
    _onednn.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None, raising=False)
    assert _onednn() is None
    a = torch.randn(1100, 40)
    torch.testing.assert_close(rows_by_rows(a, a), a @ a.t())
    _onednn.cache_clear()
