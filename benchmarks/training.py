"""Training steps a second of each objective, against TorchEBM and ebmkit.

A step is the loss of a batch of 256 states, its backward pass and Adam, on the same perceptron
2-128-128-1 on all sides. CD-10 and PCD-10 make ten steps of unadjusted Langevin. Each side is a
process in an environment of its own (see `rivals`), and only one is awake at any time. For each
objective all sides get ready (of several forms the fastest is kept), and are then timed in turn;
medians count. All is measured on one pinned core, then on all. A step's large products of matrices
and Adam alone are measured beside: no step in float32 takes much less.

    nox -s bench -- training [--quick] [--resume] [--objectives NAME ...] [--sides NAME ...]

``--report`` only writes the table of docs/benchmarks.md from the results kept.
"""

import argparse
from statistics import median
from typing import Any

from harness.benchmark import SETTINGS, Benchmark, common_options
from harness.machine import machine
from harness.processes import RivalError, WorkerProcess
from harness.training_report import write_pages
from rivals.training_cells import OBJECTIVES, SIDES


class Training(Benchmark):
    """A run."""

    def __init__(self, options: argparse.Namespace) -> None:
        choices = {"sides": SIDES, "objectives": OBJECTIVES, "settings": SETTINGS}
        super().__init__(options, "training", choices)

    def run(self) -> None:
        """Measure everything that the options ask for."""
        self.found["machine"] = machine()
        self.found["repetitions"] = self.options.repetitions
        self.found["seconds"] = self.options.seconds
        for setting in self.options.settings:
            asked = {
                side: self.worker(
                    f"training_{side}",
                    "ours" if side == "products" else side,
                    self.settings[setting],
                )
                for side in self.options.sides
            }
            with self.started(asked) as workers:
                for objective in self.options.objectives:
                    self.measure(setting, objective, workers)

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


def main() -> None:
    """Read the options, measure, write the page."""
    parser = common_options(
        "Training steps, against named rivals.",
        "few, short repetitions on one core",
        settings=True,
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--seconds", type=float, help="of one repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    options.seconds = options.seconds or (0.1 if options.quick else 0.5)
    if options.quick:
        options.repetitions, options.settings = min(options.repetitions, 3), SETTINGS[:1]
    Training(options).main(write_pages)


if __name__ == "__main__":
    main()
