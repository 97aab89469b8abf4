"""Exact KL divergence from known densities, by objective, against TorchEBM and ebmkit.

A cell is an objective on a data set with a seed, trained by one side in a process of its own, so
that a run that stops loses one cell. All sides train the same network from the same start on the
same batches with the same optimizer (`rivals.density_cells`); each process leaves the running
average of the parameters, and here, for all alike, KL(data || model) is computed by quadrature, in
nats. Objectives of this project have their default recipes; a rival runs its counterpart, with the
same numbers where it has them, and in two forms where its defaults are known to fail.

    nox -s bench -- density [--quick] [--resume] [--objectives NAME ...] [--datasets NAME ...]

``--jobs 2`` trains two cells at once, each on a core; ``--report`` only writes the tables of
docs/benchmarks.md from the results kept.
"""

import argparse
import math
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from typing import Any

import torch
from harness.benchmark import Benchmark, common_options, last_line
from harness.density_report import write_pages
from harness.machine import machine
from harness.processes import RivalError, WorkerProcess
from rivals.density_cells import (
    BOX,
    DATASETS,
    DSM_NOISE,
    OBJECTIVES,
    POINTS,
    SIDES,
    forms_of,
)
from rivals.density_training import Network
from torch import Tensor

from ebm_core import NumericalError
from ebm_utils import (
    Checkerboard,
    Circles,
    DensityDataset,
    EightGaussians,
    TwoMoons,
    exact_kl,
)

SEEDS = (0, 1, 2)
QUICK_STEPS = 200
LAWS: tuple[DensityDataset, ...] = (
    EightGaussians(1),
    EightGaussians(1, weights=list(range(1, 9))),
    TwoMoons(1),
    Checkerboard(1),
    Circles(1, radii=(1.0, 2.0, 3.0)),
)
DATA = dict(zip(DATASETS, LAWS, strict=True))
BOUNDS = [(-BOX, BOX)] * 2


@dataclass(frozen=True)
class Cell:
    """One training run."""

    dataset: str
    objective: str
    side: str
    form: str
    seed: int

    @property
    def row(self) -> str:
        """Name among the results of a data set."""
        return " | ".join((self.objective, self.side, self.form))

    def __str__(self) -> str:
        """For the log."""
        parts = (self.dataset, self.objective, self.side, self.form, f"seed {self.seed}")
        return ", ".join(filter(None, parts))


class Densities(Benchmark):
    """A run, several cells at once."""

    def __init__(self, options: argparse.Namespace) -> None:
        choices = {"sides": SIDES, "objectives": OBJECTIVES, "datasets": DATASETS, "seeds": SEEDS}
        super().__init__(options, "density", choices)
        self.cores: Queue[int] = Queue()
        for core in sorted(os.sched_getaffinity(0), reverse=True)[: options.jobs]:
            self.cores.put(core)
        self.lock = threading.Lock()
        self.workers: set[WorkerProcess] = set()
        self.stopping = False

    def run(self) -> None:
        """Train and judge everything that the options ask for."""
        self.found["machine"] = machine()
        self.found["jobs"] = self.options.jobs
        self.found["facts"] = {
            name: {"entropy": law.entropy(), "noise floor": noise_floor(law, DSM_NOISE)}
            for name, law in DATA.items()
        }
        with ThreadPoolExecutor(self.options.jobs) as pool:
            try:
                for done in [pool.submit(self.measure, cell) for cell in self.cells()]:
                    done.result()
            except BaseException:  # told to stop: cells that have not begun never will
                self.stopping = True
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in list(self.workers):
                    worker.kill()
                raise

    def cells(self) -> list[Cell]:
        """The cells of this run, seed by seed, so that a run that stops has all of some seeds."""
        options = self.options
        cells = [
            Cell(dataset, objective, side, form, seed)
            for seed in options.seeds
            for dataset in options.datasets
            for objective in options.objectives
            for side in options.sides
            for form in forms_of(side, objective)
        ]
        return [cell for cell in cells if not (options.resume and self.done(cell))]

    def done(self, cell: Cell) -> bool:
        """Whether there is a result, and no failure of the process."""
        entry = self.found.get("cells", {}).get(cell.dataset, {}).get(cell.row, {})
        return str(cell.seed) in entry and "error" not in entry[str(cell.seed)]

    def measure(self, cell: Cell) -> None:
        """One cell, in a process of its own on a core of its own."""
        core = self.cores.get()
        try:
            entry = self.trained(cell, core)
        finally:
            self.cores.put(core)
        if self.stopping:  # a cell that was cut off has no result
            return
        with self.lock:
            cells = self.found.setdefault("cells", {}).setdefault(cell.dataset, {})
            cells.setdefault(cell.row, {})[str(cell.seed)] = entry
            self.save()
        told = last_line(entry.get("error", "")) or (
            f"KL {entry['kl']:.4f} after {entry['seconds']:.0f} s {entry.get('note', '')}"
        )
        self.say(f"{cell}: {told}")

    def trained(self, cell: Cell, core: int) -> dict[str, Any]:
        """Train, then judge."""
        recipe = OBJECTIVES[cell.objective]
        steps = QUICK_STEPS if self.options.quick else recipe.steps
        with tempfile.TemporaryDirectory(prefix="density_", dir=self.options.scratch) as scratch:
            data, out = os.path.join(scratch, "data.pt"), os.path.join(scratch, "network.pt")
            draws = DATA[cell.dataset].sample(steps * recipe.batch, seed=1000 + cell.seed)
            torch.save(draws.reshape(steps, recipe.batch, 2), data)
            form = forms_of(cell.side, cell.objective)[cell.form]
            request = {"objective": cell.objective, "form": form, "seed": cell.seed}
            try:
                with self.worker(f"density_{cell.side}", cell.side, {core}) as worker:
                    self.workers.add(worker)
                    versions = worker.ask("info", 300)["versions"]
                    answer = worker.ask(
                        "train", self.options.patience, **request, data=data, out=out
                    )
            except RivalError as error:
                return {"error": str(error)}
            finally:
                self.workers.discard(worker)
            with self.lock:
                self.found.setdefault("versions", {})[cell.side] = versions
            network = Network()
            network.load_state_dict(torch.load(out, weights_only=True))
        here = {name: machine()[name] for name in ("processor", "date")}
        return {**answer, **judged(network, DATA[cell.dataset]), "steps": steps, **here}


def judged(network: Network, law: DensityDataset) -> dict[str, Any]:
    """The exact divergence; infinite where the parameters are no numbers."""
    if not all(torch.isfinite(p).all() for p in network.parameters()):
        return {"kl": math.inf, "note": "diverged: parameters are NaN"}
    try:
        return {"kl": exact_kl(network, law.log_density, BOUNDS, POINTS)}
    except NumericalError as error:
        note = f"unresolved: {error.given}"
    try:
        unchecked = {"max_outside_mass": None, "max_grid_error": None}
        kl = exact_kl(network, law.log_density, BOUNDS, POINTS, **unchecked)  # type: ignore[arg-type]
    except NumericalError as error:
        return {"kl": math.inf, "note": f"diverged: {error.given}"}
    return {"kl": kl, "note": note}


def noise_floor(law: DensityDataset, sigma: float) -> float:
    """KL(p || p * N(0, σ² I)), what denoising score matching would have if it had no error.

    On a grid of spacing σ/6 the density is convolved along one axis after the other.
    """
    n = [math.ceil((high - low + 12 * sigma) / (sigma / 6)) for low, high in law.bounds]
    axes = [
        low - 6 * sigma + (torch.arange(m, dtype=torch.float64) + 0.5) * (sigma / 6)
        for (low, _), m in zip(law.bounds, n, strict=True)
    ]
    log_p = law.log_density(torch.cartesian_prod(*axes)).reshape(n)
    p = log_p.exp()
    p = p / p.sum()
    smooth = convolved(convolved(p, 6).T, 6).T
    return torch.where(p > 0, p * (p.log() - smooth.clamp_min(1e-300).log()), 0.0).sum().item()


def convolved(p: Tensor, width: int) -> Tensor:
    """Rows convolved with a Gaussian whose standard deviation is so many cells."""
    offsets = torch.arange(-6 * width, 6 * width + 1, dtype=p.dtype)
    kernel = (-0.5 * (offsets / width) ** 2).exp()
    kernel = (kernel / kernel.sum())[None, None]
    return torch.nn.functional.conv1d(p[:, None], kernel, padding=6 * width)[:, 0]


def main() -> None:
    """Read the options, measure, write the page."""
    parser = common_options(
        "Exact KL divergence of trained energies.", "few steps, one data set and seed"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=tuple(OBJECTIVES))
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="cells at once, each on a core")
    parser.add_argument("--patience", type=float, default=1800, help="seconds for a cell")
    parser.add_argument("--scratch", default=None, help="folder for data and parameters")
    options = parser.parse_args()
    if options.quick:
        options.datasets, options.seeds = options.datasets[:1], options.seeds[:1]
    torch.set_num_threads(1)
    Densities(options).main(write_pages)


if __name__ == "__main__":
    main()
