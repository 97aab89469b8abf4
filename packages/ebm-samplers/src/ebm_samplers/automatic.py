"""`sample`: from an energy to draws, with nothing to set.

It finds starts (`ebm_samplers.starts`), warms a sampler up (`ebm_samplers.warmup`), samples, and
checks what came out (`ebm_samplers.checks`). Where a check fails that more effort can mend, it goes
on from where chains stand: with smaller steps after divergences, with longer intervals between
draws where chains have not mixed. What cannot be mended is told in the result's ``warnings``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from ebm_core import EnergyFunction, SampleResult, as_energy, draw_key, require_continuous
from ebm_core.energy import EnergyLike
from ebm_core.validation import check_choice, check_integer
from ebm_samplers.arguments import checked_states, empty_states, refuse
from ebm_samplers.checks import CONFINED, ESS, RHAT, Checks, check
from ebm_samplers.hamiltonian import HamiltonianMonteCarlo
from ebm_samplers.nuts import NUTS
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.starts import find_starts, inside, require_repeatable
from ebm_samplers.warming import raised
from ebm_samplers.warmup import WarmUp, warm_up

LOCKSTEP = 16
"""Chains from which on Hamiltonian Monte Carlo is taken: they fill the lanes of its kernel."""
WARM_UP = 500
"""Transitions of a warm-up."""
ROUNDS = 4
"""Times that chains are run, at most."""
LONGEST_THIN = 32
"""Transitions for each draw, at most."""
MARGIN = 1.5
"""More transitions than an extrapolation asks for."""


@dataclass(frozen=True)
class _Effort:
    """How hard to try.

    Attributes:
        target: Acceptance rate; None to leave it to the warm-up.
        thin: Transitions for each draw.
    """

    target: float | None = None
    thin: int = 1

    def more(self, checks: Checks, reached: float, gains: bool) -> "_Effort":
        """What might mend what is wrong; the same effort if nothing would.

        Args:
            checks: What is wrong.
            reached: The acceptance rate that steps were made for.
            gains: Whether smaller steps are untried, or have halved the number of divergences.
        """
        figures = checks.figures
        if figures.get("n_groups", 1) > 1 or figures.get("confinement", 1.0) < CONFINED:
            return self
        target, thin = self.target, self.thin
        if figures["n_stuck"] or any("divergence" in warning for warning in checks.warnings):
            if not gains or raised(reached) == reached:
                return self
            target = raised(reached)
        rhat, ess = figures["rhat"], figures["ess_bulk"]
        ess = min(ess, figures["ess_tail"])
        # R-hat² - 1 and the error of an ESS fall with the number of transitions.
        wanted = max((rhat**2 - 1) / (RHAT**2 - 1), ESS / max(ess, 1.0))
        if wanted > 1 and MARGIN * wanted * thin <= LONGEST_THIN:
            thin = math.ceil(MARGIN * wanted * thin)
        return _Effort(target, thin)


def sample(
    energy: EnergyLike,
    n_chains: int = 64,
    n_samples: int = 1000,
    dim: int | tuple[int, ...] | None = None,
    seed: int | None = 0,
    *,
    x_init: Tensor | None = None,
    method: Literal["auto", "hmc", "nuts"] = "auto",
) -> SampleResult:
    """Draws from exp(-E), with a method, starts, settings and checks of its own choosing.

    From 16 chains on the method is Hamiltonian Monte Carlo, whose chains go in step and fill the
    lanes of a kernel, with lengths by the ChEES criterion; for fewer chains NUTS, where each finds
    its lengths. Either learns step size and mass in `warm_up`. Chains start from N(0, I), taken
    downhill where that is far from the target; what is not finite or outside the support is drawn
    again.

    Nothing fails in silence: ``result.warnings`` has a sentence for each check that failed
    (divergences, chains that stood still or sit in separate modes, R-hat of 1.01 or more, effective
    sample sizes below 400, low acceptance, energies explored slowly), and they are part of the
    result's ``repr``. Before that, runs are repeated up to three times with more effort: smaller
    steps after divergences, up to 32 transitions for each draw where chains mix slowly. Python's
    own ``warnings`` are not used.

    Args:
        energy: An `EnergyFunction` or any callable ``(chain, *event) -> (chain,)``, on continuous
            states; a network too.
        n_chains: Number of chains. With few, R-hat says less: modes that no chain has met go
            unnoticed.
        n_samples: Draws of each chain.
        dim: Number of elements (or shape) of a state, where the energy has no ``event_shape``.
        seed: Key of the random stream: equal arguments, equal draws. None draws one from torch.
        x_init: Start states ``(chain, *event)``, in place of ``n_chains`` and ``dim``.
        method: "hmc" or "nuts" to insist on one.

    Returns:
        ``trajectory`` ``(n_chains, n_samples, *event)``, the sampler's statistics, ``warnings``,
        and ``report``: ``method``; ``starts`` (how many were drawn again, or moved; gradients);
        ``rounds`` (of each: target acceptance, transitions for each draw, the checks' figures and
        warnings);
        ``checks`` (the last figures: ``rhat``, ``ess_bulk``, …); ``warm_up``, the last one's
        state_dict, from which `WarmUp.from_state_dict` makes the sampler again; ``n_gradients`` of
        single states in all.

    Raises:
        ConfigurationError: If the number of elements is unknown, or arguments make no sense.
        SupportError: If the energy is defined on discrete states.
        ConfigurationError: If the energy is random: it gives other values for the same states.
        NumericalError: If no finite starts are found, energies are too large for accept tests, or
            no step size fits (as where exp(-E) cannot be normalised).

    Example:
        >>> import torch
        >>> from ebm_samplers import sample
        >>> scales = torch.tensor([0.1, 1.0, 10.0])
        >>> result = sample(lambda x: (x / scales).square().sum(1) / 2, dim=3, n_samples=400)
        >>> result.trajectory.shape, result.warnings
        (torch.Size([64, 400, 3]), ())
    """
    energy = as_energy(energy)
    require_continuous(energy.support, "sample")
    n_samples = check_integer("n_samples", n_samples, at_least=1)
    check_choice("method", method, ("auto", "hmc", "nuts"))
    key = draw_key(seed)
    if x_init is None:
        n_chains = check_integer("n_chains", n_chains, at_least=1)
        starts = find_starts(energy, empty_states(energy, n_chains, dim), key)
        x, n_gradients = starts.x, starts.n_gradients
        started = {
            "n_redrawn": starts.n_redrawn,
            "n_moved": starts.n_moved,
            "n_gradients": n_gradients,
        }
    else:
        refuse("x_init", {"dim": dim, "n_chains": None if n_chains == 64 else n_chains})
        x, n_gradients, started = checked_states(energy, x_init), 0, {}
    require_repeatable(energy, x)
    if method == "auto":
        method = "hmc" if len(x) >= LOCKSTEP else "nuts"
    sampler: MarkovSampler = HamiltonianMonteCarlo(energy) if method == "hmc" else NUTS(energy)
    effort = _Effort()
    rounds: list[dict[str, Any]] = []
    diverging: dict[float, float] = {}  # part of the transitions, by target acceptance
    warm: WarmUp | None = None
    for i in range(ROUNDS):
        if warm is None or effort.target not in (None, warm.target_acceptance):
            keyed = _key(key, 2 * i + 1)
            warm = warm_up(sampler, x, WARM_UP, keyed, target_acceptance=effort.target)
            sampler, x = warm.sampler, warm.x
            n_gradients += warm.n_gradients
        result = sampler.sample(
            x,
            n_steps=n_samples * effort.thin,
            thin=effort.thin,
            keep="trajectory",
            seed=_key(key, 2 * i),
        )
        n_gradients += int(result.stats["n_steps"].sum())
        checks, reached = _checked(result, sampler), warm.target_acceptance
        rounds.append(_round(reached, effort.thin, checks))
        x = result.final
        if not checks.warnings or n_samples < 4:
            break
        part = checks.figures["n_diverging"] / (len(x) * n_samples)
        diverging[reached] = n = of_transitions(part, effort.thin)
        before = min((n for t, n in diverging.items() if t < reached), default=math.inf)
        harder = effort.more(checks, reached, n < before / 2)
        if harder == effort:
            break
        effort = harder
    assert warm is not None
    return replace(
        result,
        seed=key,
        warnings=(*outside(energy, result), *checks.warnings),
        report=_report(warm, rounds, started, n_gradients),
    )


def of_transitions(part: float, thin: int) -> float:
    """The part of the transitions that diverge, from that of draws with one among ``thin``.

    Example:
        >>> of_transitions(0.75, thin=2)
        0.5
    """
    return float(1 - (1 - part) ** (1 / thin))


def outside(energy: EnergyFunction, result: SampleResult) -> tuple[str, ...]:
    """A sentence if draws are outside the energy's support."""
    assert result.trajectory is not None
    n = int((~inside(energy, result.trajectory.flatten(0, 1))).sum())
    if not n:
        return ()
    of = result.n_chains * result.n_draws
    what = f"{n} of {of} draws are outside the support that the energy declares"
    return (f"{what}: make it infinite there, or write it in unbounded coordinates",)


def _checked(result: SampleResult, sampler: MarkovSampler) -> Checks:
    assert result.trajectory is not None
    if result.n_draws < 4:
        return Checks(warnings=(f"{result.n_draws} draws a chain are too few for any check",))
    return check(result, getattr(sampler, "max_tree_depth", None))


def _round(target: float, thin: int, checks: Checks) -> dict[str, Any]:
    return {
        "target_acceptance": target,
        "thin": thin,
        "checks": dict(checks.figures),
        "warnings": list(checks.warnings),
    }


def _report(
    warm: WarmUp, rounds: list[dict[str, Any]], started: Mapping[str, int], n_gradients: int
) -> dict[str, Any]:
    return {
        "method": type(warm.sampler).__name__,
        "starts": dict(started),
        "rounds": rounds,
        "checks": rounds[-1]["checks"],
        "warm_up": warm.state_dict(),
        "n_gradients": n_gradients,
    }


def _key(key: int, i: int) -> int:
    """The i-th key of a run: far from those of other seeds."""
    return (key + i * 0x9E3779B97F4A7C15) % 2**64
