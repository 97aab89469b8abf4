"""Targets with known moments, written in torch as a user would write them.

Each is a plain function ``(batch, dim) -> (batch,)`` in nats, that closes over its constants. Mean
and variance come from a closed form, or from ``references/make.py``, by quadrature or importance
sampling, which uses none of this project's samplers; its numbers are kept in
``references/targets.json``. Used by the benchmarks and by tests-integration.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

KEPT: dict[str, Any] = json.loads(
    (Path(__file__).parent / "references" / "targets.json").read_text()
)


def unchanged(x: Tensor) -> Tensor:
    """The state itself."""
    return x


@dataclass(frozen=True)
class Target:
    """A distribution to sample.

    Attributes:
        name: Its key in `TARGETS`.
        dim: Number of elements of a state.
        energy: E(x), ``(batch, dim) -> (batch,)``.
        mean: Mean of ``statistic(x)``, float64, ``(n,)``; None where unknown.
        variance: Its variance, likewise.
        mean_error: Standard error of ``mean``, ``(n,)`` (0 where it is exact).
        variance_error: Standard error of ``variance``, likewise.
        easy: Whether a good general sampler mixes here from N(0, I).
        statistic: What the moments are of, ``(batch, dim) -> (batch, n)``: the state, but where
            its tails are too heavy to judge by.
    """

    name: str
    dim: int
    energy: Callable[[Tensor], Tensor]
    mean: Tensor | None
    variance: Tensor | None
    easy: bool = True
    mean_error: Tensor | float = 0.0
    variance_error: Tensor | float = 0.0
    statistic: Callable[[Tensor], Tensor] = unchanged


def kept(name: str) -> dict[str, Tensor]:
    """Moments of ``references/targets.json``, by the names of `Target`'s attributes."""
    return {key: torch.tensor(v, dtype=torch.float64) for key, v in KEPT[name].items()}


# Eight schools (Rubin 1981; Gelman et al., Bayesian Data Analysis, section 5.5): x = (mu, log tau,
# effects), with mu ~ N(0, 5²) and tau ~ HalfCauchy(5).
EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def hyperprior(mu: Tensor, log_tau: Tensor) -> Tensor:
    """-log density of mu and log tau."""
    return mu.square() / 50 + torch.log1p((2 * log_tau).exp() / 25) - log_tau


def eight_schools(x: Tensor) -> Tensor:
    """Not centred: the effects are mu + tau·z."""
    mu, log_tau, z = x[:, 0], x[:, 1], x[:, 2:]
    theta = mu[:, None] + log_tau.exp()[:, None] * z
    misfit = ((EFFECTS - theta) / ERRORS).square().sum(1)
    return hyperprior(mu, log_tau) + z.square().sum(1) / 2 + misfit / 2


def eight_schools_centred(x: Tensor) -> Tensor:
    """Centred: a funnel in log tau."""
    mu, log_tau, theta = x[:, 0], x[:, 1], x[:, 2:]
    spread = ((theta - mu[:, None]) * (-log_tau).exp()[:, None]).square().sum(1) / 2
    misfit = ((EFFECTS - theta) / ERRORS).square().sum(1)
    return hyperprior(mu, log_tau) + spread + 8 * log_tau + misfit / 2


# Logistic regression with a standard normal prior: 500 observations, an intercept, 24 covariates.
_generator = torch.Generator().manual_seed(25)
COVARIATES = torch.randn(500, 25, generator=_generator)
COVARIATES[:, 0] = 1.0
_weights = torch.randn(25, generator=_generator) / 2
_labels = torch.rand(500, generator=_generator) < (COVARIATES @ _weights).sigmoid()
SIGNED = COVARIATES * torch.where(_labels, 1.0, -1.0)[:, None]
"""Covariates times their label, 1 or -1."""


def logistic(x: Tensor) -> Tensor:
    """-log posterior of the weights."""
    return softplus(-(x @ SIGNED.T)).sum(1) + x.square().sum(1) / 2


def funnel(x: Tensor) -> Tensor:
    """Neal's (2003): x0 ~ N(0, 3²), the nine others N(0, exp(x0))."""
    return x[:, 0].square() / 18 + (
        x[:, 1:].square().sum(1) * (-x[:, 0]).exp() / 2 + (x.shape[1] - 1) / 2 * x[:, 0]
    )


def unfunnelled(x: Tensor) -> Tensor:
    """x0/3 and x_i exp(-x0/2): standard normal."""
    return torch.cat((x[:, :1] / 3, x[:, 1:] * (-x[:, :1] / 2).exp()), 1)


def banana(x: Tensor) -> Tensor:
    """Haario's (1999) twisted Gaussian: x0 ~ N(0, 10²), x1 + 0.03·(x0² - 100) ~ N(0, 1)."""
    return x[:, 0].square() / 200 + (x[:, 1] + 0.03 * (x[:, 0].square() - 100)).square() / 2


SCALES = torch.logspace(-2, 0, 100)
"""Standard deviations along the axes of the ill-conditioned Gaussian."""
AXES = torch.linalg.qr(
    torch.randn(100, 100, generator=torch.Generator().manual_seed(100), dtype=torch.float64)
)[0]
WHITENING = (AXES / SCALES.double()).float()


def gaussian_100(x: Tensor) -> Tensor:
    """Standard deviations from 0.01 to 1, along axes turned at random."""
    return (x @ WHITENING).square().sum(1) / 2


ANGLES = torch.arange(8) * (math.pi / 4)
CENTRES = 2 * torch.stack((ANGLES.cos(), ANGLES.sin()), 1)


def mixture_8(x: Tensor) -> Tensor:
    """Eight Gaussians of standard deviation 0.2 on a circle of radius 2."""
    distance = (x[:, None] - CENTRES).square().sum(2)
    return -torch.logsumexp(-distance / (2 * 0.2**2), 1)


LAYERS = [torch.tensor(layer) for layer in KEPT.get("mlp_layers", [])]


def mlp(x: Tensor) -> Tensor:
    """A network 2-32-32-1, trained on an uneven ring, on a weak Gaussian base."""
    w1, b1, w2, b2, w3 = LAYERS
    hidden = silu(silu(x @ w1.T + b1) @ w2.T + b2)
    return hidden @ w3 + x.square().sum(1) / 32


def _exact(*moments: Tensor | list[float]) -> dict[str, Tensor]:
    values = (torch.as_tensor(moment, dtype=torch.float64) for moment in moments)
    return dict(zip(("mean", "variance"), values, strict=True))


def _all() -> list[Target]:
    turned = (AXES.square() * SCALES.double().square()).sum(1)
    return [
        Target("eight_schools", 10, eight_schools, **kept("eight_schools")),
        Target(
            "eight_schools_centred",
            10,
            eight_schools_centred,
            easy=False,
            **kept("eight_schools_centred"),
        ),
        Target("logistic", 25, logistic, **kept("logistic")),
        Target(
            "funnel",
            10,
            funnel,
            easy=False,
            statistic=unfunnelled,
            **_exact(torch.zeros(10), torch.ones(10)),
        ),
        Target("banana", 2, banana, **_exact([0.0, 0.0], [100.0, 1 + 2 * (0.03 * 100) ** 2])),
        Target("gaussian_100", 100, gaussian_100, **_exact(torch.zeros(100), turned)),
        Target("mixture_8", 2, mixture_8, easy=False, **_exact([0.0, 0.0], [2.04, 2.04])),
        Target("mlp", 2, mlp, **kept("mlp")),
    ]


TARGETS: dict[str, Target] = {target.name: target for target in (_all() if LAYERS else [])}
"""All targets, by name."""
