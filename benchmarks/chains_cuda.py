"""Chain-steps per second on a CUDA device: TorchEBM, its Triton kernel, BlackJAX, PyTorch by hand.

All in one process, since such machines come with one environment: TorchEBM is measured if it can be
imported, BlackJAX if JAX sees the device too. A cell is a method on a target with a number of
chains. All sides are prepared, and calibrated to a fixed time; then each is timed in turn, from a
synchronised device to a synchronised device, and medians count. Beside the cells, how fast normals
alone are made.

    nox -s bench -- "*_cuda"                        # with training_cuda.py; where there is no nox:
    PYTHONPATH=... python benchmarks/chains_cuda.py

Results go to results/cuda.json, and from there to docs/cuda.md.
"""

import argparse
import gc
import importlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import record
from rivals import normals, ours
from rivals import torch as plain
from rivals.cells import Cell, cells
from rivals.protocol import Program, calibrated, seconds_of

TARGETS = ("double well", "mixture of 8", "AR .9, 100-D")
CHAINS = (100, 10_000, 1_000_000)
LARGEST = 20_000_000
"""Elements of all states together up to which a cell is measured."""


def triton_chain(cell: Cell) -> Program:
    """TorchEBM's whole chain in one Triton kernel: the double well, unadjusted."""
    chain = importlib.import_module("torchebm.cuda.fused_langevin").doublewell_langevin_chain
    start = torch.full((cell.chains, cell.dim), cell.start)
    state = {"x": start.clone(), "seed": 0}  # it works in place

    def run(n_steps: int) -> None:
        state["seed"] += 1
        state["x"] = chain(
            state["x"], n_steps=n_steps, step_size=cell.step, barrier_height=2.0, b=1.0,
            seed=state["seed"],
        )  # fmt: skip

    return Program(run, lambda: state.update(x=start.clone()), lambda: state["x"].tolist())


def rivals(cell: Cell) -> dict[str, Callable[[], Program]]:
    """All sides of a cell."""
    found = {"ours": ours.forms(cell)["auto"], "torch": next(iter(plain.forms(cell).values()))}
    if jax_sees(torch.get_default_device()):
        blackjax = importlib.import_module("rivals.blackjax")
        found |= {f"blackjax, {name}": build for name, build in blackjax.forms(cell).items()}
    try:
        torchebm = importlib.import_module("rivals.torchebm")
    except ImportError:
        return found
    for name, build in torchebm.forms(cell).items():
        found[f"torchebm, {name.split(',')[0]}"] = build
    if cell.method == "ULA" and cell.target == "double well":
        found["torchebm, Triton"] = lambda: triton_chain(cell)
    return found


def jax_sees(device: torch.device) -> bool:
    """Whether BlackJAX is there, and JAX runs on such a device."""
    try:
        importlib.import_module("blackjax")
        backend: str = importlib.import_module("jax").default_backend()
    except ImportError:
        return False
    return (backend == "gpu") == (device.type == "cuda")


def measured(cell: Cell, device: torch.device, seconds: float, repetitions: int) -> dict[str, Any]:
    """One cell: medians of chain-steps a second, by side."""
    programs: dict[str, tuple[Program, int]] = {}
    found: dict[str, Any] = {}
    for name, build in rivals(cell).items():
        try:
            with device:
                program = waiting(build(), device)
            first = seconds_of(program.run, 1)
            _, units = calibrated(program, seconds)
            programs[name], found[name] = (program, units), {"first_call": first, "seconds": []}
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    gc.collect()
    for _ in range(repetitions):
        for name, (program, units) in programs.items():
            found[name]["seconds"].append(seconds_of(program.run, units))
    for name, (_, units) in programs.items():
        found[name]["steps"] = units
        found[name]["rate"] = units * cell.chains / statistics.median(found[name]["seconds"])
    return found


def waiting(program: Program, device: torch.device) -> Program:
    """A program whose runs end when the device has done them."""

    def run(n_steps: int) -> None:
        program.run(n_steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return Program(run, program.reset, program.states)


def main() -> None:
    """Read the options, measure, keep everything after each cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=0.3, help="of one repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--chains", type=int, nargs="+", default=CHAINS)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("chains_cuda: no CUDA device, nothing measured")
        return
    found = record.section(device)
    with device:
        found["normals"] = {
            str(n): {
                "walk": normals.walk_rate(n, options.seconds, device),
                "fill": normals.fill_rate(n, options.seconds, device),
            }
            for n in options.chains
        }
    for cell in cells(targets=tuple(options.targets), chains=tuple(options.chains)):
        if cell.chains * cell.dim > LARGEST:
            continue
        entry = measured(cell, device, options.seconds, options.repetitions)
        found["cells"][str(cell)] = entry
        rates = (f"{name} {e.get('rate', float('nan')):.3g}" for name, e in entry.items())
        print(f"{cell!s:34} {', '.join(rates)}", flush=True)
        record.keep("chains", found, options.results)


if __name__ == "__main__":
    main()
