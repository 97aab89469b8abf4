"""Train energies on two densities that are known, and say exactly how good they are.

    python examples/demo.py            eight Gaussians and two moons, two objectives
    python examples/demo.py --quick    the same with fewer steps, under a minute
    python examples/demo.py --full     five seeds: the figures of the docs

Prints for each run the exact divergence KL(data || model) in nats, by quadrature on a grid, R-hat
and effective sample size of chains on the learned density, and seconds; writes a picture. Runs
are independent processes, one a core.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from ebm_core import BaseLoss
from ebm_energies import Gaussian
from ebm_losses import NoiseContrastiveEstimation, PersistentContrastiveDivergence
from ebm_models import MLPEnergy
from ebm_samplers import MALA, HamiltonianMonteCarlo
from ebm_utils import EightGaussians, TwoMoons, ess, exact_kl, plot_landscape, plot_training, rhat

DATA = {"eight Gaussians": EightGaussians, "two moons": TwoMoons}
BOX = [(-10.0, 10.0)] * 2  # holds the untrained model too, nearly the base term: sd 2
VIEW = [(-3.0, 3.0)] * 2
N_REPORTS = 10  # a run: moves of the progress bar, points of the picture's curves
BATCH_SIZE = 512
LEARNING_RATE = 2e-3


def make_model() -> MLPEnergy:
    """Three layers of 64 and a Gaussian base term of standard deviation 2.

    The first layer's weights start four times as large as usual: networks learn broad features
    first, and would see a ring long before they saw eight modes.
    """
    return MLPEnergy(2, hidden=(64, 64, 64), base_scale=2.0, input_gain=4.0)


def persistent_cd(model: MLPEnergy) -> PersistentContrastiveDivergence:
    """Persistent contrastive divergence with adjusted chains.

    It runs away with unadjusted steps: where the energy has become steep, discretised Langevin
    dynamics leaves the model's density, the negatives misstate the gradient, and the scale of the
    energy grows without bound. So the steps here have a Metropolis test, which keeps the model's
    density invariant whatever the step size, and the step size follows the acceptance rate, so
    that chains go on moving as the density sharpens. All chains of the buffer are advanced at each
    step: none lags behind the model.
    """
    chains = MALA(model, step_size=0.01, target_acceptance=0.6)
    return PersistentContrastiveDivergence(model, chains, k_steps=10, buffer_size=BATCH_SIZE)


def noise_contrast(model: MLPEnergy) -> NoiseContrastiveEstimation:
    """Noise-contrastive estimation against N(0, 2² I): no sampler."""
    noise = Gaussian(torch.zeros(2), covariance=4.0 * torch.eye(2))
    return NoiseContrastiveEstimation(model, noise)


@dataclass(frozen=True)
class Recipe:
    """An objective, and for how many steps it trains."""

    name: str
    make_loss: Callable[[MLPEnergy], BaseLoss]
    n_steps: int
    n_quick: int


RECIPES = (
    Recipe("persistent CD", persistent_cd, n_steps=1500, n_quick=200),
    Recipe("noise contrast", noise_contrast, n_steps=2500, n_quick=400),
)


def report(n_steps: int) -> None:
    """Tell the progress bar of steps made; replaced in each process by `start_process`."""


@dataclass(frozen=True)
class Outcome:
    """What one training run led to; the last three serve the picture."""

    data: str
    objective: str
    seed: int
    kl: float
    rhat: float
    ess: float
    seconds: float
    history: list[tuple[int, float]]
    samples: Tensor
    weights: dict[str, Tensor]


def run(recipe: Recipe, data_name: str, n_steps: int, seed: int) -> Outcome:
    """Train, measure, sample."""
    torch.manual_seed(seed)
    data = DATA[data_name](1)
    model = make_model()
    loss_fn = recipe.make_loss(model)
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=LEARNING_RATE)
    schedule = CosineAnnealingLR(optimizer, n_steps, eta_min=1e-5)

    history, seconds = [], 0.0
    stretch = n_steps // N_REPORTS
    for i in range(N_REPORTS):
        began = time.perf_counter()
        for _ in range(stretch):
            optimizer.zero_grad(set_to_none=True)
            loss_fn(data.sample(BATCH_SIZE)).backward()
            optimizer.step()
            schedule.step()
        seconds += time.perf_counter() - began
        kl = exact_kl(model, data.log_density, BOX, 100, max_grid_error=None)
        history.append(((i + 1) * stretch, kl))
        report(stretch)

    sampler = HamiltonianMonteCarlo(model, step_size=0.1, n_leapfrog_steps=5, target_acceptance=0.8)
    start = 2 * torch.randn(64, 2)
    chains = sampler.sample(start, n_steps=200, burn_in=100, keep="trajectory", seed=seed)
    return Outcome(
        data=data_name,
        objective=recipe.name,
        seed=seed,
        kl=exact_kl(model, data.log_density, BOX, 400),
        rhat=rhat(chains).max().item(),
        ess=ess(chains).min().item(),
        seconds=seconds,
        history=history,
        samples=chains.trajectory[:, ::10].flatten(0, 1).clone(),
        weights=model.state_dict(),
    )


def start_process(queue: multiprocessing.Queue) -> None:
    """One thread a process; steps made are reported to the progress bar."""
    global report
    torch.set_num_threads(1)
    report = queue.put


def run_all(seeds: range, quick: bool) -> list[Outcome]:
    """All runs, one process a core, under one progress bar; in the order of the table."""
    jobs = [
        (recipe, name, recipe.n_quick if quick else recipe.n_steps, seed)
        for seed, recipe, name in product(seeds, RECIPES, DATA)
    ]
    context = multiprocessing.get_context("spawn")
    steps, outcomes = context.Queue(), []
    with (
        ProcessPoolExecutor(
            min(len(jobs), os.cpu_count() or 1),
            mp_context=context,
            initializer=start_process,
            initargs=(steps,),
        ) as pool,
        tqdm(total=sum(n_steps for _, _, n_steps, _ in jobs), unit="step", mininterval=1) as bar,
    ):
        pending = {pool.submit(run, *job) for job in jobs}
        while pending:
            time.sleep(0.2)
            while not steps.empty():
                bar.update(steps.get())
            for future in [future for future in pending if future.done()]:
                pending.remove(future)
                outcomes.append(future.result())
                bar.write(describe(outcomes[-1]))
    rows = list(product(DATA, (recipe.name for recipe in RECIPES)))
    return sorted(outcomes, key=lambda o: (rows.index((o.data, o.objective)), o.seed))


def describe(o: Outcome) -> str:
    """One run in one line."""
    return (
        f"{o.data:<16} {o.objective:<15} seed {o.seed}   KL(data || model) {o.kl:.4f} nats   "
        f"R-hat {o.rhat:.2f}   ESS {o.ess:5.0f} of {64 * 200}   {o.seconds:.0f} s"
    )


def summary(outcomes: list[Outcome]) -> str:
    """A Markdown table of the divergences: a row for data and objective, a column a seed."""
    seeds = sorted({o.seed for o in outcomes})
    lines = [
        f"| data | objective | {' | '.join(f'seed {s}' for s in seeds)} | median | worst | s |",
        "|---" * (len(seeds) + 5) + "|",
    ]
    for name, recipe in product(DATA, RECIPES):
        row = [o for o in outcomes if (o.data, o.objective) == (name, recipe.name)]
        kls = [o.kl for o in row]
        figures = [*kls, statistics.median(kls), max(kls)]
        seconds = statistics.median(o.seconds for o in row)
        cells = " | ".join(f"{figure:.4f}" for figure in figures)
        lines.append(f"| {name} | {recipe.name} | {cells} | {seconds:.0f} |")
    return "\n".join(lines)


def picture(outcomes: list[Outcome], path: str) -> None:
    """A row for each data set: its density, what each objective learned, and how fast."""
    figure, grid = plt.subplots(len(DATA), 4, figsize=(15.5, 7.6), layout="constrained")
    for axes, name in zip(grid, DATA, strict=True):
        data = DATA[name](1)
        plot_landscape(
            lambda x, data=data: -data.log_density(x),
            VIEW,
            density=True,
            title=f"{name}: exact density",
            ax=axes[0],
        )
        curves, steps = {}, {}
        for ax, recipe in zip(axes[1:], RECIPES, strict=False):
            o = next(o for o in outcomes if (o.data, o.objective) == (name, recipe.name))
            model = make_model()
            model.load_state_dict(o.weights)
            title = f"{recipe.name}: KL {o.kl:.3f} nats"
            plot_landscape(model, VIEW, density=True, samples=o.samples[:400], title=title, ax=ax)
            curves[recipe.name] = [kl for _, kl in o.history]
            steps[recipe.name] = [step for step, _ in o.history]
        plot_training(curves, x=steps, log=True, title="KL(data || model), nats", ax=axes[3])
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    """Read the options; train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, under a minute")
    parser.add_argument("--full", action="store_true", help="five seeds")
    parser.add_argument("--picture", default="demo.png", help="where to write the picture")
    options = parser.parse_args()
    began = time.perf_counter()
    outcomes = run_all(range(5 if options.full else 1), options.quick)
    print(f"\n{summary(outcomes)}\n")
    picture(outcomes, options.picture)
    print(f"{options.picture} written; {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
