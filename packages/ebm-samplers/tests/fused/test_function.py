"""`fuse` as a function of torch: differentiated, mapped, within other functions."""

import pytest
import torch
from targets import DoubleWell, chain_of_images
from torch.func import grad, jacrev, vmap

from ebm_core import ConfigurationError, as_energy
from ebm_samplers import fuse

X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def test_energies_are_differentiable_in_the_states():
    layer, energy = torch.nn.Linear(3, 2), DoubleWell()
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    weights = torch.arange(5.0)
    found = []
    for function in (lambda x: fuse(energy)(x)[0], energy):
        layer.zero_grad()
        (function(layer(z)).exp().sqrt() * weights).sum().backward()
        found.append(layer.weight.grad.clone())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert energy.b.grad is not None
    assert not fuse(energy)(X)[0].requires_grad


def test_events_of_several_axes():
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(2)).requires_grad_()
    energies, gradients = fuse(chain_of_images)(x)
    (slope,) = torch.autograd.grad(energies.square().sum(), x)
    torch.testing.assert_close(slope, 2 * energies.detach().view(-1, 1, 1) * gradients)
    assert not gradients.requires_grad


def test_transforms_of_torch_func():
    energy = DoubleWell()
    compiled, plain = fuse(energy), as_energy(energy)
    want = plain.gradient(X)
    torch.testing.assert_close(grad(lambda x: compiled(x)[0].sum())(X), want)
    single = vmap(grad(lambda x: compiled(x[None])[0][0]))(X)
    torch.testing.assert_close(single, want)
    jacobian = jacrev(lambda x: compiled(x)[0])(X)
    torch.testing.assert_close(jacobian.sum(0), want)
    batches = X.view(1, 5, 2).repeat(3, 1, 1).transpose(0, 1)
    energies, _ = vmap(compiled, in_dims=1)(batches)
    torch.testing.assert_close(energies, plain(X).repeat(3, 1))


def test_a_second_derivative_is_refused():
    x = X.clone().requires_grad_()
    total = fuse(DoubleWell())(x)[0].sum() + x.square().sum()
    (slope,) = torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises(ConfigurationError, match="the energy itself"):
        slope.square().sum().backward()


def test_what_cannot_be_compiled_is_told():
    with pytest.raises(ConfigurationError, match="no fused kernel"):
        fuse(lambda x: torch.fft.fft(x).abs().sum(1))(X.clone().requires_grad_())


def test_an_empty_batch_has_no_energies():
    energies, gradients = fuse(DoubleWell())(torch.zeros(0, 3))
    assert energies.shape == (0,)
    assert gradients.shape == (0, 3)
