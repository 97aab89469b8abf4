"""Training steps a second of each objective, against TorchEBM and ebmkit.

A step is the loss of a batch of 256 states, its backward pass and Adam, on the same perceptron
2-128-128-1 on all sides. CD-10 and PCD-10 make ten steps of unadjusted Langevin. Each side is a
process in an environment of its own (see `rivals`), and only one is awake at any time. For each
objective all sides get ready (of several forms the fastest is kept), and are then timed in turn;
medians count. All is measured on one pinned core, then on all.

    nox -s bench -- training [--quick] [--resume] [--objectives NAME ...] [--sides NAME ...]

``--report`` only writes the table of docs/benchmarks.md from the results kept.
"""

import argparse
import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from harness.machine import machine
from harness.processes import RivalError, WorkerProcess
from harness.training_report import write_page
from rivals.training_cells import OBJECTIVES, SIDES

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SETTINGS = ("one core", "all cores")


class Benchmark:
    """A run: its options and what it has found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.file = RESULTS / ("training-quick.json" if options.quick else "training.json")
        chosen = (options.sides, options.objectives, options.settings)
        everything = (SIDES, OBJECTIVES, SETTINGS)
        some = any(set(a) != set(b) for a, b in zip(chosen, everything, strict=True))
        kept = options.resume or options.report or some
        self.found: dict[str, Any] = (
            json.loads(self.file.read_text()) if kept and self.file.exists() else {}
        )
        cores = sorted(os.sched_getaffinity(0))
        self.settings = {"one core": {cores[-1]}, "all cores": set(cores)}
        self.began = time.monotonic()

    def run(self) -> None:
        """Measure everything that the options ask for."""
        self.found["machine"] = machine()
        self.found["repetitions"] = self.options.repetitions
        self.found["seconds"] = self.options.seconds
        for setting in self.options.settings:
            with ExitStack() as stack:
                workers = {
                    side: stack.enter_context(self.worker(side, self.settings[setting]))
                    for side in self.options.sides
                }
                for side, worker in list(workers.items()):
                    try:
                        answer = worker.ask("info", 300)
                        self.found.setdefault("versions", {})[side] = answer["versions"]
                    except RivalError as error:
                        self.say(f"{side} does not start: {error}")
                        del workers[side]
                for objective in self.options.objectives:
                    self.measure(setting, objective, workers)
        self.say(f"done in {(time.monotonic() - self.began) / 60:.1f} minutes: {self.file}")

    def worker(self, side: str, cores: set[int]) -> WorkerProcess:
        """A process for a side."""
        python = sys.executable
        if side != "ours":
            python = str(ROOT / self.options.environments.format(side) / "bin" / "python")
        return WorkerProcess(f"training_{side}", python, cores)

    def measure(self, setting: str, objective: str, workers: dict[str, WorkerProcess]) -> None:
        """One objective: all sides get ready, then are timed in turn."""
        cells = self.found.setdefault("cells", {}).setdefault(setting, {})
        kept = cells.setdefault(objective, {})
        wanted = [
            side for side in workers if not (self.options.resume and "step" in kept.get(side, {}))
        ]
        fresh: dict[str, Any] = {}
        for side in wanted:
            try:
                request = {"objective": objective, "seconds": self.options.seconds}
                fresh[side] = {**workers[side].ask("ready", 300, **request), "steps": [], "cpu": []}
            except RivalError as error:
                fresh[side] = {"error": str(error)}
        for _ in range(self.options.repetitions):
            for side, entry in fresh.items():
                if "error" in entry:
                    continue
                try:
                    answer = workers[side].ask("steps", 120)
                    entry["steps"].append(answer["step"])
                    entry["cpu"].append(answer["cpu"])
                except RivalError as error:
                    entry["error"] = str(error)
        for entry in fresh.values():
            if "error" not in entry:
                steps = sorted(entry["steps"])
                entry.update(step=median(steps), low=steps[0], high=steps[-1])
                entry["busy"] = sum(entry["cpu"]) / sum(entry["steps"])
        kept.update(fresh)
        told = (
            f"{side} {1e3 * e['step']:.3g} ms ({e['form']})"
            if "step" in e
            else f"{side} {e['error']}"
            for side, e in fresh.items()
        )
        self.say(f"{setting:9} {objective:7} {', '.join(told)}")
        self.save()

    def save(self) -> None:
        """Keep what is known, in one piece."""
        RESULTS.mkdir(exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=1) + "\n")
        part.replace(self.file)

    def say(self, line: str) -> None:
        """Tell how far it is."""
        print(f"[{(time.monotonic() - self.began) / 60:5.1f} min] {line}", flush=True)


def main() -> None:
    """Read the options, measure, write the page."""
    parser = argparse.ArgumentParser(description="Training steps, against named rivals.")
    parser.add_argument("--quick", action="store_true", help="few, short repetitions on one core")
    parser.add_argument("--resume", action="store_true", help="only what is not yet in the results")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    parser.add_argument("--seconds", type=float, help="of one repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument(
        "--environments", default=".nox/bench-rival-{}", help="where a rival's environment is"
    )
    options = parser.parse_args()
    options.seconds = options.seconds or (0.1 if options.quick else 0.5)
    if options.quick:
        options.repetitions, options.settings = min(options.repetitions, 3), SETTINGS[:1]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # workers end with it
    benchmark = Benchmark(options)
    if not options.report:
        benchmark.run()
    if not options.quick:
        write_page(benchmark.found, ROOT / "docs" / "benchmarks.md")


if __name__ == "__main__":
    main()
