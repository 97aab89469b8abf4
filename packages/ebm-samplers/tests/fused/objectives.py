"""Terms of objectives, and networks, for tests of their kernels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ebm_core import EnergyFunction


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


TERMS = {"energies": (Energies, 0), "slopes": (Slopes, 1), "curvature": (Curvature, 1)}


def drawn(terms, event, n, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (1 + TERMS[terms][1], n, *event)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype))


def gradients(energy, values, slopes):
    parameters = [p for p in energy.parameters() if p.requires_grad]
    return torch.autograd.grad(values @ slopes, parameters, allow_unused=True)


def compare(energy, evaluator, term, *arguments):
    """Values and gradients by kernels and by torch."""
    slopes = torch.linspace(-1, 2, len(arguments[0]), dtype=arguments[0].dtype)
    have, want = evaluator(term, *arguments)[0], term(*arguments)[0]
    torch.testing.assert_close(have, want, rtol=1e-8, atol=1e-12)
    for a, b in zip(gradients(energy, have, slopes), gradients(energy, want, slopes), strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)


class Scaled(Perceptron):
    def __init__(self, scale):
        super().__init__(width=16)
        self.held = [scale]  # no parameter of this module

    def forward(self, x):
        return super().forward(x) * self.held[0]
