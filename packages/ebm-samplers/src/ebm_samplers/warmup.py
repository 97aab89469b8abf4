"""Warm-up: settings of a sampler learned by its own chains, pooled over all of them.

`warm_up` runs a sampler in launches of many transitions at fixed settings, and changes the settings
between launches: the step size by dual averaging on the pooled acceptance rate, the mass from the
pooled covariance of windows of draws that double in length (as Stan's do), the trajectory length by
the ChEES criterion. `ebm_samplers.warming` has the rules. Any `MarkovSampler` can be warmed up
whose transitions report an ``acceptance_rate``; what it has of ``mass`` and ``n_leapfrog_steps`` is
learned too.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor

from ebm_core import ConfigurationError, draw_key
from ebm_core.validation import check_choice, check_integer, check_number
from ebm_samplers.arguments import checked_states
from ebm_samplers.hamiltonian import HamiltonianMonteCarlo
from ebm_samplers.langevin import MALA, LangevinDynamics
from ebm_samplers.learned import MassKind, largest_scale
from ebm_samplers.mass import mass_for
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.underdamped import UnderdampedLangevin
from ebm_samplers.warming import Launch, Warming, configured

UNADJUSTED_TARGET = 0.9
"""Acceptance that the adjusted counterpart of an unadjusted sampler has at its step size."""
SETTINGS = ("step_size", "mass", "n_leapfrog_steps", "friction")


@dataclass(frozen=True, eq=False)
class WarmUp:
    """What a warm-up has learned.

    Attributes:
        sampler: A copy of the sampler with the learned settings, which stay (but for one with a
            ``target_acceptance``, whose ``sample_chain`` and ``burn_in`` go on adapting).
        x: The chains' last states, ``(chain, *event)``: where to go on.
        step_size: h.
        mass: As in `HamiltonianMonteCarlo`; None where the sampler has none, or it is I.
        n_leapfrog_steps: Mean number of leapfrogs; None where the sampler has none.
        friction: Of `UnderdampedLangevin`; else None.
        target_acceptance: The acceptance rate that was aimed at in the end.
        acceptance_rate: Mean over chains in the last launches, close to the target if all went
            well. For unadjusted samplers that of the adjusted one by which they were measured.
        n_gradients: Gradients of single states that it took, of all chains together.
        history: The launches, in their order.
    """

    sampler: MarkovSampler
    x: Tensor
    step_size: float
    mass: Tensor | None
    n_leapfrog_steps: int | None
    friction: float | None
    target_acceptance: float
    acceptance_rate: float
    n_gradients: int
    history: tuple[Launch, ...]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the sampler, in tensors and numbers.

        ``torch.load(..., weights_only=True)`` reads what ``torch.save`` wrote of it.
        """
        return {
            "kind": type(self.sampler).__name__,
            "x": self.x,
            **{name: getattr(self, name) for name in SETTINGS},
            "target_acceptance": self.target_acceptance,
            "acceptance_rate": self.acceptance_rate,
            "n_gradients": self.n_gradients,
            "history": [asdict(launch) for launch in self.history],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], sampler: MarkovSampler) -> "WarmUp":
        """A stored warm-up, for another sampler of its kind.

        Args:
            state: What `state_dict` gave.
            sampler: Of the same kind, on the same energy (or one much like it); stays as it is.

        Raises:
            ConfigurationError: If it is the state of something else.
            ShapeError: If the mass does not fit the sampler's energy.

        Example:
            >>> import torch
            >>> sampler = MALA(lambda x: x.square().sum(1) / 2)
            >>> warm = warm_up(sampler, torch.zeros(20, 3), n_steps=100, seed=0)
            >>> again = WarmUp.from_state_dict(warm.state_dict(), sampler)
            >>> again.sampler.step_size == warm.step_size
            True
        """
        rates = {"target_acceptance", "acceptance_rate"}
        names = {"kind", "x", *SETTINGS, *rates, "n_gradients", "history"}
        if not isinstance(state, Mapping):
            state = {}
        if set(state) != names or state["kind"] != type(sampler).__name__:
            kind = state.get("kind", "something else")
            raise ConfigurationError(
                f"the state is that of {kind}",
                f"that of a warm-up of {type(sampler).__name__}",
                "pass what WarmUp.state_dict gave, and a sampler of the same kind",
            )
        settings = {name: state[name] for name in SETTINGS}
        if settings["mass"] is not None:
            mass_for(settings["mass"], state["x"])
        return cls(
            sampler=configured(sampler, settings),
            x=state["x"],
            **settings,
            **{name: state[name] for name in rates},
            n_gradients=state["n_gradients"],
            history=tuple(Launch(**launch) for launch in state["history"]),
        )


def warm_up(
    sampler: MarkovSampler,
    x_init: Tensor,
    n_steps: int = 500,
    seed: int | None = 0,
    *,
    target_acceptance: float | None = None,
    mass: MassKind | None = "auto",
) -> WarmUp:
    """Learn a sampler's settings from its chains.

    The step size is learned for every sampler, the mass and the number of leapfrogs where it has
    them. Many chains are pooled: 64 chains know covariances after a few dozen transitions. A
    single chain is pooled over time; fewer than 8 take trajectories of half a turn, since their
    jumps are too few to learn a length from. Draws of a warm-up are no draws of the target: chains
    move while settings change.

    `LangevinDynamics` and `UnderdampedLangevin` accept everything. They get the step size at which
    their adjusted counterparts (`MALA`, Hamiltonian Monte Carlo) accept 90 % of the proposals,
    and the friction 1/σ with σ the largest standard deviation of any direction.

    Args:
        sampler: Any `MarkovSampler` with an accept test, or one of those two. Stays as it is;
            its step size is where the search begins.
        x_init: Start states, ``(chain, *event)``; not modified.
        n_steps: Transitions of each chain, at least 20; beside them, some single transitions find
            the order of magnitude of the step size.
        seed: Key of the random stream: equal seeds, equal warm-ups. None draws one from torch.
        target_acceptance: In (0, 1). None for the sampler's own, or else the usual one of its kind
            (`MarkovSampler.usual_acceptance`), which is raised, up to 0.99, while more than one
            transition in a thousand diverges.
        mass: "diagonal", "dense", or "auto": dense where there are draws enough, 200 elements at
            most, and elements are correlated. None keeps the sampler's.

    Returns:
        The sampler with learned settings, the chains' states, and how it went.

    Raises:
        ConfigurationError: If there is nothing to adapt: no accept test, or a schedule for a step
            size; or if arguments make no sense.
        ShapeError: If ``x_init`` is no batch of states with one chain axis.
        NumericalError: If start states are not finite, energies too large for accept tests, or no
            step size leads to an acceptance rate between 0 and 1.

    Example:
        >>> import torch
        >>> from ebm_samplers import HamiltonianMonteCarlo, warm_up
        >>> scales = torch.tensor([0.01, 1.0, 100.0])
        >>> sampler = HamiltonianMonteCarlo(lambda x: (x / scales).square().sum(1) / 2)
        >>> warm = warm_up(sampler, torch.randn(64, 3), n_steps=300, seed=0)
        >>> (warm.mass.rsqrt() / scales).round()
        tensor([1., 1., 1.])
        >>> result = warm.sampler.sample(warm.x, n_steps=100, seed=1)
    """
    if not isinstance(sampler, MarkovSampler):
        raise ConfigurationError(
            f"sampler is {sampler!r}",
            "a MarkovSampler",
            "construct one, as in NUTS(energy), or let sample(energy) choose",
        )
    x = checked_states(sampler.energy, x_init)
    n_steps = check_integer("n_steps", n_steps, at_least=20)
    key = draw_key(seed)
    if mass is not None:
        check_choice("mass", mass, ("auto", "diagonal", "dense"))
    if callable(sampler.step_size):
        raise ConfigurationError(
            "step_size is a schedule", "a number", "construct the sampler with a first step size"
        )
    target = target_acceptance
    if target is None and sampler.adaptation is not None:
        target = sampler.adaptation.target
    measured, rises = _measured_by(sampler), target is None
    if target is None:
        target = measured.usual_acceptance if measured is sampler else UNADJUSTED_TARGET
    check_number("target_acceptance", target, above=0, below=1)
    run = Warming(measured, x, key, target, rises, None if measured is not sampler else mass)
    run.all(n_steps)
    settings: dict[str, Any] = dict.fromkeys(SETTINGS) | {"step_size": run.step_size}
    if measured is sampler:
        settings |= {"mass": run.mass, "n_leapfrog_steps": run.length}
    if isinstance(sampler, LangevinDynamics):
        settings["step_size"] /= cast(float, sampler.noise_scale) ** 2
    if isinstance(sampler, UnderdampedLangevin):
        settings["friction"] = 1 / largest_scale(run.window())
    return WarmUp(
        sampler=configured(sampler, settings),
        x=run.x,
        **settings,
        target_acceptance=run.target,
        acceptance_rate=run.acceptance_rate,
        n_gradients=run.n_gradients,
        history=tuple(run.history),
    )


def _measured_by(sampler: MarkovSampler) -> MarkovSampler:
    """The sampler whose acceptance rate tells how large steps may be."""
    engine, step_size = sampler.engine, cast(float, sampler.step_size)
    if isinstance(sampler, LangevinDynamics):
        scale = sampler.noise_scale
        if callable(scale) or scale == 0:
            raise ConfigurationError(
                f"noise_scale is {'a schedule' if callable(scale) else 0}",
                "a positive number",
                "warm up a sampler of a single temperature",
            )
        energy = sampler.energy if scale == 1 else sampler.energy.tempered(scale**2)
        return MALA(energy, step_size * scale**2, engine=engine)
    if isinstance(sampler, UnderdampedLangevin):
        return HamiltonianMonteCarlo(sampler.energy, step_size, engine=engine)
    if not sampler.adjusted or "acceptance_rate" not in sampler.statistics:
        raise ConfigurationError(
            f"{type(sampler).__name__} has no accept test, and no setting to adapt",
            "a sampler whose transitions report an acceptance_rate",
            "choose its settings by hand, or warm up its adjusted counterpart (MALA)",
        )
    return sampler
