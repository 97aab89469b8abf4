"""What a run of chains says against itself.

`check` looks at a result with a trajectory and gives figures and warnings. R-hat and effective
sample sizes are arviz-stats' (Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021), of the energy
and of elements of the state: of all where there are few, else of those whose plain split R-hat, or
that of their distance from the median, is largest. ebm-utils has the whole set of diagnostics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ebm_core import SampleResult

RHAT = 1.01
ESS = 400
LOW_ACCEPTANCE = 0.4
"""Of the mean over all chains."""
DIVERGING = 1e-3
"""Part of the draws that may end in a divergence: so few move averages by less than their error."""
STOOD_STILL = 0.05
"""Part of a run for which no chain should stay where it is."""
BFMI = 0.3
SATURATED = 0.01
"""Part of trees that may reach the largest depth."""
APART = 3.0
"""Distance between groups of chains, in standard deviations within chains, that tells modes."""
CONFINED = 0.5
"""Standard deviation within a chain over that of all draws, below which chains keep apart."""
ENOUGH_CHAINS = 4
"""Chains from which on it is likely that modes of similar weight have chains."""
EXAMINED = 16
"""Elements whose ranks are looked at, of states with more."""


@dataclass(frozen=True)
class Checks:
    """Figures and warnings.

    Attributes:
        figures: ``rhat`` (the largest), ``ess_bulk``, ``ess_tail`` (the smallest),
            ``acceptance_rate``, ``n_diverging``, ``n_stuck`` (chains that stood still), ``bfmi``
            (the lowest), ``n_groups`` of chains far from each other, ``confinement`` (the smallest
            ratio of the typical standard deviation within a chain to that of all draws); what there
            is.
        warnings: A sentence for each thing that is wrong.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def check(result: SampleResult, max_tree_depth: int | None = None) -> Checks:
    """Look for what is wrong with a result that kept its trajectory.

    Args:
        result: With draws, of finite numbers; at least four a chain.
        max_tree_depth: Of the sampler, if it has one.
    """
    assert result.trajectory is not None
    n_chains, n_draws = result.trajectory.shape[:2]
    flat = result.trajectory.reshape(n_chains, n_draws, -1).double()
    figures: dict[str, float] = {}
    found: list[str] = []
    _movement(result, flat, figures, found)
    _trees(result, max_tree_depth, figures, found)
    _agreement(result, flat, figures, found)
    if n_chains < ENOUGH_CHAINS:
        found.append(
            f"{n_chains} chain{'s' * (n_chains > 1)} cannot tell that there are modes elsewhere: "
            f"take {ENOUGH_CHAINS} or more"
        )
    return Checks(figures, tuple(found))


def _movement(
    result: SampleResult, flat: Tensor, figures: dict[str, float], found: list[str]
) -> None:
    n_chains, n_draws = flat.shape[:2]
    rate = result.stats.get("acceptance_rate")
    if rate is not None:
        figures["acceptance_rate"] = mean = rate.double().mean().item()
        if mean < LOW_ACCEPTANCE:
            found.append(f"{mean:.0%} of the proposals were accepted: lower step_size")
    diverging = result.stats.get("diverging")
    if diverging is not None:
        figures["n_diverging"] = n = int(diverging.sum())
        if n > DIVERGING * n_chains * n_draws:
            chains = int(diverging.any(1).sum())
            found.append(
                f"{n} of {n_chains * n_draws} draws ended in a divergence, in {chains} of "
                f"{n_chains} chains: regions of high curvature, or beyond an edge, are missed; "
                "write the energy in other coordinates, or take smaller steps (target_acceptance "
                "of warm_up)"
            )
    longest = _longest_stay(flat)
    stuck = longest > max(3, STOOD_STILL * n_draws)
    figures["n_stuck"] = n = int(stuck.sum())
    if n:
        never = int((longest >= n_draws - 1).sum())
        what = (
            f"{never} of {n_chains} chains never moved"
            if never
            else (
                f"{n} of {n_chains} chains stood still for more than {STOOD_STILL:.0%} of the run"
            )
        )
        found.append(f"{what}: steps are too large there (see target_acceptance of warm_up)")


def _longest_stay(flat: Tensor) -> Tensor:
    """The largest number of successive transitions that did not move a chain, ``(chain,)``."""
    still = (flat[:, 1:] == flat[:, :-1]).all(2)
    count = still.long().cumsum(1)
    at_moves = torch.where(still, 0, count).cummax(1).values
    return (count - at_moves).amax(1) if still.shape[1] else count.new_zeros(len(flat))


def _trees(
    result: SampleResult, max_depth: int | None, figures: dict[str, float], found: list[str]
) -> None:
    depth = result.stats.get("tree_depth")
    if depth is not None and max_depth is not None:
        part = (depth >= max_depth).double().mean().item()
        if part > SATURATED:
            found.append(
                f"{part:.0%} of the trees reached depth {max_depth}: scales are too far apart; "
                "write the energy in other coordinates, or raise max_tree_depth of NUTS"
            )
    energy = result.stats.get("energy")
    if energy is not None and energy.shape[1] > 1:
        values = energy.double()
        jumps = values.diff(dim=1).square().mean(1)
        bfmi = jumps / values.var(1).clamp(min=1e-300)
        figures["bfmi"] = bfmi.min().item()
        pooled = (jumps.mean() / values.var(1).mean().clamp(min=1e-300)).item()
        n = int((bfmi < BFMI).sum())
        if pooled < BFMI or n > len(bfmi) / 10:
            found.append(
                f"E-BFMI is below {BFMI} in {n} of {len(bfmi)} chains: energies are explored "
                "slowly, as in a funnel; write the energy in other coordinates"
            )


def _agreement(
    result: SampleResult, flat: Tensor, figures: dict[str, float], found: list[str]
) -> None:
    """R-hat and effective sample sizes, and groups of chains."""
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    n_chains, n_draws, d = flat.shape
    halves = flat[:, : n_draws // 2 * 2].reshape(2 * n_chains, n_draws // 2, d)
    spread = (halves - halves.flatten(0, 1).median(0).values).abs()
    plain = torch.maximum(_split_rhat(halves), _split_rhat(spread))
    if d > EXAMINED:
        worst = plain.nan_to_num(nan=torch.inf).topk(EXAMINED).indices
    else:
        worst = torch.arange(d, device=flat.device)
    columns = {f"element {i}": flat[:, :, i] for i in worst.tolist()}
    potential = result.potential.double()
    if not bool((potential == potential[0, 0]).all()):  # as in a box, where nothing is wrong
        columns["the energy"] = potential
    rhats: dict[str, float] = {}
    sizes: dict[str, list[float]] = {"bulk": [], "tail": []}
    statistics: Any = array_stats  # whose methods have no annotations
    for name, values in columns.items():
        if bool((values == values[0, 0]).all()):
            rhats[name] = torch.inf
            continue
        array = values.cpu().numpy()
        if n_chains == 1:
            array = array[:, : n_draws // 2 * 2].reshape(2, -1)
        axes = {"chain_axis": 0, "draw_axis": 1}
        rhats[name] = float(statistics.rhat(array, method="rank", **axes))
        for kind, prob in (("bulk", None), ("tail", (0.05, 0.95))):
            size = statistics.ess(array, method=kind, prob=prob, **axes)
            sizes[kind].append(float(size))
    name, rhat = max(rhats.items(), key=lambda item: item[1])
    figures["rhat"] = rhat
    if not rhat < RHAT:
        found.append(
            f"R-hat is {rhat:.3f} ({name}), above {RHAT}: chains have not mixed; run longer, and "
            "do not trust averages yet"
        )
    for kind, of_columns in sizes.items():
        figures[f"ess_{kind}"] = size = min(of_columns, default=0.0)
        if not size >= ESS:
            found.append(f"{kind} ESS is {size:.0f}, below {ESS}: run longer")
    moving = _longest_stay(flat) <= max(3, STOOD_STILL * n_draws)
    if moving.sum() > 1:
        _apart(flat[moving][:, :, worst], figures, found)


def _split_rhat(values: Tensor) -> Tensor:
    """Plain R-hat of ``(chain, draw, d)``, chains cut in halves before: ``(d,)``."""
    within = values.var(1).mean(0)
    between = values.mean(1).var(0)
    return ((between + within) / within).sqrt()


def _apart(flat: Tensor, figures: dict[str, float], found: list[str]) -> None:
    """Whether chains ``(chain, draw, d)`` keep to regions of their own."""
    centres = flat.mean(1).sort(0).values
    within = flat.var(1).median(0).values.sqrt()
    gaps = centres.diff(dim=0) > APART * within
    figures["n_groups"] = groups = 1 + int(gaps.sum(0).amax())
    figures["confinement"] = ratio = (within / flat.flatten(0, 1).var(0).sqrt()).min().item()
    if groups > 1:
        found.append(
            f"chains are in {groups} groups far apart: separate modes, which they seldom leave, so "
            "that the weights of modes are those of the starts; temper the energy"
        )
    elif ratio < CONFINED:
        found.append(
            "chains keep to regions of their own: separate modes, heavy tails, or a funnel, in "
            "which they hardly move; temper the energy, or write it in other coordinates"
        )
