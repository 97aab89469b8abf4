"""Makes ``targets.json``: what of the targets has no closed form.

- Eight schools: given mu and tau, effects are Gaussian; the rest is quadrature over a grid.
- Logistic regression: importance sampling from a Student-t around the mode.
- The network: trained by noise contrast on draws of an uneven ring; its moments by quadrature.

    python benchmarks/references/make.py
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import targets

FILE = Path(__file__).parent / "targets.json"
Moments = dict[str, list[float]]


def eight_schools() -> tuple[Moments, Moments]:
    """Moments of (mu, log tau, effects), not centred and centred."""
    y, s = targets.EFFECTS.double(), targets.ERRORS.double()
    axes = (torch.linspace(-40, 50, 1801), torch.linspace(-16, 7, 2301))
    mu, log_tau = torch.meshgrid(*(axis.double() for axis in axes), indexing="ij")
    tau = log_tau.exp()
    log_weight = -targets.hyperprior(mu, log_tau)
    for j in range(8):
        spread = tau.square() + s[j].square()
        log_weight = log_weight - (y[j] - mu).square() / spread / 2 - spread.log() / 2
    weight = (log_weight - log_weight.max()).exp()
    weight /= weight.sum()

    def moments(mean: Tensor, variance: Tensor | float = 0.0) -> tuple[float, float]:
        first = (weight * mean).sum()
        second = (weight * (variance + (mean - first).square())).sum()
        return first.item(), second.item()

    shared = [moments(mu), moments(log_tau)]
    plain, centred = list(shared), list(shared)
    for j in range(8):
        variance = 1 / (1 + (tau / s[j]).square())
        mean = variance * tau * (y[j] - mu) / s[j].square()
        plain.append(moments(mean, variance))
        centred.append(moments(mu + tau * mean, tau.square() * variance))
    return as_moments(plain), as_moments(centred)


def as_moments(pairs: list[tuple[float, float]]) -> Moments:
    """Two lists of pairs of mean and variance."""
    return {"mean": [mean for mean, _ in pairs], "variance": [v for _, v in pairs]}


def logistic(n: int = 4_000_000, piece: int = 50_000) -> Moments:
    """Moments of the weights, with standard errors; prints the effective number of draws."""
    signed = targets.SIGNED.double()
    dim, freedom = signed.shape[1], 20.0

    def energy(x: Tensor) -> Tensor:
        return nn.functional.softplus(-(x @ signed.T)).sum(1) + x.square().sum(1) / 2

    mode = torch.zeros(dim, dtype=torch.float64)
    for _ in range(30):  # Newton
        p = torch.sigmoid(-(signed @ mode))
        precision = (signed * (p * (1 - p))[:, None]).T @ signed + torch.eye(dim).double()
        mode = mode + torch.linalg.solve(precision, signed.T @ p - mode)
    factor = torch.linalg.cholesky(torch.linalg.inv(precision)) * 1.02
    generator = torch.Generator().manual_seed(1)
    draws, log_weights = [], []
    for _ in range(n // piece):
        z = torch.randn(piece, dim, generator=generator, dtype=torch.float64)
        chi = torch.distributions.Chi2(torch.tensor(freedom, dtype=torch.float64))
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        t = z * (freedom / chi.sample((piece,))).sqrt()[:, None]
        x = mode + t @ factor.T
        log_proposal = -(freedom + dim) / 2 * torch.log1p(t.square().sum(1) / freedom)
        draws.append(x)
        log_weights.append(-energy(x) - log_proposal)
    x, log_weight = torch.cat(draws), torch.cat(log_weights)
    weight = (log_weight - log_weight.max()).exp()
    weight = (weight / weight.sum())[:, None]
    print(f"logistic: {1 / weight.square().sum():.0f} effective draws of {n}")
    mean = (weight * x).sum(0)
    square = (x - mean).square()
    variance = (weight * square).sum(0)
    errors = [
        (weight * (values - centre)).square().sum(0).sqrt().tolist()
        for values, centre in ((x, mean), (square, variance))
    ]
    return {
        "mean": mean.tolist(),
        "variance": variance.tolist(),
        "mean_error": errors[0],
        "variance_error": errors[1],
    }


def ring(n: int, generator: torch.Generator) -> Tensor:
    """Draws around a circle of radius 1.5, more of them to the right."""
    angle = torch.randn(n, generator=generator) * 1.3
    radius = 1.5 + 0.3 * torch.randn(n, generator=generator)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), 1)


def mlp() -> tuple[list[Any], Moments]:
    """Layers of the network, trained, and moments of its density."""
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(3)
    network = nn.Sequential(
        nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1, bias=False)
    )
    shift = nn.Parameter(torch.zeros(()))
    parameters = [*network.parameters(), shift]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3000)

    def log_ratio(x: Tensor) -> Tensor:
        log_noise = -x.square().sum(1) / 8 - torch.tensor(8 * torch.pi).log()
        return shift - network(x)[:, 0] - x.square().sum(1) / 32 - log_noise

    for _ in range(3000):
        data, noise = ring(512, generator), 2 * torch.randn(512, 2, generator=generator)
        loss = (
            nn.functional.softplus(-log_ratio(data)).mean()
            + nn.functional.softplus(log_ratio(noise)).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"mlp: loss {loss.item():.3f}")
    w1, b1, w2, b2, w3 = (parameter.detach() for parameter in network.parameters())
    targets.LAYERS = [w1, b1, w2, b2, w3[0]]
    axis = torch.linspace(-12, 12, 2401)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        energies = torch.cat([targets.mlp(piece) for piece in x.split(100_000)]).double()
    weight = (energies.min() - energies).exp()[:, None]
    weight /= weight.sum()
    mean = (weight * x).sum(0)
    variance = (weight * (x - mean).square()).sum(0)
    moments = {"mean": mean.tolist(), "variance": variance.tolist()}
    return [layer.tolist() for layer in targets.LAYERS], moments


def main() -> None:
    """Compute and keep everything."""
    plain, centred = eight_schools()
    found: dict[str, Any] = {"eight_schools": plain, "eight_schools_centred": centred}
    found["logistic"] = logistic()
    layers, found["mlp"] = mlp()
    found["mlp_layers"] = layers
    lines = (f' "{key}": {json.dumps(value)}' for key, value in found.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
