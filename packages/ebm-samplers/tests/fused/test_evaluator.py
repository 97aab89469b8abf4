"""Terms of objectives by kernels: their values, and their derivatives by parameters."""

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from targets import DoubleWell
from torch import nn
from torch.autograd import forward_ad

from ebm_core import ConfigurationError, EnergyFunction, as_energy
from ebm_samplers import FusedEvaluator
from ebm_samplers.fused import counts
from ebm_samplers.fused.matrices import _onednn, rows_by_rows
from ebm_samplers.fused.sensitivities import Product

f = nn.functional


@dataclass(frozen=True)
class Energies:
    energy: Any

    def __call__(self, x):
        energies = self.energy(x)
        return energies, energies.detach()


@dataclass(frozen=True)
class Slopes:
    """|∇E - target|², as in denoising score matching."""

    energy: Any

    def __call__(self, x, target):
        energies, gradient = self.energy.energy_and_gradient(x, create_graph=True)
        residual = (gradient - target).flatten(1)
        return residual.square().sum(1), energies.detach(), residual.detach().abs().amax(1)


@dataclass(frozen=True)
class Curvature:
    """½ |∇E|² - vᵀ∇²E v, as in sliced score matching."""

    energy: Any

    def __call__(self, x, v):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energies, gradient = self.energy.energy_and_gradient(x, create_graph=True)
            (along,) = torch.autograd.grad(gradient, x, v, create_graph=True)
        form = (v * along).flatten(1).sum(1)
        return 0.5 * gradient.square().flatten(1).sum(1) - form, energies.detach(), form.detach()


class Perceptron(EnergyFunction):
    def __init__(self, activation=nn.SiLU, width=24, n_inputs=2, bias=True):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_inputs, width, bias), activation(),
            nn.Linear(width, width), activation(), nn.Linear(width, 1),
        )  # fmt: skip
        self.width = 1.5

    def forward(self, x):
        flat = x.flatten(1)
        return self.layers(flat).squeeze(1) + flat.square().sum(1) / (2 * self.width**2)


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


ENERGIES = {
    "perceptron": (Perceptron, (2,)),
    "gelu": (lambda: Perceptron(nn.GELU), (2,)),
    "tanh, no bias": (lambda: Perceptron(nn.Tanh, bias=False), (2,)),
    "straight-line": (lambda: Perceptron(width=4), (2,)),
    "image": (lambda: Perceptron(n_inputs=6), (2, 3)),
    "tied": (Tied, (2,)),
    "particles": (Particles, (5, 3)),
    "no products": (DoubleWell, (3,)),
}
FEW = ("perceptron", "straight-line")
"""Energies that are looked at with one state, too: another kernel."""

TERMS = {"energies": (Energies, 0), "slopes": (Slopes, 1), "curvature": (Curvature, 1)}


def drawn(terms, event, n, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (1 + TERMS[terms][1], n, *event)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype))


def gradients(energy, values, slopes):
    parameters = [p for p in energy.parameters() if p.requires_grad]
    return torch.autograd.grad(values @ slopes, parameters, allow_unused=True)


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


class Scaled(Perceptron):
    def __init__(self, scale):
        super().__init__(width=16)
        self.held = [scale]  # no parameter of this module

    def forward(self, x):
        return super().forward(x) * self.held[0]


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


def test_a_closures_tensor_is_trained_by_torch():
    scale = torch.ones(1, requires_grad=True)
    FusedEvaluator()(Energies(Scaled(scale)), torch.randn(64, 2))[0].sum().backward()
    assert scale.grad is not None
    alone = Energies(as_energy(lambda x: scale * x.square().sum(1)))
    FusedEvaluator()(alone, torch.randn(64, 2))[0].sum().backward()
    with pytest.raises(ConfigurationError, match="no parameters"):
        FusedEvaluator("fused")(alone, torch.randn(64, 2))


def test_arguments_that_require_gradients_get_them():
    x = torch.randn(64, 2, requires_grad=True)
    FusedEvaluator()(Energies(Perceptron()), x)[0].sum().backward()
    assert x.grad is not None


def test_without_autograd_torch_is_asked():
    term, x = Energies(Perceptron()), torch.randn(64, 2)
    with torch.no_grad():
        assert torch.equal(FusedEvaluator("fused")(term, x)[0], term(x)[0])


def test_transforms_of_torch_func():
    energy = Perceptron(width=8)
    (x,), evaluator = drawn("energies", (2,), 16, torch.float32), FusedEvaluator()
    values = dict(energy.named_parameters())

    def total(parameters, evaluate):
        return torch.func.functional_call(energy, parameters, (x,)).sum() + 0 * evaluate()

    def by_evaluator():
        return evaluator(Energies(energy), x)[0].sum().detach()

    have = torch.func.grad(total)(values, by_evaluator)
    want = torch.func.grad(total)(values, lambda: 0.0)
    torch.testing.assert_close(have, want)


def test_derivatives_can_be_differentiated_again():
    torch.manual_seed(0)
    energy = Perceptron(width=24).double()
    (x,) = drawn("energies", (2,), 40)

    def penalty(values):
        found = torch.autograd.grad(
            values.square().sum(), energy.layers[2].weight, create_graph=True
        )
        (second,) = torch.autograd.grad(found[0].square().sum(), energy.layers[0].weight)
        return second

    term = Energies(energy)
    torch.testing.assert_close(
        penalty(FusedEvaluator("fused")(term, x)[0]), penalty(term(x)[0]), rtol=1e-8, atol=1e-9
    )


def test_parameters_that_change_before_the_backward_pass_are_an_error():
    energy = Perceptron()
    values = FusedEvaluator("fused")(Energies(energy), torch.randn(64, 2))[0]
    with torch.no_grad():
        energy.layers[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


def compare(energy, evaluator, term, *arguments):
    """Values and gradients by kernels and by torch."""
    slopes = torch.linspace(-1, 2, len(arguments[0]), dtype=arguments[0].dtype)
    have, want = evaluator(term, *arguments)[0], term(*arguments)[0]
    torch.testing.assert_close(have, want, rtol=1e-8, atol=1e-12)
    for a, b in zip(gradients(energy, have, slopes), gradients(energy, want, slopes), strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)


def test_hooks_on_parameters_are_torchs():
    energy, evaluator = Perceptron().double(), FusedEvaluator()
    (x,) = drawn("energies", (2,), 300)
    hook = energy.layers[0].weight.register_hook(lambda slope: 2 * slope)
    with pytest.raises(ConfigurationError, match="has hooks"):
        FusedEvaluator("fused")(Energies(energy), x)
    compare(energy, evaluator, Energies(energy), x)
    hook.remove()
    compare(energy, FusedEvaluator("fused"), Energies(energy), x)


def test_what_is_to_be_trained_later_gets_gradients():
    head, base = Perceptron(width=16).double(), Perceptron(width=8).double()
    base.requires_grad_(False)
    term = Energies(as_energy(lambda x: head(x) + base(x), head))
    evaluator, (x,) = FusedEvaluator(), drawn("energies", (2,), 300)
    FusedEvaluator("fused")(term, x)
    evaluator(term, x)
    base.requires_grad_(True)
    evaluator(term, x)[0].sum().backward()
    assert base.layers[0].weight.grad is not None


class Deep(EnergyFunction):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 24), nn.Linear(24, 1)
        self.a, self.b, self.c = (nn.Linear(24, 24, bias=False) for _ in range(3))

    def forward(self, x):
        for layer in (self.first, self.a, self.b, self.c):
            x = layer(x).tanh()
        return self.last(x).squeeze(1)


def test_weights_may_be_tied_and_untied():
    torch.manual_seed(0)
    energy, evaluator = Deep().double(), FusedEvaluator("fused")
    (x,) = drawn("energies", (2,), 70)
    weight = energy.a.weight.detach().clone()
    energy.b.weight, energy.c.weight = energy.a.weight, nn.Parameter(weight)
    compare(energy, evaluator, Energies(energy), x)
    energy.b.weight = energy.c.weight
    compare(energy, evaluator, Energies(energy), x)
    energy.b.weight = nn.Parameter(weight.clone())
    compare(energy, evaluator, Energies(energy), x)


class Loss(nn.Module):
    def __init__(self, energy, evaluator):
        super().__init__()
        self.energy, self.evaluator = energy, evaluator

    def forward(self, x):
        return self.evaluator(Energies(self.energy), x)[0].square().mean()


def test_steps_of_meta_learning():
    """Parameters that are not those of the modules, differentiated through."""
    torch.manual_seed(0)
    found, (x,) = [], drawn("energies", (2,), 60)
    for evaluator in (FusedEvaluator("fused"), lambda terms, x: terms(x)):
        torch.manual_seed(1)
        loss = Loss(Perceptron(width=24).double(), evaluator)
        fast = dict(loss.named_parameters())
        for _ in range(2):
            value = torch.func.functional_call(loss, fast, (x,))
            slopes = torch.autograd.grad(value, list(fast.values()), create_graph=True)
            fast = {
                name: p - 0.1 * slope for (name, p), slope in zip(fast.items(), slopes, strict=True)
            }
        value = torch.func.functional_call(loss, fast, (x,))
        found.append(torch.autograd.grad(value, list(loss.parameters())))
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-10)


def test_a_parameter_frozen_meanwhile_and_an_argument_changed():
    energy, (x,) = Perceptron(width=24), drawn("energies", (2,), 60, torch.float32)
    values = FusedEvaluator("fused")(Energies(energy), x)[0]
    energy.layers[4].weight.requires_grad_(False)
    weight = energy.layers[2].weight
    (slope,) = torch.autograd.grad(values.sum(), weight, create_graph=True)
    assert slope.requires_grad
    values = FusedEvaluator("fused")(Energies(energy), x)[0]
    x.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        values.sum().backward()


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

    energy, evaluator = Small().double(), FusedEvaluator("fused")
    (x,) = drawn("energies", (2,), 70)
    compare(energy, evaluator, Energies(energy), x)
    energy.scale = 1.1e-4
    compare(energy, evaluator, Energies(energy), x)


def test_checkpointed_losses():
    energy, x = Perceptron(width=24), torch.randn(300, 2)
    loss = Loss(energy, FusedEvaluator("fused"))
    for _ in range(2):
        torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False).backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode_is_torchs():
    energy = Perceptron(width=24)
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.randn(20_000, 2), torch.ones(20_000, 2))
        values = FusedEvaluator()(Energies(energy), x)[0]
        assert forward_ad.unpack_dual(values).tangent is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_parts_are_torchs():
    class Scripted(EnergyFunction):
        def __init__(self):
            super().__init__()
            self.net = torch.jit.script(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)))

        def forward(self, x):
            return self.net(x).squeeze(1)

    term, x = Energies(Scripted()), torch.randn(300, 2)
    assert torch.equal(FusedEvaluator()(term, x)[0], term(x)[0])


def test_what_the_backward_pass_needs_is_freed_by_it():
    energy = Perceptron(width=24)
    values, others = FusedEvaluator("fused")(Energies(energy), torch.randn(64, 2))
    others.zero_()  # their memory is their own
    exported = values.grad_fn.saved_tensors[0]
    del exported
    (values.sum() * 2).backward()
    with pytest.raises(RuntimeError, match="freed"):
        values.grad_fn.saved_tensors  # noqa: B018


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


def test_gradients_add_up_over_calls():
    torch.manual_seed(0)
    energy, evaluator = Perceptron().double(), FusedEvaluator("fused")
    term, (x,) = Energies(energy), drawn("energies", (2,), 50)
    for part in (x[:20], x[20:]):
        evaluator(term, part)[0].sum().backward()
    added = [p.grad.clone() for p in energy.parameters()]
    want = gradients(energy, term(x)[0], torch.ones(50).double())
    torch.testing.assert_close(added, list(want), rtol=1e-8, atol=1e-9)


def test_what_pays_is_told():
    term, evaluator = Energies(Perceptron()), FusedEvaluator()
    assert "µs" in evaluator.explain(term, torch.randn(8, 2))
    assert "engine 'fused'" in evaluator.explain(term, torch.randn(20_000, 2))
    assert "engine 'fused'" in FusedEvaluator("fused").explain(term, torch.randn(8, 2))


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
