"""Restricted Boltzmann machines judged by exact log-likelihoods per pattern.

Each method trains machines of 16 hidden units on data whose likelihood can be summed exactly: all
Bars-and-Stripes images of 3 × 3 and 4 × 4 (every row or every column of one colour; the two plain
ones count twice, as they arise twice), whose entropy bounds the likelihood, and scikit-learn's
digits, a pixel being on from 8 of 16 upwards, 1500 to train and 297 to test. All methods share the
recipe: the machine starts from the data's means, centred; the offsets follow with a rate of 0.01;
Adam, its rate falling linearly to zero; and the same number of parallel chains for the negatives.
The best likelihood is that of all evaluations of a run, on the test part where there is one; the
final one is of the last step.

    nox -s bench -- rbm [--quick] [--resume] [--data NAME ...] [--methods NAME ...] [--seeds N ...]

``--report`` only writes the tables of docs/benchmarks.md from the results kept. ``--speed`` also
times `BlockGibbs` beside a plain loop in torch.
"""

import math
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from harness.benchmark import Benchmark, common_options
from harness.machine import machine
from harness.rbm_report import write_pages
from rivals.protocol import version_of
from torch import Tensor
from torch.nn import functional as F

import ebm_losses
from ebm_core import BaseLoss, NumericalError
from ebm_models import BernoulliRBM
from ebm_samplers import BlockGibbs

N_HIDDEN = 16
CHAINS = 128
BETAS = (1.0, 0.8, 0.6, 0.4, 0.2)
UPDATES = {"bars 3x3": 10_000, "bars 4x4": 15_000, "digits": 20_000}
LEARNING_RATE = {"bars 3x3": 0.01, "bars 4x4": 0.01, "digits": 0.01}
SIZES = ((16, 16, 128), (16, 16, 1280), (64, 16, 128), (784, 500, 100))
"""Visible units, hidden units and chains of which a step is timed."""
SEEDS = (1, 2, 3)
"""Not 0, on which the settings above were chosen."""
EVALUATIONS = 100
"""Of a run; exact log Z takes a while."""


def bars_and_stripes(n: int) -> Tensor:
    """All images, ``(2·2ⁿ, n²)``: n equal rows, or n equal columns."""
    lines = torch.tensor(list(product((0.0, 1.0), repeat=n)))
    columns = lines[:, None, :].expand(-1, n, -1)
    return torch.cat([columns, columns.transpose(1, 2)]).flatten(1)


def digits() -> tuple[Tensor, Tensor]:
    """Training and test part of scikit-learn's digits in black and white."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().data >= 8).float()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:1500]], images[order[1500:]]


def load(name: str) -> tuple[Tensor, Tensor]:
    """Patterns to train on, and to be judged by."""
    if name == "digits":
        return digits()
    data = bars_and_stripes(int(name[-1]))
    return data, data


def entropy(patterns: Tensor) -> float:
    """Minus the entropy of the patterns' frequencies, which bounds the likelihood of themselves."""
    counts = torch.unique(patterns, dim=0, return_counts=True)[1]
    law = counts.double() / len(patterns)
    return (law * law.log()).sum().item()


def contrastive(k: int) -> Callable[[BernoulliRBM, BlockGibbs], BaseLoss]:
    """CD-k."""
    return lambda rbm, sampler: ebm_losses.ContrastiveDivergence(rbm, sampler, k_steps=k)


def persistent(rbm: BernoulliRBM, sampler: BlockGibbs) -> BaseLoss:
    """PCD-1."""
    return ebm_losses.PersistentContrastiveDivergence(
        rbm, sampler, k_steps=1, buffer_size=CHAINS, n_negatives=CHAINS
    )


def tempered(rbm: BernoulliRBM, sampler: BlockGibbs) -> BaseLoss:
    """PCD-1 with five replicas of each chain."""
    return ebm_losses.ParallelTemperingContrastiveDivergence(
        rbm, sampler, k_steps=1, buffer_size=CHAINS, n_negatives=CHAINS, betas=BETAS
    )


METHODS: dict[str, Callable[[BernoulliRBM, BlockGibbs], BaseLoss]] = {
    "CD-1": contrastive(1),
    "CD-10": contrastive(10),
    "PCD": persistent,
    "PT-CD": tempered,
}


def train(name: str, method: str, seed: int, updates: int) -> dict[str, Any]:
    """One run: its likelihoods on the way, in nats per pattern."""
    torch.manual_seed(seed)
    data, test = load(name)
    rbm = BernoulliRBM(data.shape[1], N_HIDDEN)
    rbm.initialize_from(data)
    loss_fn = METHODS[method](rbm, BlockGibbs(rbm))
    rate = LEARNING_RATE[name]
    optimizer = torch.optim.Adam(rbm.parameters(), lr=rate)
    every = max(1, updates // EVALUATIONS)
    curve: list[tuple[int, float]] = []
    seconds, stopped = 0.0, None
    whole = data.repeat(max(1, CHAINS // len(data)), 1)[:CHAINS] if len(data) < CHAINS else data
    for update in range(updates):
        began = time.perf_counter()
        batch = whole
        if len(data) > CHAINS:
            batch = data[torch.randint(len(data), (CHAINS,))]
        optimizer.param_groups[0]["lr"] = rate * (1 - update / updates)
        rbm.recentre(batch, 0.01)
        optimizer.zero_grad()
        try:
            loss_fn(batch).backward()
        except NumericalError as error:
            stopped = f"update {update}: {error}"
            break
        optimizer.step()
        seconds += time.perf_counter() - began
        if (update + 1) % every == 0:
            curve.append((update + 1, log_likelihood(rbm, test)))
    if not curve or curve[-1][0] != updates:
        curve.append((update + 1, log_likelihood(rbm, test)))
    found = {"curve": curve, "seconds": seconds, "updates": updates, "stopped": stopped}
    return found | {"best": max(value for _, value in curve), "final": curve[-1][1]}


@torch.no_grad()
def log_likelihood(rbm: BernoulliRBM, patterns: Tensor) -> float:
    """Exact mean log-likelihood, in float64."""
    exact = BernoulliRBM(rbm.n_visible, rbm.n_hidden).double()
    exact.load_state_dict(rbm.state_dict())
    return (-exact(patterns).mean() - exact.log_normalizer()).item()


@torch.no_grad()
def speed() -> dict[str, dict[str, float]]:
    """Microseconds of a step of all chains, medians, on one thread."""
    torch.set_num_threads(1)
    found = {}
    for n_visible, n_hidden, chains in SIZES:
        rbm, v = BernoulliRBM(n_visible, n_hidden), torch.zeros(chains, n_visible)
        sampler = BlockGibbs(rbm)
        betas = torch.full((chains,), 0.5)
        weight, b, c = rbm.weight.detach(), rbm.visible_bias, rbm.hidden_bias

        def plain(
            k: int, v: Tensor = v, weight: Tensor = weight, b: Tensor = b, c: Tensor = c
        ) -> Tensor:
            for _ in range(k):
                h = torch.bernoulli(F.linear(v, weight, c).sigmoid())
                v = torch.bernoulli(F.linear(h, weight.T, b).sigmoid())
            return v

        for k in (1, 10, 100):
            calls = {
                "plain loop": lambda k=k, plain=plain: plain(k),
                "BlockGibbs": lambda k=k, sampler=sampler, v=v: sampler.sample_chain(v, k),
                "BlockGibbs, beta": lambda k=k, sampler=sampler, v=v, betas=betas: (
                    sampler.sample_chain(v, k, beta=betas)
                ),
            }
            times: dict[str, list[float]] = {call: [] for call in calls}
            for _ in range(12):
                for call, function in calls.items():
                    began = time.perf_counter()
                    function()
                    times[call].append((time.perf_counter() - began) / k)
            name = f"{n_visible} visible, {n_hidden} hidden, {chains} chains, {k} steps a call"
            found[name] = {call: 1e6 * sorted(t[1:])[5] for call, t in times.items()}
            print(name, {call: round(value) for call, value in found[name].items()}, flush=True)
    return found


class BoltzmannMachines(Benchmark):
    """A run; each trained machine is kept as it ends."""

    def run(self) -> None:
        """Make the runs that the options ask for."""
        torch.set_num_threads(1)
        options = self.options
        packages = ["ebm-core", "ebm-losses", "ebm-models", "ebm-samplers", "torch"]
        if "digits" in options.data:
            packages.append("scikit-learn")
        self.found |= {"machine": machine()}
        self.found["versions"] = {"ours": {name: version_of(name) for name in packages}}
        self.found |= {"chains": CHAINS, "betas": BETAS, "n_hidden": N_HIDDEN}
        if options.speed:
            self.found["speed"] = speed()
            self.save()
        for name in options.data:
            updates = 500 if options.quick else UPDATES[name]
            kept = self.found.setdefault("cells", {}).setdefault(name, {})
            kept["bound"] = None if name == "digits" else entropy(load(name)[1])
            kept |= {"learning_rate": LEARNING_RATE[name], "updates": updates}
            for method in options.methods:
                for seed in options.seeds:
                    runs = kept.setdefault("methods", {}).setdefault(method, {})
                    if options.resume and str(seed) in runs:
                        continue
                    runs[str(seed)] = run = train(name, method, seed, updates)
                    assert math.isfinite(run["final"])
                    self.say(
                        f"{name} {method:5} seed {seed}: best {run['best']:.4f} final "
                        f"{run['final']:.4f} in {run['seconds']:.0f} s {run['stopped'] or ''}"
                    )
                    self.save()


def main() -> None:
    """Read the options, measure, write the page."""
    parser = common_options(
        "Exact likelihoods of Boltzmann machines.",
        "few updates, one seed, 3 x 3 alone",
        rivals=False,
    )
    parser.add_argument("--speed", action="store_true", help="time the sampler, too")
    parser.add_argument("--data", nargs="+", choices=UPDATES, default=tuple(UPDATES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    options = parser.parse_args()
    if options.quick:
        options.data, options.seeds = options.data[:1], options.seeds[:1]
    BoltzmannMachines(options, "rbm", choices=None).main(write_pages)


if __name__ == "__main__":
    main()
