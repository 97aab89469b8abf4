"""Why PCD with a large buffer fails where chains begin anew, though either alone does no harm.

Two moons, negatives by MALA with an adapting step: runs that differ in one thing each, with what
explains them measured on the way. Run as `nox -s bench -- reinitialisation`; `--quick` is one seed
of few runs, `--report` prints the table of the runs kept, `--only NAME` does one case anew.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from harness.benchmark import RESULTS, write
from harness.machine import machine
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from ebm_core import EBMError, EnergyFunction, NumericalError
from ebm_losses import PersistentContrastiveDivergence, ReplayBuffer, RunawayGuard
from ebm_models import MLPEnergy
from ebm_samplers import MALA
from ebm_utils import TwoMoons, exact_kl

N_STEPS, BATCH, K_STEPS, LARGE, SMALL = 1000, 256, 10, 10_000, 256
BOX = [(-8.0, 8.0)] * 2
AGES = (1, 2, 5, 10, 20)  # lower ends of the classes of ages, in visits


@dataclass(frozen=True)
class Case:
    """One run's settings; the others are as in the module's constants."""

    name: str
    buffer_size: int
    reinit: float
    start: str = "noise"
    warm: int = 0
    count_from: int = 1
    moved_only: bool = False
    rate: float = 1e-3
    fixed_step: float | None = None


CASES = (
    Case("small buffer, none anew", SMALL, 0.0),
    Case("large buffer, none anew", LARGE, 0.0),
    Case("small buffer, 5 % anew", SMALL, 0.05),
    Case("large buffer, 5 % anew", LARGE, 0.05),
    Case("large, 5 % anew, from data", LARGE, 0.05, start="data"),
    Case("large, 5 % anew, 300 transitions first", LARGE, 0.05, warm=300),
    Case("large, 5 % anew, counted from visit 10 on", LARGE, 0.05, count_from=10),
    Case("large, 5 % anew, counted if they moved", LARGE, 0.05, moved_only=True),
    Case("large, 5 % anew, step fixed at 0.01", LARGE, 0.05, fixed_step=0.01),
    Case("large, none anew, half the rate", LARGE, 0.0, rate=5e-4),
    Case("small, 5 % anew, half the rate", SMALL, 0.05, rate=5e-4),
    Case("large, 5 % anew, half the rate", LARGE, 0.05, rate=5e-4),
    Case("large, none anew, counted if they moved", LARGE, 0.0, moved_only=True),
    Case("small, 5 % anew, counted if they moved", SMALL, 0.05, moved_only=True),
)


class ObservedBuffer(ReplayBuffer):
    """A `ReplayBuffer` that knows how often a chain was visited, and its energy when it was left.

    Args:
        size: Number of slots.
        begin: Gives ``n`` states to begin from.
        probability: Of beginning anew at a visit.
        energy: The energy that is trained.
    """

    def __init__(
        self,
        size: int,
        begin: Callable[[int], Tensor],
        probability: float,
        energy: EnergyFunction,
    ) -> None:
        super().__init__(size)
        self._begin_anew, self._probability, self._energy = begin, probability, [energy]
        self.ages = torch.zeros(size, dtype=torch.long)
        self.left_at = torch.full((size,), math.nan)
        self.raised = torch.zeros(0)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Slots and chains, some of them begun anew, with what changed while they waited."""
        slots, chains = super().draw(n)
        with torch.no_grad():
            self.raised = self._energy[0](chains) - self.left_at[slots]
        begins = torch.rand(n) < self._probability
        if begins.any():
            chains[begins] = self._begin_anew(int(begins.sum()))
            self.ages[slots[begins]] = 0
            self.raised[begins] = math.nan
        self.start, self.drawn = chains, slots
        return slots, chains

    def write(self, slots: Tensor, chains: Tensor) -> None:
        """Put chains back, a visit older."""
        super().write(slots, chains)
        self.ages[slots] += 1
        with torch.no_grad():
            self.left_at[slots] = self._energy[0](chains)


class Counted(PersistentContrastiveDivergence):
    """PCD in whose loss young chains do not count; they are only advanced."""

    case: Case

    def contrast(self, x: Tensor, negatives: Tensor | None) -> tuple[Tensor, Any]:
        """As in the parent, the energies of the other negatives left out of the mean."""
        loss, metrics = super().contrast(x, negatives)
        counts = self.buffer.ages[self._drawn_slots] + 1 >= self.case.count_from
        if counts.any() and not counts.all():
            loss = self.energy(x).mean() - self.energy(self.negatives[counts]).mean()
        return loss, metrics


def observed(loss_fn: Counted, x: Tensor) -> dict[str, Any]:
    """What explains a step: by age, how high negatives are above data and how many did not move."""
    buffer, negatives = loss_fn.buffer, loss_fn.negatives
    with torch.no_grad():
        excess = loss_fn.energy(negatives) - loss_fn.energy(x).mean()
    stuck = (negatives == buffer.start).all(1)
    ages, known = buffer.ages[buffer.drawn], buffer.raised.isfinite()
    classes = [
        (ages >= low) & (ages < high) for low, high in zip(AGES, (*AGES[1:], 10**9), strict=True)
    ]
    return {
        "gap": loss_fn.metrics["energy_gap"].item(),
        "acceptance": loss_fn.metrics["acceptance_rate"].item(),
        "step size": float(loss_fn.sampler.step_size),
        "share": [c.double().mean().item() for c in classes],
        "excess": [excess[c].mean().item() for c in classes],
        "stuck": [stuck[c].double().mean().item() for c in classes],
        "raised": buffer.raised[known].mean().item(),
        "raised 95 %": buffer.raised[known].quantile(0.95).item() if known.any() else math.nan,
    }


def train(case: Case, seed: int, n_steps: int = N_STEPS) -> dict[str, Any]:
    """One run: how it ended, and what was observed every 20 steps."""
    torch.manual_seed(seed)
    data = TwoMoons(1, seed=seed)
    energy = MLPEnergy(2, hidden=(64, 64, 64), base_scale=2.0)
    target = 0.6 if case.fixed_step is None else None
    sampler = MALA(energy, case.fixed_step or 0.01, target_acceptance=target)
    fresh = MALA(energy, 0.01)  # so that the adapting step follows the training chains alone

    def begin(n: int) -> Tensor:
        if case.start == "data":
            return data.sample(n)
        chains = torch.randn(n, 2)
        if case.warm:
            fresh.step_size = float(sampler.step_size)
            return fresh.sample_chain(chains, case.warm)
        return chains

    loss_fn = Counted(
        energy,
        sampler,
        K_STEPS,
        case.buffer_size,
        n_negatives=BATCH,
        leave_out_stuck=case.moved_only,
        guard=RunawayGuard(gap_limit=10.0),
    )
    loss_fn.case = case
    loss_fn.buffer = ObservedBuffer(case.buffer_size, begin, case.reinit, energy)
    optimizer = torch.optim.Adam(energy.parameters(), lr=case.rate)
    schedule = CosineAnnealingLR(optimizer, n_steps, eta_min=0.01 * case.rate)
    start, ended, history = time.perf_counter(), None, []
    for step in range(n_steps):
        x = data.sample(BATCH)
        optimizer.zero_grad()
        try:
            loss_fn(x).backward()
        except NumericalError as error:
            ended = {"step": step, "message": error.given}
            break
        if step % 20 == 0:
            history.append({"step": step, **observed(loss_fn, x)})
        optimizer.step()
        schedule.step()
    try:
        kl = exact_kl(energy, data.log_density, BOX, 300)
    except EBMError:  # exp(-E) has features that the grid does not resolve
        kl = None
    return {
        "case": asdict(case),
        "seed": seed,
        "blew up": ended,
        "kl": kl,
        "largest gap": max(abs(row["gap"]) for row in history),
        "history": history,
        "seconds": time.perf_counter() - start,
    }


def print_table(runs: Iterable[dict[str, Any]]) -> None:
    """One line a case: the fate of its seeds, and means over the second half of what it lived."""
    print(
        "KL: exact, at the end or where the guard stopped the run; gap: the largest. Medians over\n"
        "the second half of each run: raised: nats by which the energy at a chain rose while it\n"
        "waited, mean and 95 % quantile of a call; excess: mean energy of negatives of 1 to 4\n"
        "visits above data; stuck: share of these that did not move in a call.\n"
        f"{'case':44}{'blew up at':>12}{'KL, nats':>16}{'gap':>8}"
        f"{'raised':>9}{'95 %':>8}{'excess':>8}{'stuck':>8}"
    )
    by_case: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_case.setdefault(run["case"]["name"], []).append(run)
    for name, group in by_case.items():
        ends = [str(run["blew up"]["step"]) if run["blew up"] else "-" for run in group]
        kls = ["-" if run["kl"] is None else f"{run['kl']:.3g}" for run in group]
        rows = [row for run in group for row in run["history"][len(run["history"]) // 2 :]]
        excess, stuck = ([young(row, name) for row in rows] for name in ("excess", "stuck"))
        print(
            f"{name:44}{', '.join(ends):>12}{', '.join(kls):>16}"
            f"{max(run['largest gap'] for run in group):8.3g}"
            f"{median(row['raised'] for row in rows):9.2g}"
            f"{median(row['raised 95 %'] for row in rows):8.2g}"
            f"{median(excess):8.2g}{median(stuck):8.2g}"
        )


def compact(value: Any) -> Any:
    """Numbers to four digits, and None for what is none: JSON has no NaN."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: compact(item) for name, item in value.items()}
    return [compact(item) for item in value] if isinstance(value, list | tuple) else value


def young(row: dict[str, Any], name: str) -> float:
    """The mean of what was observed over chains of one to four visits; NaN if there are none."""
    pairs = [
        (share, value)
        for share, value in zip(row["share"][:2], row[name][:2], strict=True)
        if share > 0
    ]
    total = sum(share for share, _ in pairs)
    return sum(share * value for share, value in pairs) / total if total else math.nan


def median(values: Iterable[float | None]) -> float:
    """The median of what is a number; NaN if nothing is."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--only")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    path = RESULTS / ("reinitialisation-quick.json" if options.quick else "reinitialisation.json")
    found: dict[str, Any] = {"machine": machine(), "torch": torch.__version__, "runs": []}
    if (options.report or options.only) and path.exists():
        found = json.loads(path.read_text())
    if not options.report:
        torch.set_num_threads(1)
        cases = [case for case in CASES if options.only in (None, case.name)]
        for seed in options.seeds[: 1 if options.quick else None]:
            for case in cases[: 3 if options.quick else None]:
                run = train(case, seed, 300 if options.quick else N_STEPS)
                others = [
                    r for r in found["runs"] if (r["case"]["name"], r["seed"]) != (case.name, seed)
                ]
                found["runs"] = [*others, run]
                print(f"{case.name}, seed {seed}: {run['blew up'] or run['kl']}", flush=True)
                write(path, compact(found), indent=None)
    print_table(found["runs"])


if __name__ == "__main__":
    main()
