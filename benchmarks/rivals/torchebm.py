"""TorchEBM: its Langevin and HMC samplers (it has no MALA), on its own models and on ours.

Two forms. "own": its model of the target with its automatic gradient (the mixture is written as a
`BaseModel` with ``forward`` alone). "analytic": ``forward`` and ``gradient`` of the
plain PyTorch loop, the gradient overridden as its documentation allows. Its HMC takes 2 L gradients
for L leapfrogs; that is its algorithm, and is left so.
"""

import torch
import torchebm.core as core
from torch import Tensor
from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics

from rivals import cells
from rivals import torch as plain
from rivals.cells import LEAPFROGS, Cell
from rivals.protocol import THREADS, Build, Program, Rival, serve


class Analytic(core.BaseModel):
    """Energy and gradient written by hand."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.energy, self.slope = plain.energy_of(target)

    def forward(self, x: Tensor) -> Tensor:
        """E(x)."""
        return self.energy(x)

    def gradient(self, x: Tensor, model_kwargs: object = None) -> Tensor:
        """∇E(x)."""
        return self.slope(x)


class Mixture(core.BaseModel):
    """The mixture of eight Gaussians, of which TorchEBM has no model; automatic gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.means = torch.tensor(cells.MIXTURE_MEANS)

    def forward(self, x: Tensor) -> Tensor:
        """E(x)."""
        squares = (x[:, None] - self.means).square().sum(-1)
        return -torch.logsumexp(squares / (-2 * cells.MIXTURE_SPREAD**2), 1)


def own_model(target: str) -> core.BaseModel:
    """TorchEBM's model of a target, or one written for it."""
    r = cells.CORRELATION
    if target == "double well":
        return core.DoubleWellModel(cells.WELL_HEIGHT, 1.0)
    if target == "Rosenbrock":
        return core.RosenbrockModel(*cells.VALLEY)
    if target == "Gaussian .9":
        return core.GaussianModel(torch.zeros(2), torch.tensor([[1.0, r], [r, 1.0]]))
    if target == "AR .9, 100-D":
        covariance = torch.tensor(cells.autoregressive_covariance())
        return core.GaussianModel(torch.zeros(len(covariance)), covariance)
    return Mixture()


def build(cell: Cell, model: core.BaseModel, threads: int) -> Program:
    """A cell with a model."""
    device = torch.get_default_device()
    model = model.to(device)
    if cell.method == "ULA":
        sampler = LangevinDynamics(model, step_size=cell.step, device=device)
    else:
        sampler = HamiltonianMonteCarlo(
            model, step_size=cell.step, n_leapfrog_steps=LEAPFROGS, device=device
        )
    start = torch.full((cell.chains, cell.dim), cell.start)
    state = {"x": start}

    def run(n_steps: int) -> None:
        torch.set_num_threads(threads)
        state["x"] = sampler.sample(x=state["x"], n_steps=n_steps)

    return Program(run, lambda: state.update(x=start), lambda: state["x"].tolist())


def forms(cell: Cell) -> dict[str, Build]:
    """A gradient by hand, with one thread and one for each core; and its own model."""
    if cell.method == "MALA":
        return {}
    found = {
        f"analytic, {n} thread(s)": lambda n=n: build(cell, Analytic(cell.target), n)
        for n in sorted({1, THREADS})
    }
    if cell.dim * cell.chains < 1_000_000:  # there a step of HMC takes many seconds
        found["own, 1 thread(s)"] = lambda: build(cell, own_model(cell.target), 1)
    return found


if __name__ == "__main__":
    serve(Rival(forms, ("torchebm", "torch")))
