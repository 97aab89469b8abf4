"""This project: the samplers as a user calls them, ``sample_chain`` with the engine that they pick.

Further operations: ``noise`` (the ceiling: normals alone), ``overhead`` (what a call costs beside
its steps).
"""

from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

import torch

from ebm_core import EnergyFunction
from ebm_energies import DoubleWell, Gaussian, GaussianMixture, Rosenbrock
from ebm_models import MLPEnergy
from ebm_samplers import MALA, HamiltonianMonteCarlo, LangevinDynamics, MarkovSampler
from rivals import cells, normals
from rivals.cells import LEAPFROGS, Cell
from rivals.protocol import THREADS, Program, Rival, seconds_of, serve

ENERGIES: dict[str, Callable[[], EnergyFunction]] = {
    "double well": lambda: DoubleWell(cells.WELL_HEIGHT, dim=2),
    "Gaussian .9": lambda: Gaussian(
        torch.zeros(2), torch.tensor([[1.0, cells.CORRELATION], [cells.CORRELATION, 1.0]])
    ),
    "Rosenbrock": lambda: Rosenbrock(*cells.VALLEY, dim=2),
    "mixture of 8": lambda: GaussianMixture(
        torch.tensor(cells.MIXTURE_MEANS), torch.full((8, 2), cells.MIXTURE_SPREAD**2)
    ),
    "AR .9, 100-D": lambda: Gaussian(
        torch.zeros(100), torch.tensor(cells.autoregressive_covariance())
    ),
    "MLP 2-64-64-1": lambda: MLPEnergy(2, hidden=(64, 64), base_scale=4.0),
}


def sampler_of(method: str, energy: EnergyFunction, step: float) -> MarkovSampler:
    """The sampler of a method."""
    if method == "ULA":
        return LangevinDynamics(energy, step)
    if method == "MALA":
        return MALA(energy, step)
    return HamiltonianMonteCarlo(energy, step, LEAPFROGS, jitter=0.0)


class Chains:
    """A cell: its sampler and where its chains are."""

    def __init__(self, cell: Cell) -> None:
        self.sampler = sampler_of(cell.method, ENERGIES[cell.target](), cell.step)
        self.start = torch.full((cell.chains, cell.dim), cell.start)
        self.x = self.start

    def run(self, n_steps: int) -> None:
        """Advance."""
        self.x = self.sampler.sample_chain(self.x, n_steps)

    def reset(self) -> None:
        """Back to the start."""
        self.x = self.start

    def program(self) -> Program:
        """What the protocol wants."""
        return Program(self.run, self.reset, lambda: self.x.tolist())


def forms(cell: Cell) -> dict[str, Callable[[], Program]]:
    """One: engine "auto"."""
    return {"auto": lambda: Chains(cell).program()}


def explanation(program: Program) -> str:
    """What `explain` says of the program's chains."""
    chains: Chains = program.run.__self__  # type: ignore[attr-defined]
    return str(chains.sampler.explain(chains.start))


def noise(chains: int, seconds: float) -> dict[str, float]:
    """Normals per second: of a random walk, and of the public fill."""
    return {
        "walk": normals.walk_rate(chains, seconds),
        "fill": normals.fill_rate(chains, seconds),
    }


def overhead(target: str, method: str, chains: int, repetitions: int) -> dict[str, Any]:
    """Seconds of a call with one step, and of a step in a long run; both on few chains.

    Their difference is what a call costs beside its steps. ``cpu`` is the call's processor time,
    ``quick`` the limit of the fastest twentieth of all calls, which others on the machine disturb
    least, ``forward`` the seconds of the energy alone on as many states as a call compares.
    """
    energy = ENERGIES[target]()
    sampler = sampler_of(method, energy, 0.01)
    x = torch.full((chains, 2), 0.5)
    long = 1000
    for n_steps in (1, 1, long):
        sampler.sample_chain(x, n_steps)
    begin = process_time()
    calls = [seconds_of(sampler.sample_chain, x, 1) for _ in range(repetitions)]
    cpu = (process_time() - begin) / repetitions
    call, quick = median(calls), sorted(calls)[repetitions // 20]
    run = median(seconds_of(sampler.sample_chain, x, long) for _ in range(5))
    step = (run - call) / (long - 1)
    with torch.no_grad():
        forward = median(seconds_of(energy, x[:4]) for _ in range(repetitions))
    times = {"call": call, "quick": quick, "step": step, "cpu": cpu, "forward": forward}
    return {**times, "engine": str(sampler.explain(x))}


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    serve(
        Rival(
            forms,
            ("ebm-core", "ebm-energies", "ebm-samplers", "ebm-models", "torch", "numba", "numpy"),
            {"noise": noise, "overhead": overhead},
            explanation,
        )
    )
