"""Warm-up: settings of a sampler learned by its own chains, pooled over all of them.

`warm_up` runs a sampler in launches of many transitions at fixed settings, and changes the settings
between launches: the step size by dual averaging on the pooled acceptance rate, the mass from the
pooled covariance of windows of draws that double in length (as Stan's do), the trajectory length by
the ChEES criterion. Launches are few, some dozens, since what they cost on the fused engine is the
call. Any `MarkovSampler` can be warmed up whose transitions report an ``acceptance_rate``; what it
has of ``mass`` and ``n_leapfrog_steps`` is learned too.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ebm_core import ConfigurationError, NumericalError, SampleResult, draw_key
from ebm_core.validation import check_choice, check_integer, check_number
from ebm_samplers.arguments import checked_states
from ebm_samplers.dual_averaging import DualAveraging
from ebm_samplers.hamiltonian import HamiltonianMonteCarlo
from ebm_samplers.langevin import MALA, LangevinDynamics
from ebm_samplers.learned import MassKind, chees, largest_scale, learned_mass
from ebm_samplers.mass import mass_for
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.schedules import Setting
from ebm_samplers.underdamped import UnderdampedLangevin

UNADJUSTED_TARGET = 0.9
"""Acceptance that the adjusted counterpart of an unadjusted sampler has at its step size."""
FIRST, LAST, SHORTEST = 0.15, 0.1, 25
"""Parts of all transitions before the first window and after the last; the first window."""
LAUNCHES = 6
"""For the step size, between two changes of the mass; twice as many at the end."""
DOUBLINGS = 60
"""Of a first step size, before it is given up."""
HELD = 2**24
"""Numbers of a launch that are held for the mass, at most: of more, draws are left out."""
LONGEST = 1024
"""Leapfrogs of a trajectory at most."""
TURN = 1.5
"""Length in time of the first trajectories once the mass is known: about π/2, a quarter turn."""

SETTINGS = ("step_size", "mass", "n_leapfrog_steps", "friction")


@dataclass(frozen=True)
class Launch:
    """Transitions at fixed settings.

    Attributes:
        phase: What they were for: ``"search"`` (of a first step size), ``"step size"``,
            ``"length"``, or ``"final"``.
        n_steps: Number of transitions of each chain.
        step_size: h.
        n_leapfrog_steps: Mean number of leapfrogs, where the sampler has one.
        acceptance_rate: Mean over chains and transitions.
    """

    phase: str
    n_steps: int
    step_size: float
    n_leapfrog_steps: int | None
    acceptance_rate: float


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
            >>> sampler = MALA(lambda x: x.square().sum(1) / 2)
            >>> warm = warm_up(sampler, torch.zeros(20, 3), n_steps=100, seed=0)
            >>> again = WarmUp.from_state_dict(warm.state_dict(), sampler)
            >>> again.sampler.step_size == warm.step_size
            True
        """
        names = {"kind", "x", *SETTINGS, "acceptance_rate", "n_gradients", "history"}
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
        configured = _configured(sampler, settings)
        if settings["mass"] is not None:
            mass_for(settings["mass"], state["x"])
        return cls(
            sampler=configured,
            x=state["x"],
            **settings,
            acceptance_rate=state["acceptance_rate"],
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
    single chain is pooled over time. Draws of a warm-up are no draws of the target: chains move
    while settings change.

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
            (`MarkovSampler.usual_acceptance`).
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
    measured = _measured_by(sampler)
    if target is None:
        target = measured.usual_acceptance if measured is sampler else UNADJUSTED_TARGET
    check_number("target_acceptance", target, above=0, below=1)
    run = _Run(measured, x, key, target, None if measured is not sampler else mass)
    run.all(n_steps)
    settings: dict[str, Any] = dict.fromkeys(SETTINGS) | {"step_size": run.step_size}
    if measured is sampler:
        settings |= {"mass": run.mass, "n_leapfrog_steps": run.length}
    if isinstance(sampler, LangevinDynamics):
        settings["step_size"] /= cast(float, sampler.noise_scale) ** 2
    if isinstance(sampler, UnderdampedLangevin):
        settings["friction"] = 1 / largest_scale(run.window())
    return WarmUp(
        sampler=_configured(sampler, settings),
        x=run.x,
        **settings,
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


def _configured(sampler: MarkovSampler, settings: Mapping[str, Any]) -> MarkovSampler:
    """A copy of a sampler with other settings; None leaves one as it is."""
    copied = copy.copy(sampler)
    copied.settings = dict(sampler.settings)
    copied._key, copied._counter = None, 0  # a random stream of its own
    for name, value in settings.items():
        if value is not None:
            setattr(copied, name, value)
    return copied


class _Run:
    """A warm-up under way.

    Attributes:
        x: Present states.
        n_gradients: So far.
        history: Launches so far.
        acceptance_rate: In the last phase.
    """

    def __init__(
        self, sampler: MarkovSampler, x: Tensor, key: int, target: float, mass: MassKind | None
    ) -> None:
        self.sampler = _configured(sampler, {})
        self.sampler.settings["step_size"] = Setting("step_size", sampler.step_size)
        self.sampler.adaptation, self.sampler._adapted_step_size = None, None
        self.x, self.key, self.target = x, key, target
        self.mass_kind: MassKind | None = mass if hasattr(sampler, "mass") else None
        self.n_gradients, self.acceptance_rate = 0, math.nan
        self.history: list[Launch] = []
        self._resume: Mapping[str, Any] | None = None
        self._draws: list[Tensor] = []
        self._time: float | None = None

    @property
    def step_size(self) -> float:
        """h."""
        return cast(float, self.sampler.step_size)

    @property
    def mass(self) -> Tensor | None:
        """The present mass."""
        return getattr(self.sampler, "mass", None)

    @property
    def length(self) -> int | None:
        """The present number of leapfrogs."""
        return getattr(self.sampler, "n_leapfrog_steps", None)

    def window(self) -> Tensor:
        """The draws since the mass has changed, ``(chain, draw, *event)``."""
        return torch.cat(self._draws, 1)

    def all(self, n_steps: int) -> None:
        """Everything, in ``n_steps`` transitions beside the search for a first step size."""
        first, last = math.ceil(FIRST * n_steps), max(5, math.ceil(LAST * n_steps))
        self.search()
        self.settle(first)
        for n in windows(n_steps - first - last):
            self._draws = []
            self.settle(n)
            if self.mass_kind is not None:
                self._change_mass(self.mass_kind)
        self.find_step_size(last, "final", 2 * LAUNCHES)

    def settle(self, n: int) -> None:
        """Step size, then length, in ``n`` transitions."""
        if self.length is None:
            self.find_step_size(n)
            return
        half = math.ceil(n / 2)
        self.find_step_size(half)
        self.find_length(n - half)

    def launch(self, phase: str, n: int) -> SampleResult:
        """Make ``n`` transitions."""
        how: dict[str, Any] = {"n_steps": n, "keep": "trajectory", "progress": False}
        if self._resume is None:
            result = self.sampler.sample(self.x, seed=self.key, **how)
        else:
            result = self.sampler.sample(resume=self._resume, **how)
        assert result.trajectory is not None
        self._resume, self.x = result.resume, result.final
        thin = math.ceil(result.trajectory.numel() / HELD)
        self._draws.append(result.trajectory[:, thin - 1 :: thin])
        rate = result.stats["acceptance_rate"].double().mean().item()
        steps = result.stats.get("n_steps")
        self.n_gradients += len(self.x) * n if steps is None else int(steps.sum())
        self.history.append(Launch(phase, n, self.step_size, self.length, rate))
        return result

    def rate(self, phase: str, n: int) -> float:
        """Acceptance rate of ``n`` transitions."""
        self.launch(phase, n)
        return self.history[-1].acceptance_rate

    def search(self) -> None:
        """The largest step size, of those by factors of two, of which more than half are accepted.

        Trajectories are single leapfrogs here, for which a step far too small costs little.
        """
        with self._short():
            larger = self.rate("search", 1) > 0.5
            for _ in range(DOUBLINGS):
                self.sampler.step_size = self.step_size * (2.0 if larger else 0.5)
                if (self.rate("search", 1) > 0.5) != larger:
                    self.sampler.step_size = self.step_size / (2.0 if larger else 1.0)
                    return
        raise NumericalError(
            f"with step_size {self.step_size:.3g} proposals are still "
            f"{'accepted' if larger else 'rejected'}",
            "an energy for which acceptance falls as steps grow, and rises as they shrink",
            "check that exp(-E) can be normalised" if larger else "check gradients and x_init",
        )

    def find_step_size(self, n: int, phase: str = "step size", n_launches: int = LAUNCHES) -> None:
        """Dual averaging in ``n`` transitions; the average is kept."""
        rule = DualAveraging(self.target, self.step_size)
        sizes = pieces(n, n_launches)
        rates = []
        for size in sizes:
            rates.append(self.rate(phase, size))
            self._step(rule.update(rates[-1]))
        self._step(rule.averaged)
        late = list(zip(sizes, rates, strict=True))[len(rates) // 2 :]
        self.acceptance_rate = sum(n * rate for n, rate in late) / sum(n for n, _ in late)

    def find_length(self, n: int) -> None:
        """The number of leapfrogs L with the largest ChEES/√L, by doubling or halving.

        Ends where neither twice nor half as many are better, or after ``n`` transitions.
        """
        size = max(2, math.ceil(n / 5))
        best = self.length or 1
        gains = {best: self._gain(size)}
        spent = size
        for factor in (2.0, 0.5):
            while spent < n:
                other = max(1, min(LONGEST, round(best * factor)))
                if other in gains:
                    break
                self.sampler.n_leapfrog_steps = other
                gains[other] = self._gain(min(size, n - spent))
                spent += min(size, n - spent)
                if gains[other] <= gains[best]:
                    break
                best = other
        self.sampler.n_leapfrog_steps = best
        if self._time is not None:
            self._time = best * self.step_size
        if spent < n:
            self.launch("length", n - spent)

    def _gain(self, n: int) -> float:
        """ChEES/√L of ``n`` transitions."""
        before = self.x
        result = self.launch("length", n)
        assert result.trajectory is not None
        states = (before, *result.trajectory.unbind(1))
        steps = result.stats["n_steps"].double().mean().item()
        return chees(states, mass_for(self.mass, before)) / math.sqrt(steps)

    def _change_mass(self, kind: MassKind) -> None:
        """The mass from the window's draws, then a step size and a length that suit it."""
        if self.length is not None:
            self._time = self._time or TURN
        mass = learned_mass(self.window(), kind)
        if not bool(mass.isfinite().all()):
            raise NumericalError(
                "the draws of the warm-up spread without end",
                "an energy that grows in all directions",
                "check that exp(-E) can be normalised, and its sign",
            )
        self.sampler.mass = mass
        self.search()
        self._step(self.step_size)

    def _step(self, step_size: float) -> None:
        """Take a step size, and as many leapfrogs as make the trajectory's time, if it is set."""
        self.sampler.step_size = step_size
        if self._time is not None:
            length = max(1, min(LONGEST, round(self._time / step_size)))
            self.sampler.n_leapfrog_steps = length

    @contextmanager
    def _short(self) -> Iterator[None]:
        """Trajectories of single leapfrogs, where the sampler has trajectories."""
        names = ("n_leapfrog_steps", "max_tree_depth")
        held = {name: getattr(self.sampler, name) for name in names if hasattr(self.sampler, name)}
        try:
            for name in held:
                setattr(self.sampler, name, 1)
            yield
        finally:
            for name, value in held.items():
                setattr(self.sampler, name, value)


def windows(n: int) -> list[int]:
    """Lengths of windows that double, and make up ``n`` together.

    Example:
        >>> windows(375)
        [25, 50, 100, 200]
    """
    lengths: list[int] = []
    size = SHORTEST
    while n >= 3 * size:
        lengths.append(size)
        n, size = n - size, 2 * size
    return [*lengths, n] if n > 0 else lengths


def pieces(n: int, at_most: int) -> list[int]:
    """``n`` in that many parts, or fewer, as equal as can be.

    Example:
        >>> pieces(23, 10)
        [2, 2, 2, 3, 2, 2, 3, 2, 2, 3]
    """
    k = min(n, at_most)
    return [(i + 1) * n // k - i * n // k for i in range(k)]
