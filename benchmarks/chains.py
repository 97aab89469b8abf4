"""Chain-steps per second of each sampler on a 2-D double well.

One chain-step is one transition of one chain; an HMC transition has ten leapfrog steps. Each cell
is the median of interleaved repetitions on one thread, after one that is not counted. No rival is
measured yet.
"""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from ebm_energies import DoubleWell
from ebm_samplers import MALA, HamiltonianMonteCarlo, LangevinDynamics

CHAINS = (1, 100, 10_000)
REPETITIONS = 5
SECONDS = 0.3  # aimed at by a repetition
RESULTS = Path(__file__).parent / "results" / "chains.json"


def seconds(run: Callable[[Tensor, int], Tensor], x: Tensor, n_steps: int) -> float:
    """The wall time of one call."""
    start = perf_counter()
    run(x, n_steps)
    return perf_counter() - start


def measure() -> dict[str, dict[int, float]]:
    """Chain-steps per second, by sampler and number of chains."""
    energy = DoubleWell()
    samplers = {
        "LangevinDynamics": LangevinDynamics(energy, step_size=0.01),
        "MALA": MALA(energy, step_size=0.01),
        "HamiltonianMonteCarlo": HamiltonianMonteCarlo(energy, step_size=0.1, n_leapfrog_steps=10),
    }
    cells = [(name, chains) for name in samplers for chains in CHAINS]
    starts = {chains: torch.randn(chains, 2) for chains in CHAINS}
    steps: dict[tuple[str, int], int] = {}
    for name, chains in cells:
        one = seconds(samplers[name].sample_chain, starts[chains], 10) / 10
        steps[name, chains] = max(10, int(SECONDS / one))
    rates: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for _ in range(REPETITIONS):
        for name, chains in cells:
            n_steps = steps[name, chains]
            elapsed = seconds(samplers[name].sample_chain, starts[chains], n_steps)
            rates[name, chains].append(chains * n_steps / elapsed)
    return {name: {chains: median(rates[name, chains]) for chains in CHAINS} for name in samplers}


def main() -> None:
    """Measure, print the table, keep the JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rates = measure()
    print(f"chain-steps/s, torch {torch.__version__}, {platform.machine()}, one thread")
    print(f"{'chains':24}" + "".join(f"{chains:>12,}" for chains in CHAINS))
    for name, row in rates.items():
        print(f"{name:24}" + "".join(f"{rate:12.3g}" for rate in row.values()))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"torch": torch.__version__, "rates": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main()
