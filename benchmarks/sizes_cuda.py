"""From which size on torch's kernels in CUDA graphs beat one thread a chain: where "auto" switches.

For energies of growing size (perceptrons 2-w-w-1, dense Gaussians in d dimensions) and numbers of
chains, seconds of a Langevin transition on both engines: ``engine="fused"``, and ``engine="torch"``
with its graphs. From the table comes `ebm_samplers.fused.cuda.energy.PAYS`: the number of scalar
operations up to which the kernel wins at each number of chains.

    nox -s bench -- "*_cuda"                        # with the others; where there is no nox:
    PYTHONPATH=... python benchmarks/sizes_cuda.py

Results go to results/cuda.json.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import record
from rivals.protocol import seconds_of

from ebm_core import ConfigurationError, EnergyFunction
from ebm_energies import Gaussian
from ebm_models import MLPEnergy
from ebm_samplers import LangevinDynamics

WIDTHS, DIMENSIONS = (8, 16, 32, 64, 96), (4, 16, 32, 64, 128)
CHAINS = (100, 1_000, 10_000, 100_000)
STEPS = 64


def gaussian(dim: int) -> Gaussian:
    """AR(.9) in some dimensions."""
    i = torch.arange(dim)
    covariance = 0.9 ** (i[:, None] - i).abs().double()
    return Gaussian(torch.zeros(dim), covariance=covariance.float())


def network(width: int) -> MLPEnergy:
    """Two hidden layers."""
    return MLPEnergy(2, hidden=(width, width), base_scale=4.0)


def energies() -> dict[str, tuple[Callable[[], EnergyFunction], int]]:
    """What makes an energy, and the dimension of its states."""
    networks = {f"MLP 2-{w}-{w}-1": (partial(network, w), 2) for w in WIDTHS}
    return {**networks, **{f"Gaussian, {d}-D": (partial(gaussian, d), d) for d in DIMENSIONS}}


def seconds_of_a_step(sampler: LangevinDynamics, x: torch.Tensor, repetitions: int) -> float:
    """Median over calls of `STEPS` transitions, the device synchronised before and after."""

    def call() -> None:
        sampler.sample_chain(x, STEPS)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    call()
    call()
    return statistics.median(seconds_of(call) for _ in range(repetitions)) / STEPS


def main() -> None:
    """Read the options, measure, keep everything after each cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--chains", type=int, nargs="+", default=CHAINS)
    parser.add_argument("--energies", nargs="+", default=list(energies()))
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("sizes_cuda: no CUDA device, nothing measured")
        return
    found = record.section(device)
    for name in options.energies:
        make, dim = energies()[name]
        for chains in options.chains:
            x = torch.zeros(chains, dim, device=device)
            entry: dict[str, Any] = {}
            for engine in ("fused", "torch"):
                sampler = LangevinDynamics(make().to(device), 0.01, engine=engine)
                try:
                    entry[engine] = seconds_of_a_step(sampler, x, options.repetitions)
                except ConfigurationError as error:
                    entry[engine] = None
                    entry["error"] = str(error)[:300]
                entry["operations"] = entry.get("operations") or sampler.explain(x).n_operations
            found["cells"][f"{name} | {chains}"] = entry
            both = entry["fused"] and entry["torch"] / entry["fused"]
            ratio = f"{both:.2f}" if both else "no kernel"
            size = f"{entry['operations']} operations"
            print(f"{name:18} {chains:7} chains: {size}, {ratio}", flush=True)
            record.keep("sizes", found, options.results)


if __name__ == "__main__":
    main()
