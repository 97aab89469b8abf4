"""What a summary warns of: each warning says what was seen, where, and what to do about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isnan, sqrt

import torch
from torch import Tensor

from ebm_utils.chains import ModeOccupancy

MAX_RHAT = 1.01
MIN_ESS = 400
MIN_BFMI = 0.3
MIN_ACCEPTANCE = 0.15
MIN_HAMILTONIAN_ACCEPTANCE = 0.4
HIGH_ACCEPTANCE = 0.98
BARELY_ACCEPTED = 0.01
SATURATED = 0.01
MANY_CHAINS = 32
LONG_STAY = 0.5


@dataclass(frozen=True, eq=False)
class Findings:
    """What is known of a run.

    Attributes:
        kept: "trajectory", "moments" or "final".
        n_chains: Chains, those that are not finite among them.
        n_draws: Draws of each chain.
        left_out: Chains that are not finite.
        index: Names of the elements.
        columns: Numbers of each element, ``(element,)``, by name.
        chains: Numbers of each chain, ``(chain,)``, by name.
        superchains: How many superchains there are; 0 if unknown.
        max_tree_depth: Deepest tree that NUTS may build.
        occupancy: How chains spread over modes, if these are known.
        occupancy_rhat: R-hat of being at each mode, ``(mode,)``, if there are draws enough.
    """

    kept: str
    n_chains: int
    n_draws: int
    left_out: int
    index: tuple[str, ...]
    columns: Mapping[str, Tensor]
    chains: Mapping[str, Tensor]
    superchains: int
    max_tree_depth: int
    occupancy: ModeOccupancy | None
    occupancy_rhat: Tensor | None

    @property
    def smallest_ess(self) -> float:
        """The smallest effective sample size of all kinds; NaN if there is none."""
        sizes = [c[~c.isnan()] for name, c in self.columns.items() if name.startswith("ess")]
        known = torch.cat(sizes) if sizes else torch.empty(0)
        return known.min().item() if len(known) else float("nan")


def warnings_of(run: Findings) -> tuple[str, ...]:
    """All warnings, what makes others void first."""
    rules = (
        _not_finite,
        _standing_still,
        _diverging,
        _acceptance,
        _constant,
        _too_little,
        _rhat,
        _nested_rhat,
        _ess,
        _modes,
        _bfmi,
        _tree_depth,
    )
    return tuple(sentence for rule in rules for sentence in rule(run))


def _not_finite(run: Findings) -> Iterator[str]:
    if run.left_out:
        yield (
            f"{run.left_out} of {run.n_chains} chains are NaN or infinite, and left out of the "
            "table: lower step_size, and see that the energy is finite wherever chains may go"
        )


def _standing_still(run: Findings) -> Iterator[str]:
    stays = run.chains.get("longest_stay")
    rate = run.chains.get("acceptance_rate")
    if stays is not None:
        stuck = int((stays >= 1).sum())
        if stuck:
            yield f"{stuck} of {run.n_chains} chains never moved: lower step_size"
        slow = int(((stays >= LONG_STAY) & (stays < 1)).sum())
        if slow and run.n_draws >= 20:
            yield (
                f"{slow} of {run.n_chains} chains stood still for half of the run or longer: lower "
                "step_size, or change variables so that one step size fits everywhere"
            )
    elif rate is not None and (rate < BARELY_ACCEPTED).any():
        yield (
            f"{int((rate < BARELY_ACCEPTED).sum())} of {run.n_chains} chains accepted less than "
            f"{BARELY_ACCEPTED:.0%} of their proposals: lower step_size"
        )


def _diverging(run: Findings) -> Iterator[str]:
    counts = run.chains.get("n_diverging")
    if counts is None or not counts.any():
        return
    chains = f"{int((counts > 0).sum())} of {run.n_chains} chains"
    seen = (
        f"{int(counts.sum())} of {run.n_chains * run.n_draws} draws end a divergence, in {chains}"
        if run.kept == "trajectory"
        else f"{chains} diverged"
    )
    yield (
        f"{seen}: lower step_size (or raise target_acceptance); where they stay, change variables "
        "so that one scale fits all of the state (a non-centred form, logarithms)"
    )


def _acceptance(run: Findings) -> Iterator[str]:
    if "acceptance_rate" not in run.chains:
        return
    rate = run.chains["acceptance_rate"].mean().item()
    hamiltonian = "bfmi" in run.chains or "tree_depth" in run.chains
    limit = MIN_HAMILTONIAN_ACCEPTANCE if hamiltonian else MIN_ACCEPTANCE
    if rate < limit:
        yield (
            f"the acceptance rate is {rate:.2g}: lower step_size, or let it follow "
            "target_acceptance during burn_in"
        )
    elif rate > HIGH_ACCEPTANCE and run.smallest_ess < MIN_ESS:
        yield (
            f"the acceptance rate is {rate:.3g} and chains move slowly: raise step_size, or let it "
            "follow target_acceptance during burn_in"
        )


def _constant(run: Findings) -> Iterator[str]:
    constant = run.columns["sd"] == 0
    if constant.any() and run.n_chains > run.left_out:
        yield (
            f"{_of_elements(run, constant)} never changed: see that the energy depends on what is "
            "constant, and lower step_size if nothing else changed either"
        )


def _too_little(run: Findings) -> Iterator[str]:
    together = (
        "start groups of chains from common points and pass superchains= for nested R-hat, or "
        'sample with keep="trajectory"'
    )
    if run.kept == "final" and not run.superchains:
        yield (
            "final states alone cannot say whether chains have converged: compare with a run of "
            f"twice as many steps, {together}"
        )
    elif run.n_chains - run.left_out < 2:
        yield (
            "a single chain has nothing to be compared with: run four chains or more, from "
            "scattered starts"
        )
    elif run.kept == "trajectory" and "ess_bulk" not in run.columns:
        yield (
            f"{run.n_draws} draws a chain are too few for R-hat and effective sample sizes: lower "
            "thin or raise n_steps, or start groups of chains from common points and pass "
            "superchains="
        )


def _rhat(run: Findings) -> Iterator[str]:
    values = run.columns.get("rhat")
    if values is None:
        return
    high = values >= MAX_RHAT
    if not high.any():
        return
    remedy = "raise burn_in and n_steps"
    if run.n_chains >= MANY_CHAINS and not run.superchains:
        remedy += (
            "; of many chains shorter than their memory nested R-hat tells more: start groups from "
            "common points and pass superchains="
        )
    yield (
        f"R-hat is {_number(values[~values.isnan()].max())} at {_worst(run, values)} "
        f"({_of_elements(run, high, names=False)} at {MAX_RHAT} or above): chains do not agree; "
        f"{remedy}. Where they sit in separate modes, none of this helps: temper, or weigh modes"
    )


def _nested_rhat(run: Findings) -> Iterator[str]:
    values = run.columns.get("nested_rhat")
    if values is None:
        return
    limit = nested_limit(run.superchains, (run.n_chains - run.left_out) // run.superchains)
    high = values >= limit
    if high.any():
        yield (
            f"nested R-hat is {_number(values[~values.isnan()].max())} at {_worst(run, values)} "
            f"({_of_elements(run, high, names=False)} above {limit:.3f}, what forgotten starts "
            "give at most): chains remember their starts; raise burn_in"
        )


def nested_limit(n_superchains: int, chains_each: int) -> float:
    """What nested R-hat hardly exceeds where starts are forgotten.

    The variance between superchains is then at most 1/M of that within, up to an error of
    sqrt(2 / (K - 1)) of it; three such errors, and 1.01² for what is left, are allowed.
    """
    noise = 1 + 3 * sqrt(2 / (n_superchains - 1))
    return sqrt(MAX_RHAT**2 + noise / chains_each)


def _ess(run: Findings) -> Iterator[str]:
    smallest = run.smallest_ess
    if isnan(smallest) or smallest >= MIN_ESS:
        return
    sizes = {name: c for name, c in run.columns.items() if name.startswith("ess")}
    low = torch.stack([c < MIN_ESS for c in sizes.values()]).any(0)
    name, values = min(sizes.items(), key=lambda item: _least(item[1]))
    yield (
        f"the effective sample size is {smallest:.0f} at {_worst(run, -values)} ({name}; "
        f"{_of_elements(run, low, names=False)} below {MIN_ESS}): averages, quantiles and R-hat "
        "itself are uncertain; raise n_steps, or run more chains"
    )


def _modes(run: Findings) -> Iterator[str]:
    occupancy = run.occupancy
    if occupancy is None:
        return
    empty = (occupancy.counts.sum(0) == 0).nonzero().flatten().tolist()
    if empty:
        yield (
            f"no draw is near {'mode' if len(empty) == 1 else 'modes'} "
            f"{', '.join(map(str, empty))}: start chains there too, or temper"
        )
    never = int((occupancy.switches == 0).sum())
    if occupancy.labels.shape[1] > 1 and never > len(occupancy.switches) / 2:
        yield (
            f"{never} of {len(occupancy.switches)} chains never changed their mode: the weights of "
            "modes are those of the starts; temper, or weigh modes by their normalisers"
        )
    elif run.occupancy_rhat is not None and (run.occupancy_rhat >= MAX_RHAT).any():
        worst = int(run.occupancy_rhat.nan_to_num(0.0).argmax())
        shares = occupancy.shares[:, worst]
        yield (
            f"chains disagree on the weight of mode {worst}: {shares.min():.2f} to "
            f"{shares.max():.2f} of their draws are there (R-hat "
            f"{_number(run.occupancy_rhat[worst])}): raise n_steps, or temper"
        )


def _bfmi(run: Findings) -> Iterator[str]:
    values = run.chains.get("bfmi")
    if values is not None and (values < MIN_BFMI).any():
        low = values < MIN_BFMI
        yield (
            f"BFMI is below {MIN_BFMI} in {int(low.sum())} of {run.n_chains} chains (least "
            f"{values[low].min():.2f}): momenta change the energy too slowly for the tails; change "
            "variables (a non-centred form), or give a mass"
        )


def _tree_depth(run: Findings) -> Iterator[str]:
    share = run.chains.get("saturated")
    if share is not None and share.mean() > SATURATED:
        yield (
            f"{share.mean():.0%} of trees reached depth {run.max_tree_depth}: trajectories were "
            "cut short; raise step_size, give a mass that fits the scales, or raise max_tree_depth"
        )


def _of_elements(run: Findings, where: Tensor, names: bool = True) -> str:
    """``3 of 25 elements (x[0], x[4], …)``."""
    count = f"{int(where.sum())} of {len(where)} element{'s' if len(where) > 1 else ''}"
    if not names:
        return count
    chosen = [run.index[i] for i in where.nonzero().flatten()[:3].tolist()]
    return f"{count} ({', '.join(chosen)}{', …' if where.sum() > 3 else ''})"


def _worst(run: Findings, values: Tensor) -> str:
    return run.index[int(values.nan_to_num(-torch.inf, posinf=torch.inf).argmax())]


def _least(values: Tensor) -> float:
    return values.nan_to_num(torch.inf).min().item()


def _number(value: Tensor) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.2g}"
