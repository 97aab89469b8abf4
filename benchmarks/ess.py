"""Effective draws per second, warm-up included and apart, against BlackJAX and NumPyro.

A job is a method on a target with a number of chains: 500 transitions of warm-up from N(0, I), then
draws. All sides get the same numbers; a rival stops early where that takes too long. Each side is a
process in an environment of its own (see `rivals`), only one is awake at any time, and what it
compiles is timed apart. Draws come back as files; here, for all sides alike, arviz-stats gives the
bulk ESS of each element of x and of x² over all chains together, and the smallest counts. Draws
whose means and variances are not those of the target count for nothing: a sampler that misses a
mode looks efficient.

Log densities in JAX are first compared with the torch energies, values and gradients.

    nox -s bench -- ess [--quick] [--resume] [--sides NAME ...] [--targets NAME ...]

``--report`` only writes the tables of docs/benchmarks.md and docs/choosing.md from what is kept.
"""

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arviz_stats.base import array_stats
from harness.ess_report import write_pages
from harness.machine import machine
from harness.processes import RivalError, WorkerProcess
from rivals.ess_cells import DRAWS, METHODS, offered
from targets import CENTRES, EFFECTS, ERRORS, LAYERS, SIGNED, TARGETS, WHITENING

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
CHAINS = tuple(DRAWS)
ELEMENTS = 10
"""So many elements of a state are looked at, evenly spread, since 1024 chains take a while."""
SUSPICIOUS = 5.0
"""Standard errors between a moment and its exact value that make draws wrong."""
SCHOOLS = {"effects": EFFECTS, "errors": ERRORS}
CONSTANTS = {
    "eight_schools": SCHOOLS,
    "eight_schools_centred": SCHOOLS,
    "logistic": {"signed": SIGNED},
    "gaussian_100": {"whitening": WHITENING},
    "mixture_8": {"centres": CENTRES},
    "mlp": dict(zip(("w1", "b1", "w2", "b2", "w3"), LAYERS, strict=True)),
}
"""What energies in JAX are told of those in torch."""


class Benchmark:
    """A run: its options and what it has found so far."""

    def __init__(self, options: argparse.Namespace, scratch: str) -> None:
        self.options, self.scratch = options, scratch
        self.file = RESULTS / ("ess-quick.json" if options.quick else "ess.json")
        chosen = (options.sides, options.targets, options.chains, options.settings)
        everything = (METHODS, TARGETS, CHAINS, ("one core", "all cores"))
        some = any(set(a) != set(b) for a, b in zip(chosen, everything, strict=True))
        kept = options.resume or options.report or some
        self.found: dict[str, Any] = (
            json.loads(self.file.read_text()) if kept and self.file.exists() else {}
        )
        cores = sorted(os.sched_getaffinity(0))
        self.settings = {"one core": {cores[-1]}, "all cores": set(cores)}
        self.compared: list[str] = []
        self.began = time.monotonic()

    def run(self) -> None:
        """Measure everything that the options ask for."""
        self.found["machine"] = machine()
        self.found["patience"] = self.options.patience
        self.found["dims"] = {name: target.dim for name, target in TARGETS.items()}
        numbers = os.path.join(self.scratch, "numbers.npz")
        export(numbers)
        for setting in self.options.settings:
            with ExitStack() as stack:
                workers = {
                    side: stack.enter_context(self.worker(side, self.settings[setting], numbers))
                    for side in self.options.sides
                }
                self.begin(workers)
                for target in self.options.targets:
                    for chains in self.options.chains:
                        if chains == 1 and len(self.settings[setting]) > 1:
                            continue  # one chain has no use for more
                        self.measure(setting, target, chains, workers)
        self.say(f"done in {(time.monotonic() - self.began) / 60:.1f} minutes: {self.file}")

    def worker(self, side: str, cores: set[int], numbers: str) -> WorkerProcess:
        """A process for a side."""
        python = sys.executable
        if side != "ours":
            python = str(ROOT / self.options.environments.format(side) / "bin" / "python")
        environment = {"BENCHMARK_NUMBERS": numbers, "EBM_SAMPLERS_CACHE_DIR": self.scratch}
        return WorkerProcess(f"ess_{side}", python, cores, environment)

    def begin(self, workers: dict[str, WorkerProcess]) -> None:
        """Note versions; leave out what does not start, or has other densities than torch."""
        for side, worker in list(workers.items()):
            try:
                self.found.setdefault("versions", {})[side] = worker.ask("info")["versions"]
                if side not in ("ours", *self.compared):
                    for target in self.options.targets:
                        compare(target, worker)
                    self.compared.append(side)
            except RivalError as error:
                self.say(f"{side} is left out: {error}")
                del workers[side]

    def measure(
        self, setting: str, target: str, chains: int, workers: dict[str, WorkerProcess]
    ) -> None:
        """All methods on a target with a number of chains."""
        cell = f"{target} | {chains}"
        kept = self.found.setdefault("cells", {}).setdefault(setting, {}).setdefault(cell, {})
        for side, worker in workers.items():
            for method in METHODS[side]:
                name = f"{side} {method}"
                done = self.options.resume and "error" not in kept.get(name, {"error": ""})
                if done or not offered(side, method, chains):
                    continue
                kept[name] = self.job(worker, method, target, chains)
                entry = kept[name]
                told = entry.get("error", "").strip().splitlines()[-1:] or [
                    f"{entry['rate']:.3g} ({entry['rate_with_warm_up']:.3g} with warm-up) a second"
                    + (" WRONG" if entry["wrong"] else "")
                ]
                self.say(f"{setting:9} {cell:36} {name:15} {told[0]}")
                self.save()

    def job(self, worker: WorkerProcess, method: str, target: str, chains: int) -> dict[str, Any]:
        """One job; of several forms, the one with most draws a second."""
        wanted = {"method": method, "target": target, "chains": chains}
        try:
            answer = worker.ask(
                "job",
                self.options.timeout,
                **wanted,
                seed=self.options.seed,
                patience=self.options.patience,
                out=os.path.join(self.scratch, "draws"),
            )
        except RivalError as error:
            return {"error": str(error)}
        entries = []
        for run in answer["runs"]:
            path = run.pop("file")
            entries.append({**run, **judged(np.load(path), target)})
            os.remove(path)
        for entry in entries:
            entry["rate"] = entry["ess"] / entry["draw"]
            entry["rate_with_warm_up"] = entry["ess"] / (entry["draw"] + entry["warm"])
        best = max(entries, key=lambda entry: (not entry["wrong"], entry["rate"]))
        return {**best, "note": answer.get("note", ""), "date": machine()["date"]}

    def save(self) -> None:
        """Keep what is known, in one piece."""
        RESULTS.mkdir(exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=1) + "\n")
        part.replace(self.file)

    def say(self, line: str) -> None:
        """Tell how far it is."""
        print(f"[{(time.monotonic() - self.began) / 60:5.1f} min] {line}", flush=True)


def export(path: str) -> None:
    """Write the numbers of all energies where rivals find them."""
    numbers: dict[str, np.ndarray[Any, Any]] = {}
    for name, target in TARGETS.items():
        numbers[f"{name}|dim"] = np.asarray(target.dim)
        for key, value in CONSTANTS.get(name, {}).items():
            numbers[f"{name}|{key}"] = value.numpy()
    np.savez(path, **numbers)


def compare(target: str, rival: WorkerProcess) -> None:
    """Hold a rival's log density to the torch energy, on random states.

    Raises:
        RivalError: If values differ by more than a constant, or gradients, beyond rounding.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, TARGETS[target].dim, generator=generator)
    answer = rival.ask("densities", 120, target=target, states=x.tolist())
    with torch.enable_grad():
        state = x.clone().requires_grad_()
        energies = TARGETS[target].energy(state)
        (gradients,) = torch.autograd.grad(energies.sum(), state)
    values = energies.detach() + torch.tensor(answer["values"])
    slopes = gradients + torch.tensor(answer["slopes"])
    sizes = energies.detach().abs().max(), gradients.abs().max()
    if not ((values - values[0]).abs().max() < 1e-4 * (1 + sizes[0])):
        raise RivalError(f"{target}: log densities are not those of torch: {values.tolist()}")
    if not (slopes.abs().max() < 1e-3 * (1 + sizes[1])):
        raise RivalError(f"{target}: gradients are not those of torch")


def judged(draws: np.ndarray[Any, Any], target: str) -> dict[str, Any]:
    """Draws ``(chain, draw, dim)``: their smallest ESS, and whether their moments are right."""
    known = TARGETS[target]
    entry: dict[str, Any] = {
        "draws": draws.shape[1],
        "ess": 0.0,
        "wrong": True,
        "error_in": math.nan,
    }
    if not np.isfinite(draws).all() or draws.shape[1] < 8:
        return entry
    smallest, worst = math.inf, 0.0
    for i in spread(draws.shape[2]):
        x = draws[..., i].astype(np.float64)
        smallest = min(smallest, ess(x, "bulk"), ess(x * x, "bulk"))
    if known.mean is not None and known.variance is not None:
        flat = torch.from_numpy(draws).flatten(0, 1)
        judged = known.statistic(flat).unflatten(0, draws.shape[:2]).double().numpy()
        errors = [
            torch.as_tensor(e).expand_as(known.mean).tolist()
            for e in (known.mean_error, known.variance_error)
        ]
        for i in spread(judged.shape[2]):
            x, mean, variance = judged[..., i], known.mean[i].item(), known.variance[i].item()
            scores = (
                z_score(x, mean, errors[0][i]),
                z_score((x - mean) ** 2, variance, errors[1][i]),
            )
            worst = max(worst, *scores)
    entry |= {"ess": smallest, "error_in": worst, "wrong": not worst < SUSPICIOUS}
    return entry


def spread(n: int) -> list[int]:
    """So many elements of `n` as are looked at."""
    return sorted(set(np.linspace(0, n - 1, ELEMENTS).astype(int).tolist()))


def z_score(values: np.ndarray[Any, Any], exact: float, exact_error: float) -> float:
    """The mean's distance from its exact value, in standard errors of both."""
    error = math.hypot(values.std() / math.sqrt(max(ess(values, "mean"), 1.0)), exact_error)
    return abs(float(values.mean()) - exact) / error if error > 0 else math.inf


def ess(values: np.ndarray[Any, Any], method: str) -> float:
    """Of ``(chain, draw)``, over all chains together; 0 where nothing moves."""
    found = float(array_stats.ess(values, chain_axis=0, draw_axis=1, method=method))
    return found if math.isfinite(found) else 0.0


def main() -> None:
    """Read the options, measure, write the page."""
    parser = argparse.ArgumentParser(description="Effective draws per second, against rivals.")
    parser.add_argument("--quick", action="store_true", help="two targets, one core")
    parser.add_argument("--resume", action="store_true", help="only what is not yet in the results")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--sides", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=tuple(TARGETS))
    parser.add_argument("--chains", nargs="+", type=int, choices=CHAINS, default=CHAINS)
    parser.add_argument("--settings", nargs="+", default=("one core", "all cores"))
    parser.add_argument("--patience", type=float, default=2, help="seconds of a part of a job")
    parser.add_argument("--timeout", type=float, default=120, help="seconds of a whole job")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--environments", default=".nox/bench-rival-{}", help="where a rival's environment is"
    )
    parser.add_argument("--scratch", default=None, help="folder for kernels and draws")
    options = parser.parse_args()
    if options.quick:
        options.targets, options.settings = options.targets[:2], ("one core",)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # workers end with it
    with tempfile.TemporaryDirectory(prefix="ess_", dir=options.scratch) as scratch:
        benchmark = Benchmark(options, scratch)
        if not options.report:
            benchmark.run()
    if not options.quick:
        write_pages(benchmark.found, ROOT / "docs")


if __name__ == "__main__":
    main()
