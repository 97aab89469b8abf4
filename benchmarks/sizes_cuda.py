"""Whether "auto" takes the quicker engine on a CUDA device: a thread a chain, or torch's graphs.

For energies of growing size (perceptrons 2-w-w-1, dense Gaussians in d dimensions) and numbers of
chains, seconds of a Langevin transition on both engines: ``engine="fused"``, and ``engine="torch"``
with its graphs; and the engine that ``engine="auto"`` takes, which it finds out by trial
(`ebm_samplers.fused.cuda.trial`). A last line counts how often that was the quicker one, and what
its choices cost beside the best.

    nox -s bench -- "*_cuda"                        # with the others; where there is no nox:
    PYTHONPATH=... python benchmarks/sizes_cuda.py

Results go to results/cuda.json.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
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

WIDTHS, DIMENSIONS = (8, 16, 32, 64, 128, 192), (4, 16, 32, 64, 128)
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


def judged(cells: Iterable[dict[str, Any]]) -> str:
    """How well "auto" chose, where there was a choice."""
    both = [cell for cell in cells if cell["fused"] and cell["torch"]]
    if not both:
        return "no energy had both engines"
    ratios = [cell[cell["auto"]] / min(cell["fused"], cell["torch"]) for cell in both]
    return (
        f"auto took the quicker engine in {sum(ratio == 1 for ratio in ratios)} of {len(ratios)} "
        f"cells; at worst it took {max(ratios):.2f} times as long as the other"
    )


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
            chosen = LangevinDynamics(make().to(device), 0.01).explain(x)
            entry["auto"], entry["because"] = chosen.engine, chosen.reason
            found["cells"][f"{name} | {chains}"] = entry
            both = entry["fused"] and entry["torch"] / entry["fused"]
            ratio = f"{both:.2f}" if both else "no kernel"
            size = f"{entry['operations']} operations"
            told = f"{size}, {ratio}, auto: {chosen.engine}"
            print(f"{name:18} {chains:7} chains: {told}", flush=True)
            record.keep("sizes", found, options.results)
    print(judged(found["cells"].values()))


if __name__ == "__main__":
    main()
