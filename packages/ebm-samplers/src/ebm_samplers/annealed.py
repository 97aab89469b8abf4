"""Annealed Langevin dynamics: a ladder of easier energies, from the top to the target.

At each rung a chain makes some unadjusted Langevin steps, h_i ∝ the square of the rung's scale, and
starts the next rung from where it is (Song & Ermon 2019, "Generative modeling by estimating
gradients of the data distribution", algorithm 1; the temperatures are simulated annealing's,
Kirkpatrick et al. 1983). The upper rungs let chains cross between modes in proportions that the
last rung alone would never reach.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from ebm_core import ConfigurationError, EnergyFunction, as_energy, state_options
from ebm_core.validation import check_choice, check_integer, check_positive
from ebm_samplers.arguments import Beta
from ebm_samplers.langevin import LangevinDynamics
from ebm_samplers.schedules import Setting, Staircase


class AnnealedLangevin(LangevinDynamics):
    """Unadjusted Langevin down a ladder; the last rung is the target.

    With ``levels="temperature"`` the rungs are temperatures T_i, and rung i targets exp(-E/T_i).
    With ``levels="noise"`` they are standard deviations σ_i of a noise that smooths the density,
    and the energy, called with a state and a level, is different at each: rung i targets
    exp(-E(x, σ_i)). The step of rung i on its energy is h_i = step_size·s_i/s_L, with s_i = T_i or
    σ_i². (Song & Ermon's α_i is 2h_i.)

    Step n of a call is on rung n // steps_per_level, or on the last: a run descends in its first
    `n_annealing_steps` transitions and stays at the bottom. As with all schedules, transitions of
    ``burn_in`` are counted, each call starts at the top, ``resume`` goes on. So ``sample(burn_in=
    sampler.n_annealing_steps, ...)`` draws from the last rung alone; without it, draws from the
    upper rungs are among the others. ``potential`` is the energy as it was at the draw's rung,
    without its temperature. Each chain that comes down is one independent draw of which mode it is
    in: many short runs say more about that than a long one.

    Statistics: ``diverging``, ``n_steps``. Result's ``step_size`` is h in units of E.

    Args:
        energy: An `EnergyFunction` or any callable ``(chain, *event) -> (chain,)``; with
            ``levels="noise"`` a module or function ``(x, sigma) -> (chain,)``, where ``sigma`` is a
            scalar tensor.
        ladder: Levels, positive, from the highest to the target's: each lower than the one before.
        step_size: h of the last rung, positive.
        steps_per_level: Transitions on each rung.
        levels: What the ladder's numbers are, ``"temperature"`` or ``"noise"``.
        engine: See `MarkovSampler`.

    Raises:
        ConfigurationError: If the ladder is empty, or does not descend.

    Example:
        >>> def energy(x, sigma):  # two points, seen through noise
        ...     left, right = ((x - c).square().sum(1) / (2 * sigma**2) for c in (-4.0, 4.0))
        ...     return -torch.logaddexp(-left, -right)
        >>> ladder = torch.logspace(1, -1, 10)
        >>> sampler = AnnealedLangevin(energy, ladder, 0.001, steps_per_level=30, levels="noise")
        >>> x = sampler.sample_chain(torch.zeros(1000, 1), n_steps=300)
        >>> round(x.abs().mean().item(), 1), abs((x > 0).float().mean().item() - 0.5) < 0.1
        (4.0, True)
    """

    fixed: ClassVar[frozenset[str]] = frozenset({"ladder", "levels", "steps_per_level"})

    def __init__(
        self,
        energy: Callable[..., Tensor],
        ladder: Sequence[float] | Tensor,
        step_size: float = 0.01,
        *,
        steps_per_level: int = 100,
        levels: str = "temperature",
        engine: str = "auto",
    ) -> None:
        self.ladder = _checked_ladder(ladder)
        self.levels = check_choice("levels", levels, ("temperature", "noise"))
        self.steps_per_level = check_integer("steps_per_level", steps_per_level, at_least=1)
        step_size, last = check_positive("step_size", step_size), self.ladder[-1]
        if levels == "temperature":  # x' = x - h_i ∇E/T_i + sqrt(2h_i) ξ with h_i/T_i constant
            roots = Staircase([level**0.5 for level in self.ladder], self.steps_per_level)
            super().__init__(energy, step_size / last, roots, engine=engine)
            return
        sizes = [step_size * (level / last) ** 2 for level in self.ladder]
        energy = ConditionalEnergy(energy, last)
        super().__init__(energy, Staircase(sizes, self.steps_per_level), engine=engine)
        self.settings["noise_level"] = Setting(
            "noise_level", Staircase(self.ladder, self.steps_per_level)
        )

    @property
    def n_annealing_steps(self) -> int:
        """Transitions above the last rung."""
        return self.steps_per_level * (len(self.ladder) - 1)

    def enter(self, step: int, x: Tensor) -> Hashable:
        """Give the energy the noise level of a step."""
        if not isinstance(self.energy, ConditionalEnergy):
            return None
        level = self.settings["noise_level"].at(step)
        self.energy.enter(level, x)
        return level

    def sample_chain(self, x_init: Tensor, n_steps: int, *, beta: Beta | None = None) -> Tensor:
        """Final states, all the way down; see `MarkovSampler.sample_chain`.

        Raises:
            ConfigurationError: If ``n_steps`` do not reach the last rung.
        """
        if check_integer("n_steps", n_steps, at_least=1) <= self.n_annealing_steps:
            raise ConfigurationError(
                f"n_steps is {n_steps}, and the ladder's last level is reached after "
                f"{self.n_annealing_steps} steps",
                f"n_steps of at least {self.n_annealing_steps + 1}",
                "make more steps, or construct the sampler with fewer steps_per_level or levels",
            )
        return super().sample_chain(x_init, n_steps, beta=beta)


class ConditionalEnergy(EnergyFunction):
    """An energy of states and a noise level, at the level that its buffer holds.

    A buffer, since kernels and graphs follow it: all levels are one kernel.
    """

    level: Tensor

    def __init__(self, function: Callable[..., Tensor], level: float) -> None:
        super().__init__()
        described = as_energy(function)  # refuses what is not callable
        self.event_shape, self.event_ndim = described.event_shape, described.event_ndim
        self.support = described.support
        owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        self.function = function
        self.registered = nn.ModuleList([owner] if isinstance(owner, nn.Module) else [])
        device, dtype = state_options(self)
        self.register_buffer("level", torch.tensor(level, device=device, dtype=dtype))
        self._value = level

    def enter(self, level: float, x: Tensor) -> None:
        """Go to a level, for states like ``x``."""
        if self.level.dtype != x.dtype or self.level.device != x.device:
            self.level = torch.tensor(level, device=x.device, dtype=x.dtype)
        elif level != self._value:
            self.level.fill_(level)
        self._value = level

    def forward(self, x: Tensor) -> Tensor:
        """E(x, level): ``(batch, *event) -> (batch,)``."""
        energies: Tensor = self.function(x, self.level)
        return energies


def _checked_ladder(ladder: Sequence[float] | Tensor) -> tuple[float, ...]:
    values = ladder.tolist() if hasattr(ladder, "tolist") else ladder
    if not isinstance(values, list | tuple) or not values:
        raise ConfigurationError(
            f"ladder is {ladder!r}",
            "a sequence of levels",
            "pass numbers from the highest level to the target's, as in [10.0, 3.0, 1.0]",
        )
    levels = tuple(check_positive(f"ladder[{i}]", value) for i, value in enumerate(values))
    for i, (above, below) in enumerate(pairwise(levels)):
        if below >= above:
            raise ConfigurationError(
                f"ladder[{i}] is {above:g} and ladder[{i + 1}] {below:g}",
                "levels that descend, temperatures or standard deviations",
                "order them from the highest to the target's; of inverse temperatures pass 1/beta",
            )
    return levels
