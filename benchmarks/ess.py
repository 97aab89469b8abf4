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
import math
import os
import tempfile
from typing import Any

import numpy as np
import torch
from arviz_stats.base import array_stats
from harness.benchmark import SETTINGS, Benchmark, common_options, last_line
from harness.ess_report import write_pages
from harness.machine import machine
from harness.processes import RivalError, WorkerProcess
from rivals.ess_cells import DRAWS, METHODS, offered
from targets import CENTRES, EFFECTS, ERRORS, LAYERS, SIGNED, TARGETS, WHITENING

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


class EffectiveDraws(Benchmark):
    """A run, and a folder for draws and kernels."""

    def __init__(self, options: argparse.Namespace, scratch: str) -> None:
        choices = {"sides": METHODS, "targets": TARGETS, "chains": CHAINS, "settings": SETTINGS}
        super().__init__(options, "ess", choices)
        self.scratch = scratch
        self.compared = ["ours"]

    def run(self) -> None:
        """Measure everything that the options ask for."""
        self.found["machine"] = machine()
        self.found["patience"] = self.options.patience
        self.found["dims"] = {name: target.dim for name, target in TARGETS.items()}
        numbers = os.path.join(self.scratch, "numbers.npz")
        export(numbers)
        environment = {"BENCHMARK_NUMBERS": numbers, "EBM_SAMPLERS_CACHE_DIR": self.scratch}
        for setting in self.options.settings:
            cores = self.settings[setting]
            asked = {
                side: self.worker(f"ess_{side}", side, cores, environment)
                for side in self.options.sides
            }
            with self.started(asked, self.compare) as workers:
                for target in self.options.targets:
                    for chains in self.options.chains:
                        if chains == 1 and len(cores) > 1:
                            continue  # one chain has no use for more
                        self.measure(setting, target, chains, workers)

    def compare(self, side: str, worker: WorkerProcess) -> None:
        """Hold a side's log densities to the torch energies, once.

        Raises:
            RivalError: If they differ beyond rounding.
        """
        if side not in self.compared:
            for target in self.options.targets:
                compare(target, worker)
            self.compared.append(side)

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
                told = last_line(entry.get("error", "")) or (
                    f"{entry['rate']:.3g} ({entry['rate_with_warm_up']:.3g} with warm-up) a second"
                    + (" WRONG" if entry["wrong"] else "")
                )
                self.say(f"{setting:9} {cell:36} {name:15} {told}")
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
    parser = common_options(
        "Effective draws per second, against rivals.", "two targets, one core", settings=True
    )
    parser.add_argument("--sides", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=tuple(TARGETS))
    parser.add_argument("--chains", nargs="+", type=int, choices=CHAINS, default=CHAINS)
    parser.add_argument("--patience", type=float, default=2, help="seconds of a part of a job")
    parser.add_argument("--timeout", type=float, default=120, help="seconds of a whole job")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scratch", default=None, help="folder for kernels and draws")
    options = parser.parse_args()
    if options.quick:
        options.targets, options.settings = options.targets[:2], SETTINGS[:1]
    with tempfile.TemporaryDirectory(prefix="ess_", dir=options.scratch) as scratch:
        EffectiveDraws(options, scratch).main(write_pages)


if __name__ == "__main__":
    main()
