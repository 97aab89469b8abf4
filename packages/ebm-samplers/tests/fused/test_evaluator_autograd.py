"""Kernels of terms among autograd's other ways: hooks, transforms, swapped and tied parameters."""

import pytest
import torch
from objectives import Energies, Perceptron, Scaled, compare, drawn, gradients
from torch import nn
from torch.autograd import forward_ad

from ebm_core import ConfigurationError, EnergyFunction, as_energy
from ebm_samplers import FusedEvaluator, LangevinDynamics


def test_a_closures_tensor_is_trained_by_torch():
    scale = torch.ones(1, requires_grad=True)
    FusedEvaluator()(Energies(Scaled(scale)), torch.randn(64, 2))[0].sum().backward()
    assert scale.grad is not None
    alone = Energies(as_energy(lambda x: scale * x.square().sum(1)))
    FusedEvaluator()(alone, torch.randn(64, 2))[0].sum().backward()
    with pytest.raises(ConfigurationError, match="no parameters"):
        FusedEvaluator("fused")(alone, torch.randn(64, 2))


def test_arguments_that_require_gradients_get_them():
    x = torch.randn(20_000, 2, requires_grad=True)
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
    evaluator, insisting = FusedEvaluator(), FusedEvaluator("fused")
    (x,) = drawn("energies", (2,), 20_000)
    assert "engine 'fused'" in evaluator.explain(term, x)
    insisting(term, x)
    base.requires_grad_(True)
    with pytest.raises(ConfigurationError, match="no parameter"):
        insisting(term, x)
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


def test_checkpointed_losses():
    energy, x = Perceptron(width=24), torch.randn(300, 2)
    loss = Loss(energy, FusedEvaluator("fused"))
    for _ in range(2):
        torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False).backward()


class Flow(EnergyFunction):
    """|∇ψ|², whose forward differentiates, also without autograd."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 24)

    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.layer(x).tanh().sum(), x, create_graph=True)
        return slope.square().sum(1)


def test_checkpoints_see_nothing_of_traces_and_comparisons():
    energy, evaluator, x = Flow(), FusedEvaluator("fused"), torch.randn(64, 2)

    def loss(x):
        return evaluator(Energies(energy), x)[0].square().mean()

    for _ in range(2):
        torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False).backward()
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        FusedEvaluator("fused")(Energies(Perceptron()), x)[0].sum().backward()


def test_inference_tensors_are_torchs():
    energy, x = Scaled(torch.tensor(2.0)), torch.randn(64, 2)
    with torch.inference_mode():
        made = x.clone()
        with torch.enable_grad():
            values, _ = FusedEvaluator("fused")(Energies(energy), made)
    torch.testing.assert_close(values, energy(x).detach())
    with pytest.raises(ConfigurationError, match="inference mode"):
        FusedEvaluator("fused")(Energies(Perceptron()), made)


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
    sampler = LangevinDynamics(term.energy, step_size=0.01)
    assert sampler.sample_chain(x, 2).isfinite().all()


def test_what_the_backward_pass_needs_is_freed_by_it():
    energy = Perceptron(width=24)
    values, others = FusedEvaluator("fused")(Energies(energy), torch.randn(64, 2))
    others.zero_()  # their memory is their own
    exported = values.grad_fn.saved_tensors[0]
    del exported
    (values.sum() * 2).backward()
    with pytest.raises(RuntimeError, match="freed"):
        values.grad_fn.saved_tensors  # noqa: B018


def test_gradients_add_up_over_calls():
    torch.manual_seed(0)
    energy, evaluator = Perceptron().double(), FusedEvaluator("fused")
    term, (x,) = Energies(energy), drawn("energies", (2,), 50)
    for part in (x[:20], x[20:]):
        evaluator(term, part)[0].sum().backward()
    added = [p.grad.clone() for p in energy.parameters()]
    want = gradients(energy, term(x)[0], torch.ones(50).double())
    torch.testing.assert_close(added, list(want), rtol=1e-8, atol=1e-9)
