"""Objectives whose terms kernels evaluate, against the same objectives by torch.

A step is the value of the loss and its backward pass, by `ebm_samplers.FusedEvaluator`, which is
told to insist, and by torch, in turn, on one core. Nothing else of a training step is timed.

    nox -s bench -- terms [--quick] [--resume] [--objectives NAME ...]

``--report`` only writes the table of docs/benchmarks.md from the results kept. What
`ebm_samplers.fused.trainable` expects to pay is judged by these figures.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness.benchmark import Benchmark, common_options
from harness.machine import machine
from harness.report import fill, table, times, where
from rivals.protocol import version_of
from rivals.training_steps import taken

from ebm_core import BaseLoss
from ebm_losses import DenoisingScoreMatching, EnergyDiscrepancy, SlicedScoreMatching
from ebm_models import MLPEnergy
from ebm_samplers import FusedEvaluator
from ebm_samplers.fused.matrices import rows_by_rows

OBJECTIVES: dict[str, Callable[..., BaseLoss]] = {
    "energy discrepancy": lambda e, **how: EnergyDiscrepancy(e, n_negatives=1, **how),
    "denoising score matching": lambda e, **how: DenoisingScoreMatching(e, 0.1, **how),
    "sliced score matching": SlicedScoreMatching,
}
NETWORKS = {
    "2-32-32-1": (2, (32, 32)),
    "2-64-64-1": (2, (64, 64)),
    "2-128-128-1": (2, (128, 128)),
    "2-128-128-128-128-1": (2, (128,) * 4),
    "2-256-256-1": (2, (256, 256)),
    "2-400-400-1": (2, (400, 400)),
    "64-256-256-1": (64, (256, 256)),
}
BATCHES = (32, 256, 2048)


class Terms(Benchmark):
    """A run."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options, "terms", {"objectives": OBJECTIVES})

    def run(self) -> None:
        """Measure everything that the options ask for."""
        options = self.options
        self.found.update(machine=machine(), repetitions=options.repetitions)
        os.sched_setaffinity(0, self.settings["one core"])
        torch.set_num_threads(1)
        self.found["seconds"] = options.seconds
        packages = ("ebm-losses", "ebm-samplers", "torch")
        self.found["versions"] = {"ours": {name: version_of(name) for name in packages}}
        cells = self.found.setdefault("cells", {})
        self.found["product"] = self.products()
        self.save()
        networks = list(NETWORKS)[:2] if options.quick else NETWORKS
        for network, batch, objective in product(networks, BATCHES, options.objectives):
            name = f"{network} | {batch} | {objective}"
            if options.resume and name in cells:
                continue
            cells[name] = self.measured(objective, network, batch)
            self.save()
            self.say(f"{name}: " + ", ".join(f"{k} {v:.3g}" for k, v in cells[name].items()))

    def measured(self, objective: str, network: str, batch: int) -> dict[str, float]:
        """Seconds of a step by torch and by kernels, and what the first one by kernels takes."""
        size, hidden = NETWORKS[network]
        torch.manual_seed(0)
        energy, x = MLPEnergy(size, hidden), torch.randn(batch, size)
        steps = {
            "torch": step_of(OBJECTIVES[objective](energy), x),
            "kernels": step_of(OBJECTIVES[objective](energy, evaluator=FusedEvaluator("fused")), x),
        }
        first = {name: taken(step, 1) for name, step in steps.items()}
        return self.timed(steps) | {"first": first["kernels"]}

    def products(self) -> dict[str, float]:
        """Seconds of ``a @ b.T`` for float32 matrices ``(128, 512)``, by torch and by kernels."""
        a, b = torch.randn(2, 128, 512)
        return self.timed({"torch": lambda: a @ b.t(), "kernels": lambda: rows_by_rows(a, b)})

    def timed(self, steps: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Seconds of a step of each kind: medians of repetitions in turn."""
        n = {
            name: max(3, round(self.options.seconds / taken(step, 3)))
            for name, step in steps.items()
        }
        rounds = [
            {name: taken(step, n[name]) for name, step in steps.items()}
            for _ in range(self.options.repetitions)
        ]
        return {name: median(each[name] for each in rounds) for name in steps}


def step_of(loss_fn: BaseLoss, x: torch.Tensor) -> Callable[[], object]:
    """The loss of a batch, and its backward pass."""

    def step() -> None:
        loss_fn.zero_grad()
        loss_fn(x).backward()

    return step


def sections(found: dict[str, Any]) -> Iterator[str]:
    """The page's measured part, piece by piece."""
    cells, product_of = found["cells"], found["product"]
    yield (
        f"{where(found)} One core; medians of {found['repetitions']} interleaved repetitions of "
        f"{found['seconds']:g} s."
    )
    rows = []
    for network, batch in product(NETWORKS, BATCHES):
        entries = [cells.get(f"{network} | {batch} | {name}") for name in OBJECTIVES]
        if any(entries):
            rows.append((network, str(batch), *(_cell(entry) for entry in entries)))
    yield table(("network", "states", *OBJECTIVES), rows)
    firsts = [entry["first"] for entry in cells.values()]
    yield (
        f"The first step by a kernel, compiled or loaded from disk, took {median(firsts):.2g} s in "
        f"the median and {max(firsts):.2g} s at most. A product of two matrices (128, 512), by "
        f"which kernels' outputs are added up, took {1e6 * product_of['kernels']:.3g} µs, and "
        f"{1e6 * product_of['torch']:.3g} µs as torch makes it."
    )


def _cell(entry: dict[str, float] | None) -> str:
    if entry is None:
        return ""
    by_torch, by_kernels = entry["torch"], entry["kernels"]
    return f"{1e3 * by_torch:.3g} / {1e3 * by_kernels:.3g} ({times(by_torch / by_kernels)})"


def write_pages(found: dict[str, Any], docs: Path) -> None:
    """Put the table between the markers of the page."""
    fill(docs / "benchmarks.md", "terms", found, sections(found))


def main() -> None:
    """Read the options, measure, write the page."""
    parser = common_options("Terms by kernels, against torch.", "two networks", rivals=False)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seconds", type=float, help="of one repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    options.seconds = options.seconds or (0.05 if options.quick else 0.2)
    Terms(options).main(write_pages)


if __name__ == "__main__":
    main()
