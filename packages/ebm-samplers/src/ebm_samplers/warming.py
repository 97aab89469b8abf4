"""How a warm-up goes: phases of launches, and the rule by which each changes the settings.

First a step size by factors of two (`Warming.search`), then windows of transitions that double in
length. Each window has a phase for the step size (dual averaging towards a target acceptance) and,
where the sampler has trajectories and there are chains enough, one for their length (ChEES); at its
end the mass is learned from its draws. A last phase fits the step size to the last mass.

A mean acceptance rate at its target does not show that the integrator is unstable in some region,
the arms of a banana or a neck: steps that fit the rest diverge there, trajectories that should be
long are rejected, and chains creep. Where the target is the default, it is therefore raised while
more than one transition in a thousand diverges.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ebm_core import NumericalError
from ebm_samplers.dual_averaging import DualAveraging
from ebm_samplers.launches import Launches, Made
from ebm_samplers.learned import MassKind, chees, learned_mass
from ebm_samplers.mass import mass_for
from ebm_samplers.sampler import MarkovSampler
from ebm_samplers.schedules import Setting

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
"""Length in time of the first trajectories once the mass is known: about π/2, a quarter turn. It is
doubled for few chains, for which it stays: lengths are spread about it."""
LENGTHS = ("n_leapfrog_steps", "max_tree_depth")
"""Attributes that say how long trajectories may be."""
CHAINS_FOR_LENGTH = 8
"""Chains that a length is learned from, at least: squares of fewer chains' jumps are noise."""
DIVERGING = 1e-3
"""Part of the transitions that may diverge before the target is raised."""
RAISED = 4.0
"""By which the rejection rate is then divided: from 0.8 to 0.95."""
GAINS = 0.75
"""Part of the divergences that may be left after a rise: where it is more, steps do not matter."""
STRICTEST = 0.99
"""Target above which it is not raised."""


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
        n_diverging: Transitions of any chain that diverged.
    """

    phase: str
    n_steps: int
    step_size: float
    n_leapfrog_steps: int | None
    acceptance_rate: float
    n_diverging: int = 0


def configured(sampler: MarkovSampler, settings: Mapping[str, Any]) -> MarkovSampler:
    """A copy of a sampler with other settings; None leaves one as it is."""
    copied = copy.copy(sampler)
    copied.settings = dict(sampler.settings)
    copied._key, copied._counter = None, 0  # a random stream of its own
    for name, value in settings.items():
        if value is not None:
            setattr(copied, name, value)
    return copied


class Warming:
    """A warm-up under way.

    Args:
        sampler: With an accept test; stays as it is.
        x: Where its chains begin, ``(chain, *event)``.
        key: The 64-bit seed.
        target: The acceptance rate to reach.
        rises: Whether the target is raised while transitions diverge.
        mass: Which kind to learn; None to keep the sampler's.

    Attributes:
        sampler: A copy, with the present settings.
        x: Present states.
        target: The acceptance rate to reach.
        n_gradients: So far.
        history: Launches so far.
        acceptance_rate: In the last phase.
    """

    def __init__(
        self,
        sampler: MarkovSampler,
        x: Tensor,
        key: int,
        target: float,
        rises: bool,
        mass: MassKind | None,
    ) -> None:
        self.sampler = configured(sampler, {})
        self.sampler.settings["step_size"] = Setting("step_size", sampler.step_size)
        self.sampler.adaptation, self.sampler._adapted_step_size = None, None
        self.x, self.key, self.target = x, key, target
        self.lengths = [name for name in LENGTHS if hasattr(sampler, name)]
        self.rises = rises and bool(self.lengths)  # a single step that diverges is one rejection
        self.mass_kind: MassKind | None = mass if hasattr(sampler, "mass") else None
        self.n_gradients, self.acceptance_rate = 0, math.nan
        self.history: list[Launch] = []
        self._draws: list[Tensor] = []
        self._late: list[Launch] = []
        self._before: tuple[float, float] | None = None  # target and part that diverged
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

    @property
    def _finds_lengths(self) -> bool:
        return self.length is not None and len(self.x) >= CHAINS_FOR_LENGTH

    def window(self) -> Tensor:
        """The draws since the mass has changed, ``(chain, draw, *event)``."""
        return torch.cat(self._draws, 1)

    def all(self, n_steps: int) -> None:
        """Everything, in ``n_steps`` transitions beside the search for a first step size."""
        first, last = math.ceil(FIRST * n_steps), max(5, math.ceil(LAST * n_steps))
        with closing(Launches(self.sampler, self.x, self.key, n_steps)) as self._launches:
            self.search()
            self.settle(first)
            for i, n in enumerate(windows(n_steps - first - last)):
                self._draws = []
                self.settle(n)
                if self.rises and i > 0:  # with the mass that the first has given
                    self._raise_target()
                if self.mass_kind is not None:
                    self._change_mass(self.mass_kind)
            self.find_step_size(last, "final", 2 * LAUNCHES)

    def settle(self, n: int) -> None:
        """Step size, then length, in ``n`` transitions."""
        if not self._finds_lengths:
            self.find_step_size(n)
            return
        half = math.ceil(n / 2)
        self.find_step_size(half)
        self.find_length(n - half)

    def launch(self, phase: str, n: int) -> Made:
        """Make ``n`` transitions."""
        made = self._launches.make(n)
        self.x = self._launches.x
        thin = math.ceil(made.draws.numel() / HELD)
        self._draws.append(made.draws[:, thin - 1 :: thin])
        self.n_gradients += made.n_gradients
        rate, diverging = made.acceptance_rate, made.n_diverging
        self.history.append(Launch(phase, n, self.step_size, self.length, rate, diverging))
        return made

    def rate(self, phase: str, n: int) -> float:
        """Acceptance rate of ``n`` transitions."""
        return self.launch(phase, n).acceptance_rate

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
        for size in sizes:
            self._step(rule.update(self.rate(phase, size)))
        self._step(rule.averaged)
        self._late = late = self.history[len(sizes) // 2 - len(sizes) :]
        accepted = sum(launch.n_steps * launch.acceptance_rate for launch in late)
        self.acceptance_rate = accepted / sum(launch.n_steps for launch in late)

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
        made = self.launch("length", n)
        states = (before, *made.draws.unbind(1))
        steps = made.n_gradients / made.n_transitions
        return chees(states, mass_for(self.mass, before)) / math.sqrt(steps)

    def _raise_target(self) -> None:
        """Smaller steps from now on, if too many transitions diverged at those just found.

        Back to larger ones, for good, if the last rise has gained nothing, as at an edge.
        """
        diverging = sum(launch.n_diverging for launch in self._late)
        transitions = sum(launch.n_steps for launch in self._late) * len(self.x)
        part = diverging / transitions
        if self._before is not None and part > GAINS * self._before[1]:
            self.target, self.rises = self._before[0], False
        elif diverging > max(1, DIVERGING * transitions) and self.target < STRICTEST:
            self._before = self.target, part
            self.target = raised(self.target)

    def _change_mass(self, kind: MassKind) -> None:
        """The mass from the window's draws, then a step size and a length that suit it."""
        if self.length is not None:
            self._time = self._time or (TURN if self._finds_lengths else 2 * TURN)
        mass = learned_mass(self.window(), kind)
        if not bool(mass.isfinite().all()):
            raise NumericalError(
                "the draws of the warm-up spread without end",
                "an energy that grows in all directions",
                "check that exp(-E) can be normalised, and its sign",
            )
        self.sampler.mass = mass
        self._launches.renew()
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
        held = {name: getattr(self.sampler, name) for name in self.lengths}
        try:
            for name in held:
                setattr(self.sampler, name, 1)
            yield
        finally:
            for name, value in held.items():
                setattr(self.sampler, name, value)


def raised(target: float) -> float:
    """A target acceptance with a quarter of the rejections, up to 0.99.

    Example:
        >>> [round(raised(t), 2) for t in (0.8, 0.95, 0.99)]
        [0.95, 0.99, 0.99]
    """
    return max(target, min(STRICTEST, 1 - (1 - target) / RAISED))


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
