"""Energies to compile, with start states."""

import torch
from torch import nn

from ebm_core import EnergyFunction, as_energy


class DoubleWell(EnergyFunction):
    def __init__(self, height=2.0, b=1.0, shift=0.0):
        super().__init__()
        self.register_buffer("height", torch.tensor(height))
        self.register_buffer("shift", torch.tensor(shift))
        self.b = nn.Parameter(torch.tensor(b))

    def forward(self, x):
        return (self.height * (x.square() - self.b.square()).square()).sum(-1) + self.shift


def rosenbrock(x):
    return 100 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2


def mixture(dtype=torch.float32):
    angle = torch.arange(8, dtype=dtype) * torch.pi / 4
    centres = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return lambda x: -torch.logsumexp(-((x[:, None] - centres) ** 2).sum(-1) * 12.5, 1)


def dense_gaussian(d=100, dtype=torch.float32):
    i = torch.arange(d, dtype=torch.float64)
    precision = torch.linalg.inv(0.9 ** (i[:, None] - i).abs()).to(dtype)
    return lambda x: 0.5 * (x * (x @ precision)).sum(1)


def logistic(n=1000, d=25, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    data = torch.randn(n, d, generator=g, dtype=torch.float64).to(dtype) / 5
    labels = (torch.rand(n, generator=g) < 0.5).to(dtype)

    def energy(x):
        logits = x @ data.T
        return nn.functional.softplus(logits).sum(1) - logits @ labels + 0.5 * x.square().sum(1)

    return energy


def perceptron(dtype=torch.float32, activation=nn.SiLU):
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Linear(2, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 1)
    ).to(dtype)
    return as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 8, net, event_shape=2)


def funnel(x):
    return (
        x[:, 0] ** 2 / 18
        + 0.5 * (x[:, 1:] ** 2).sum(1) * torch.exp(-x[:, 0])
        + 0.5 * (x.shape[1] - 1) * x[:, 0]
    )


def chain_of_images(x):
    """Events with two axes, neighbours coupled by slices."""
    return (
        ((x[:, 1:] - x[:, :-1]) ** 2).flatten(1).sum(1)
        + torch.cos(x).flatten(1).sum(1)
        + x.tanh().mean((1, 2))
    )


TARGETS = {
    "double well": (lambda dtype: DoubleWell().to(dtype), (2,)),
    "rosenbrock": (lambda dtype: rosenbrock, (2,)),
    "mixture": (mixture, (2,)),
    "dense gaussian": (lambda dtype: dense_gaussian(dtype=dtype), (100,)),
    "logistic": (lambda dtype: logistic(dtype=dtype), (25,)),
    "perceptron": (perceptron, (2,)),
    "funnel": (lambda dtype: funnel, (5,)),
    "images": (lambda dtype: chain_of_images, (3, 2)),
}
