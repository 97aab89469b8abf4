"""Chain-steps per second of the samplers, against TorchEBM, BlackJAX, JAX and PyTorch by hand.

A chain-step is one transition of one chain; an HMC transition has ten leapfrogs. A cell is a method
on a target with a number of chains; it is measured on one pinned core, then on all. Each rival is a
process in an environment of its own (see `rivals`), and only one is awake at any time. For each
cell all rivals are prepared (compiled, calibrated to a fixed time), checked (the law of their
states a few steps from a common start must be that of the plain PyTorch loop), and then timed in
turn, five times; medians count. Results are kept after each cell, so that a run that stops loses
nothing: ``--resume`` goes on, ``--rivals jax`` or ``--methods HMC`` measure these anew.

Beside the cells: the time to compile and to load a kernel, each in a fresh process; how fast
normals alone are made, the ceiling of any sampler; and what a call of ``sample_chain`` costs beside
its steps.

    nox -s bench -- chains [--quick] [--resume] [--rivals NAME ...] [--settings NAME ...]

``--parts overhead --rivals ours --settings "one core"`` measures a call alone, in half a minute.
``--report`` only writes the table of docs/benchmarks.md from the results kept.
"""

import argparse
import math
import tempfile
from statistics import median
from typing import Any

from harness.benchmark import SETTINGS, Benchmark, common_options
from harness.machine import machine
from harness.processes import RivalError, WorkerProcess
from harness.report import write_pages
from rivals.cells import CHAINS, CHECK_STEPS, METHODS, TARGETS, Cell, cells

RIVALS = ("ours", "torch", "torchebm", "blackjax", "jax")
PARTS = ("cells", "overhead", "compile")
REFERENCE = "torch"
"""Whose states the others are compared with."""
SUSPICIOUS = 5.0
"""Standard errors between two means that make a cell wrong."""


class Chains(Benchmark):
    """A run."""

    def __init__(self, options: argparse.Namespace) -> None:
        choices = {"rivals": RIVALS, "methods": METHODS, "settings": SETTINGS, "parts": PARTS}
        super().__init__(options, "chains", choices)
        self.found.setdefault("cells", {})
        self.kernels = tempfile.TemporaryDirectory(prefix="kernels_", dir=options.scratch)

    def run(self) -> None:
        """Measure everything that the options ask for."""
        if "cells" in self.options.parts:
            self.found["machine"] = machine()
            self.found["repetitions"] = self.options.repetitions
            self.found["seconds"] = self.options.seconds
        for name in self.options.settings:
            asked = {r: self.process(r, self.settings[name]) for r in self.options.rivals}
            with self.started(asked) as workers:
                if "ours" in workers:
                    try:
                        self.alone(name, workers["ours"])
                    except RivalError as error:
                        self.say(f"ours: {error}")
                for cell in self.chosen_cells() if "cells" in self.options.parts else ():
                    self.measure(name, cell, workers)
        if "ours" in self.options.rivals and "compile" in self.options.parts:
            self.compilation()

    def process(self, rival: str, cores: set[int], kernels: str | None = None) -> WorkerProcess:
        """A worker that keeps its kernels in a folder."""
        folder = kernels or self.kernels.name
        return self.worker(rival, rival, cores, {"EBM_SAMPLERS_CACHE_DIR": folder})

    def chosen_cells(self) -> list[Cell]:
        """The cells of this run."""
        if not self.options.quick:
            return cells(tuple(self.options.methods))
        return [Cell(m, "double well", n) for m in METHODS for n in CHAINS] + [
            Cell("ULA", "AR .9, 100-D", 100)
        ]

    def measure(self, setting: str, cell: Cell, workers: dict[str, WorkerProcess]) -> None:
        """One cell: prepare and check all rivals, then time them in turn."""
        kept = self.found["cells"].setdefault(setting, {}).setdefault(str(cell), {})
        wanted = [name for name in workers if not (self.options.resume and name in kept)]
        fresh = {name: self.prepared(workers[name], cell) for name in wanted}
        able = [name for name in wanted if "seconds" in fresh[name]]
        for _ in range(self.options.repetitions):
            for name in list(able):
                entry = fresh[name]
                if sum(entry["seconds"]) > self.options.patience:
                    continue
                try:
                    answer = workers[name].ask("time")
                    entry["seconds"].append(answer["seconds"])
                    entry["cpu"].append(answer["cpu"])
                except RivalError as error:
                    entry["error"] = str(error)
                    able.remove(name)
        for name in able:
            entry = fresh[name]
            rates = sorted(entry["steps"] * cell.chains / s for s in entry["seconds"])
            busy = sum(entry["cpu"]) / sum(entry["seconds"])
            entry.update(rate=median(rates), low=rates[0], high=rates[-1], busy=busy)
        kept.update(fresh)
        compare(kept)
        rates = (f"{name} {kept[name].get('rate', math.nan):.3g}" for name in wanted)
        wrong = (f" [{name} is WRONG]" for name in wanted if kept[name].get("wrong"))
        self.say(f"{setting:9} {cell!s:32} {', '.join(rates)}{''.join(wrong)}")
        self.save()

    def prepared(self, worker: WorkerProcess, cell: Cell) -> dict[str, Any]:
        """A rival that is ready to be timed, or why it is not."""
        wanted = [cell.method, cell.target, cell.chains]
        try:
            entry = worker.ask("prepare", 120, cell=wanted, seconds=self.options.seconds)
            if cell.chains in CHECK_STEPS:
                entry["moments"] = worker.ask("check")["moments"]
        except RivalError as error:
            return {"error": str(error)}
        return {**entry, "seconds": [], "cpu": [], "date": machine()["date"]}

    def alone(self, setting: str, ours: WorkerProcess) -> None:
        """The ceiling of the noise, and the cost of a call.

        Raises:
            RivalError: If it cannot be measured.
        """
        for chains in CHAINS if "cells" in self.options.parts else ():
            rates = ours.ask("noise", chains=chains, seconds=5 * self.options.seconds)
            self.found.setdefault("normals", {}).setdefault(setting, {})[str(chains)] = rates
            listed = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
            self.say(f"{setting}: normals/s with {chains} chains: {listed}")
        if len(ours.cores) == 1 and "overhead" in self.options.parts:
            self.found["overhead"] = {"machine": machine(), "calls": {}}
            for target in ("double well", "MLP 2-64-64-1"):
                for method in METHODS:
                    request = {"target": target, "method": method, "chains": 100}
                    answer = ours.ask("overhead", 120, repetitions=2000, **request)
                    self.found["overhead"]["calls"][f"{method} | {target}"] = answer
                    cost = 1e6 * (answer["call"] - answer["step"])
                    self.say(f"a call of {method} on {target} costs {cost:.0f} µs beside its steps")
        self.save()

    def compilation(self) -> None:
        """First call in a fresh process, without and with kernels on disk."""
        targets = ("double well",) if self.options.quick else tuple(TARGETS)
        for cell in cells(("ULA",) if self.options.quick else METHODS, targets, (100,)):
            with tempfile.TemporaryDirectory(dir=self.options.scratch) as folder:
                entry = {}
                for kind in ("first", "cached"):
                    with self.process("ours", self.settings["one core"], folder) as worker:
                        wanted = [cell.method, cell.target, cell.chains]
                        try:
                            answer = worker.ask("prepare", 120, cell=wanted, seconds=0.01)
                            entry[kind] = answer["first_call"]
                        except RivalError as error:
                            entry[kind] = None
                            self.say(f"{cell}: {error}")
            self.found.setdefault("compile", {})[f"{cell.method} | {cell.target}"] = entry
            self.say(f"compile {cell.method} | {cell.target}: {entry}")
            self.save()


def compare(entries: dict[str, Any]) -> None:
    """Mark as wrong whose states have not the moments of the reference."""
    reference = entries.get(REFERENCE, {}).get("moments")
    for name, entry in entries.items():
        if name == REFERENCE or not reference or not entry.get("moments"):
            continue
        pairs = zip(entry["moments"], reference, strict=True)
        errors = [abs(a - b) / math.sqrt(u + v + 1e-30) for (a, u), (b, v) in pairs]
        entry["worst_error"] = max(errors, default=math.nan)
        entry["wrong"] = not all(error < SUSPICIOUS for error in errors)


def main() -> None:
    """Read the options, measure, write the page."""
    parser = common_options(
        "Chain-steps per second, against named rivals.",
        "a few cells, short repetitions",
        settings=True,
    )
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=RIVALS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--seconds", type=float, help="of one repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--patience", type=float, default=8, help="seconds for a rival in a cell")
    parser.add_argument("--scratch", default=None, help="folder for compiled kernels")
    options = parser.parse_args()
    options.seconds = options.seconds or (0.05 if options.quick else 0.15)
    if options.quick:
        options.repetitions = min(options.repetitions, 3)
    Chains(options).main(write_pages)


if __name__ == "__main__":
    main()
