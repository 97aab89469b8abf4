"""A plain loop in PyTorch: batched tensors, analytic gradients, in place, noise in blocks.

What someone writes who cares for speed and stays with torch operations (no compiler).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rivals import cells
from rivals.cells import LEAPFROGS, Cell
from rivals.protocol import THREADS, Build, Program, Rival, serve

Energy = Callable[[Tensor], Tensor]
NORMALS_AT_ONCE = 2**15


def quadratic(covariance: Tensor) -> tuple[Energy, Energy]:
    """Energy and gradient of a centred Gaussian."""
    precision = torch.linalg.inv(covariance.double()).float()

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (x @ precision).mul_(x).sum(1)

    return energy, lambda x: x @ precision


def double_well() -> tuple[Energy, Energy]:
    """E = h Σ (x² - 1)²."""
    h = cells.WELL_HEIGHT
    return (
        lambda x: h * (x * x).sub_(1).square_().sum(1),
        lambda x: (x * x).sub_(1).mul_(x).mul_(4 * h),
    )


def rosenbrock() -> tuple[Energy, Energy]:
    """E = b (y - x²)² + (a - x)²."""
    a, b = cells.VALLEY

    def energy(x: Tensor) -> Tensor:
        first, second = x.unbind(1)
        return (second - first * first).square_().mul_(b).add_((a - first).square_())

    def gradient(x: Tensor) -> Tensor:
        first, second = x.unbind(1)
        wall = (second - first * first).mul_(2 * b)
        return torch.stack([2 * (first - a) - 2 * first * wall, wall], 1)

    return energy, gradient


def mixture() -> tuple[Energy, Energy]:
    """Eight round Gaussians of equal weight."""
    means = torch.tensor(cells.MIXTURE_MEANS)
    variance = cells.MIXTURE_SPREAD**2
    # -|x - m|²/2s² = (x·m - |x|²/2)/s² + constant: |m| is the same for all.
    directions = means.T.contiguous() / variance

    def energy(x: Tensor) -> Tensor:
        return x.square().sum(1) / (2 * variance) - (x @ directions).logsumexp(1)

    def gradient(x: Tensor) -> Tensor:
        weights = (x @ directions).softmax(1)
        return (x - weights @ means).div_(variance)

    return energy, gradient


def energy_of(target: str) -> tuple[Energy, Energy]:
    """Energy and gradient of a target."""
    if target == "Gaussian .9":
        r = cells.CORRELATION
        return quadratic(torch.tensor([[1.0, r], [r, 1.0]]))
    if target == "AR .9, 100-D":
        return quadratic(torch.tensor(cells.autoregressive_covariance()))
    kinds = {"double well": double_well, "Rosenbrock": rosenbrock, "mixture of 8": mixture}
    return kinds[target]()


class Loop:
    """The chains of a cell."""

    def __init__(self, cell: Cell) -> None:
        self.energy, self.gradient = energy_of(cell.target)
        self.h = cell.step
        self.shape = (cell.chains, cell.dim)
        self.block = max(1, min(1024, NORMALS_AT_ONCE // (cell.chains * cell.dim)))
        self.value = cell.start
        self.device = torch.get_default_device()
        self.reset()
        steps = {"ULA": self.langevin, "MALA": self.mala, "HMC": self.hmc}
        self.step = steps[cell.method]

    def reset(self) -> None:
        """Back to the start."""
        self.x = torch.full(self.shape, self.value, device=self.device)

    @torch.inference_mode()
    def run(self, n_steps: int) -> None:
        """Advance."""
        self.state = self.x.clone(), self.energy(self.x), self.gradient(self.x)
        done = 0
        while done < n_steps:
            n = min(self.block, n_steps - done)
            noise = torch.randn(n, *self.shape, device=self.device)
            self.step(noise, torch.rand(n, len(self.x), device=self.device).log_())
            done += n
        self.x = self.state[0]

    def langevin(self, noise: Tensor, _: Tensor) -> None:
        """Unadjusted."""
        x = self.state[0]
        for z in noise.mul_((2 * self.h) ** 0.5).unbind():
            x.sub_(self.gradient(x), alpha=self.h).add_(z)

    def mala(self, noise: Tensor, log_uniforms: Tensor) -> None:
        """With the accept test of each proposal."""
        h, root = self.h, (self.h / 2) ** 0.5
        x, energy, gradient = self.state
        for z, log_u in zip(noise.unbind(), log_uniforms.unbind(), strict=True):
            proposal = torch.add(x, gradient, alpha=-h).add_(z, alpha=2 * root)
            new_energy, new_gradient = self.energy(proposal), self.gradient(proposal)
            w = (gradient + new_gradient).mul_(root)
            delta = (w / 2 - z).mul_(w).sum(1).add_(new_energy).sub_(energy)
            accepted = log_u < -delta
            column = accepted[:, None]
            x = torch.where(column, proposal, x)
            gradient = torch.where(column, new_gradient, gradient)
            energy = torch.where(accepted, new_energy, energy)
        self.state = x, energy, gradient

    def hmc(self, noise: Tensor, log_uniforms: Tensor) -> None:
        """Leapfrogs, each with one gradient, and the accept test."""
        h = self.h
        x, energy, gradient = self.state
        for start, log_u in zip(noise.unbind(), log_uniforms.unbind(), strict=True):
            y, g = x, gradient
            p = torch.add(start, g, alpha=-h / 2)
            for i in range(LEAPFROGS):
                y = torch.add(y, p, alpha=h)
                g = self.gradient(y)
                p.sub_(g, alpha=h / 2 if i == LEAPFROGS - 1 else h)
            new_energy = self.energy(y)
            kinetic = (p * p).sub_(start * start).sum(1) / 2
            accepted = log_u < energy - new_energy - kinetic
            column = accepted[:, None]
            x = torch.where(column, y, x)
            gradient = torch.where(column, g, gradient)
            energy = torch.where(accepted, new_energy, energy)
        self.state = x, energy, gradient


def program(cell: Cell, threads: int) -> Program:
    """A cell."""
    loop = Loop(cell)

    def run(n_steps: int) -> None:
        torch.set_num_threads(threads)
        loop.run(n_steps)

    return Program(run, loop.reset, lambda: loop.x.tolist())


def forms(cell: Cell) -> dict[str, Build]:
    """With one thread, and with one for each core."""
    return {f"{n} thread(s)": lambda n=n: program(cell, n) for n in sorted({1, THREADS})}


if __name__ == "__main__":
    serve(Rival(forms, ("torch",)))
