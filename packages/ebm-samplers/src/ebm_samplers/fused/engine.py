"""Energies as kernels, and chains run by them.

A `FusedEnergy` is an energy traced, lowered and compiled for states of one shape and dtype.
`FusedEnergy.run` advances chains by the kernel of a sampler. Nothing here knows what a sampler
means: the host side passes arrays of settings, the kernels' text does the rest. Whether a kernel
still agrees with its energy is the business of `ebm_samplers.fused.lookup`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_core.energy import EnergyFunction
from ebm_samplers.fused.arrays import Array, column, plain, spread
from ebm_samplers.fused.codegen import module_source
from ebm_samplers.fused.kernel import Kernel, address, counts
from ebm_samplers.fused.kernels import CARRIED, ONE_LANE, STATISTICS, USUAL
from ebm_samplers.fused.lowering import lower, too_large
from ebm_samplers.fused.native import COMPILING
from ebm_samplers.fused.rules import RULES
from ebm_samplers.fused.sensitivities import Copy
from ebm_samplers.fused.trace import CannotFuse, Trace, call_once, trace

REAL: dict[torch.dtype, Any] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}

OPERATIONS = 1e9
"""Scalar operations a second, at least: a guess until a launch has been timed."""

TILE_BYTES = 2**18
"""A tile should stay in a core's second-level cache."""


@dataclass
class Run:
    """What a kernel gives, and where the chains stand.

    Attributes:
        state: The state after the last step: position, gradient and energy (without its additive
            constant) side by side, ``(chain, 2d + 1)``.
        draws: ``(chain, draw, d)``; empty if none were asked for.
        statistics: ``(4, chain, slot)``: E with its constant, sum of acceptance probabilities,
            number of wild transitions, Hamiltonian; of trees, three more: the number of leapfrogs
            modulo 2²⁰, how often 2²⁰ have gone by, and the largest depth.
        notes: ``(3, chain)``: the largest beta·|E| that each chain met; of fresh chains, E at the
            start without its constant, and 1 where x, E or ∇E was not finite, else 0.
    """

    state: Array
    draws: Array
    statistics: Array
    notes: Array

    @property
    def x(self) -> Array:
        """Final positions, ``(chain, d)``."""
        return self.state[:, : self.state.shape[1] // 2]

    @property
    def largest(self) -> Array:
        """The largest beta·|E| that each chain met, ``(chain,)``."""
        largest: Array = self.notes[0]
        return largest

    @property
    def potential(self) -> Array:
        """E at the end of each slot, ``(chain, slot)``."""
        potential: Array = self.statistics[0]
        return potential

    @property
    def acceptance(self) -> Array:
        """The sum of the acceptance probabilities of each slot, ``(chain, slot)``."""
        acceptance: Array = self.statistics[1]
        return acceptance

    @property
    def wild(self) -> Array:
        """The number of wild transitions of each slot, ``(chain, slot)``."""
        wild: Array = self.statistics[2]
        return wild

    @property
    def hamiltonian(self) -> Array:
        """H of the slot's last transition, ``(chain, slot)``."""
        hamiltonian: Array = self.statistics[3]
        return hamiltonian


@dataclass
class Launch:
    """A kernel with its arguments: ready to run, and to run again in the same memory.

    Attributes:
        kernel: Runs, given the work and the arguments.
        work: Roughly the scalar operations of it all.
        given: The arguments, see `Kernel`.
        run: What it gives.
        source: The states that it begins with.
        held: The memory whose addresses are among the arguments.
    """

    kernel: Callable[[float, dict[str, Any]], None]
    work: float
    given: dict[str, Any]
    run: Run
    source: Any = None
    held: tuple[Any, ...] = ()

    def __call__(self) -> Run:
        """Run it."""
        self.kernel(self.work, self.given)
        return self.run


@dataclass(frozen=True)
class Slots:
    """Where a kernel writes what it reports: a slot covers some transitions, and may end in a draw.

    Attributes:
        draws: ``(chain, slot, d)``, or without slots where no draws are kept.
        statistics: ``(…, chain, slot)``, as in `Run`.
        first: The slot to begin with.
    """

    draws: Array
    statistics: Array
    first: int = 0


class FusedEnergy:
    """An energy as kernels, for states of one shape and dtype.

    Args:
        energy: The energy.
        x: A batch of such states, ``(chain, *event)``; the first of them is traced.

    Raises:
        CannotFuse: If the energy, or the kind of states, is not for kernels.

    Attributes:
        dtype, real, eps: Of states and energies: torch's, NumPy's, and the spacing at 1.
        size: Elements of a state.
        n_operations: Scalar operations of one evaluation.
        rate: Scalar operations a second, the most that a launch has shown.
        keeps_slopes: Whether activations keep their derivatives, see `slopes`.
        copies: What its kernels give beside energy and gradient, and where.
        checked: The kernels that agreed with torch on several states, see `lookup`.
    """

    rate: float = OPERATIONS
    keeps_slopes: bool = True
    copies: Sequence[Copy] = ()

    def __init__(self, energy: EnergyFunction, x: Tensor) -> None:
        if not self.runs_on(x.device) or x.dtype not in REAL or x[0].numel() == 0:
            raise CannotFuse(f"states are {x.dtype} on {x.device}, of shape {tuple(x.shape[1:])}")
        counts["traced"] += 1
        call_once(energy, x)
        self.dtype, self.real = x.dtype, REAL[x.dtype]
        self.eps = torch.finfo(x.dtype).eps
        self.trace = self.traced(energy, x[:1])
        self.program, self.layout = lower(self.trace, self.keeps_slopes)
        self.size = self.program.size
        self.n_operations = self.program.n_operations
        self.kernels: dict[tuple[str, int, bool], Any] = {}
        self.checked: set[tuple[str, int]] = set()
        self.prepare()

    def runs_on(self, device: torch.device) -> bool:
        """Whether states on a device are for these kernels."""
        return device.type == "cpu"

    def traced(self, energy: EnergyFunction, x: Tensor) -> Trace:
        """What the kernels are to compute, from one state with its batch axis."""
        return trace(energy, x, RULES)

    def prepare(self) -> None:
        """Make what is mostly the same from call to call."""
        self._ones = np.ones((1, self.size), self.real)
        self._betas = np.ones((1, 1), self.real)
        self._none = np.empty((0, 0, self.size), self.real)
        self._offset: tuple[Array, float] = self._betas, 0.0

    @property
    def form(self) -> str:
        """Whether the program is "straight-line" code or "looped"."""
        return "straight-line" if self.program.straight else "looped"

    def lanes_for(self, sampler: str, n_chains: int) -> int:
        """How many lanes a tile has for so many chains of a sampler."""
        return 1 if sampler in ONE_LANE else self.lanes(n_chains)

    def lanes(self, n_chains: int) -> int:
        """How many lanes a tile has for so many chains that go in step."""
        if n_chains <= 2:
            return 1
        rows = self.program.n_rows + 6 * self.size
        most = 64
        while most > 16 and rows * most * self.real.itemsize > TILE_BYTES:
            most //= 2
        return 16 if n_chains <= 24 else most

    def kernel(self, sampler: str, lanes: int, dense: bool = False) -> Any:
        """The kernel of a sampler ("langevin", "mala", …, or "energy" for energies alone).

        Args:
            sampler: Whose.
            lanes: Chains of a tile.
            dense: For masses that are matrices, not diagonals.
        """
        key = (sampler, lanes, dense)
        found = self.kernels.get(key)
        if found is not None:
            return found
        with COMPILING:
            if key not in self.kernels:
                try:
                    self.kernels[key] = self.make_kernel(sampler, lanes, dense)
                except CannotFuse:
                    raise
                except Exception as error:  # of a program that nobody foresaw
                    raise CannotFuse(
                        f"its kernel cannot be written ({type(error).__name__}: {error})"
                    ) from error
        return self.kernels[key]

    def make_kernel(self, sampler: str, lanes: int, dense: bool) -> Any:
        """A kernel, not yet compiled."""
        double = self.dtype == torch.float64
        title = f"{sampler} on an energy of {self.size} elements, {lanes} lanes"
        source = module_source(self.program, sampler, lanes, double, title, dense, self.copies)
        return Kernel(source, lanes)

    def parameters(self, sampler: str, lanes: int) -> tuple[Array, float]:
        """The energy's numbers as they are now, and its additive constant."""
        p = self.layout.now()
        if p is not self._offset[0]:  # the same array as long as nothing changes
            self._offset = p, self.kernel(sampler, lanes).offset(p)
        return self._offset

    def start(
        self, x: Array, sampler: str, lanes: int, p: Array, offset: float, **constants: Any
    ) -> Run:
        """A run of no transitions from positions ``(chain, d)``; see `run`."""
        if sampler != "energy":
            return self.run(
                sampler,
                x,
                n_steps=0,
                step_size=0.0,
                key=0,
                parameters=p,
                offset=offset,
                lanes=lanes,
                **constants,
            )
        slots, notes = self.slots(sampler, len(x), 0), np.empty((3, len(x)), self.real)
        state = np.empty((len(x), 2 * self.size + 1), self.real)
        source = plain(x, self.real)
        given = {"p": p, "source": address(source), "state": address(state), "n_chains": len(x)}
        self.kernel(sampler, lanes)(len(x) * self.n_operations, given)
        notes[1] = state[:, -1]  # nobody asks for more
        return Run(state, slots.draws, slots.statistics, notes)

    def width(self, sampler: str) -> int:
        """Numbers of a chain's state: position, gradient, energy, and what it carries."""
        return (2 + CARRIED.get(sampler, 0)) * self.size + 1

    def fresh(self, sampler: str, x: Array) -> Array:
        """What a kernel enters of fresh chains at positions ``(chain, d)``; states are left so."""
        if sampler not in CARRIED or x.shape[1] == self.width(sampler):
            return x
        states = np.zeros((len(x), self.width(sampler)), self.real)
        states[:, : self.size] = x
        return states

    def evaluate(
        self, x: Array, sampler: str = "energy", lanes: int | None = None
    ) -> tuple[Array, Array]:
        """Energies ``(n,)`` and gradients ``(n, d)`` of states, by the kernel of a sampler."""
        lanes = lanes or self.lanes_for(sampler, len(x))
        p, offset = self.parameters(sampler, lanes)
        state = self.start(x, sampler, lanes, p, offset).state
        return self.energies(state, offset), self.gradients(state)

    def energies(self, state: Array, offset: float) -> Array:
        """E with its additive constant, ``(chain,)``, in a state of the chains."""
        with np.errstate(over="ignore", invalid="ignore"):
            energies: Array = state[:, 2 * self.size] + self.real.type(offset)
        return energies

    def gradients(self, state: Array) -> Array:
        """∇E, ``(chain, d)``, in a state of the chains."""
        return state[:, self.size : 2 * self.size]

    def run(self, sampler: str, x: Array | None, **settings: Any) -> Run:
        """Advance chains; takes what `launch` takes."""
        return self.launch(sampler, x, **settings)()

    def launch(
        self,
        sampler: str,
        x: Array | None,
        *,
        n_steps: int,
        step_size: float | Array,
        key: int,
        noise_scale: float | Array = 1.0,
        friction: float | Array | None = None,
        lengths: int | Array = 1,
        leapfrogs: float | None = None,
        inverse_mass: Array | None = None,
        mass_root: Array | None = None,
        beta: Array | None = None,
        state: Array | None = None,
        first_chain: int = 0,
        first_step: int = 0,
        thin: int | None = None,
        keep_draws: bool = False,
        slots: Slots | None = None,
        parameters: Array | None = None,
        offset: float | None = None,
        lanes: int | None = None,
    ) -> Launch:
        """Make ready to advance chains by ``n_steps`` transitions.

        Args:
            sampler: The name of a module of `kernels`.
            x: Positions of fresh chains, ``(chain, d)``, of this energy's dtype; not modified. None
                to go on from ``state``. Chains that carry more give that as a state, in which
                energy and gradient do not matter; else it is 0.
            n_steps: Number of transitions.
            step_size: h, a number, or one for each transition.
            key: The 64-bit seed.
            noise_scale: Likewise (Langevin).
            friction: Likewise (underdamped Langevin).
            lengths: Leapfrogs, likewise (HMC), or doublings at most (NUTS).
            leapfrogs: How many a transition takes, about; None for as many as ``lengths`` says.
            inverse_mass: M⁻¹, ``(1, d)`` (a diagonal) or ``(d, d)``.
            mass_root: The lower Cholesky factor of M, likewise.
            beta: Inverse temperatures, ``(chain, 1)``.
            state: That of an earlier `Run`, where ``x`` is None.
            first_chain: Number of the first chain.
            first_step: Number of the first transition in the random streams.
            thin: Transitions of each slot; None for one slot over all.
            keep_draws: Whether to write the states at the end of each slot.
            slots: Where to write; None for new arrays.
            parameters: What `parameters` gave.
            offset: Likewise.
            lanes: Chains of a tile; None for what suits their number.
        """
        source = state if x is None else plain(self.fresh(sampler, x), self.real)
        assert source is not None
        n_chains, real = len(source), self.real
        lanes = lanes or self.lanes_for(sampler, n_chains)
        if parameters is None or offset is None:
            parameters, offset = self.parameters(sampler, lanes)
        thin = thin or max(n_steps, 1)
        # one piece of memory: to ask for it, and for its address, takes as long as some arithmetic
        n_slots = 0 if slots else n_steps // thin
        n_state, n_notes = n_chains * self.width(sampler), 3 * n_chains
        n_statistics = STATISTICS.get(sampler, USUAL)
        memory = np.empty(n_state + n_notes + n_statistics * n_chains * n_slots, real)
        state_at = address(memory)
        notes_at = state_at + n_state * real.itemsize
        statistics_at = notes_at + n_notes * real.itemsize
        if slots is None:
            draws = np.empty((n_chains, n_slots, self.size), real) if keep_draws else self._none
            shape = n_statistics, n_chains, n_slots
            slots = Slots(draws, memory[n_state + n_notes :].reshape(shape))
        else:
            statistics_at = address(slots.statistics)
        result = Run(
            memory[:n_state].reshape(n_chains, -1),
            slots.draws,
            slots.statistics,
            memory[n_state : n_state + n_notes].reshape(3, n_chains),
        )
        sizes, sizes_at = column(step_size, real)
        spreads, spreads_at = column(spread(step_size, noise_scale, friction), real)
        leaps, leaps_at = column(lengths, np.int64)
        mass = self._ones if inverse_mass is None else plain(inverse_mass, real)
        if leapfrogs is None:
            leapfrogs = float(leaps[0] if len(leaps) == 1 else leaps.mean()) if len(leaps) else 1.0
        given = {
            "n_chains": n_chains,
            "p": parameters,
            "offset": offset,
            "source": address(source),
            "fresh": x is not None,
            "state": state_at,
            "beta": self._one_each(n_chains) if beta is None else plain(beta, real),
            "step_size": sizes_at,
            "spread": spreads_at,
            "lengths": leaps_at,
            "size_stride": len(sizes) > 1,
            "spread_stride": len(spreads) > 1,
            "length_stride": len(leaps) > 1,
            "mass": mass,
            "root": self._ones if mass_root is None else plain(mass_root, real),
            "key": key,
            "first_chain": first_chain,
            "first_step": first_step,
            "n_steps": n_steps,
            "thin": thin,
            "first_slot": slots.first,
            "n_slots": slots.statistics.shape[2],
            "n_draws": slots.draws.shape[1],
            "draws": address(slots.draws),
            "statistics": statistics_at,
            "notes": notes_at,
        }
        gradients = leapfrogs * n_steps + (x is not None)
        work = n_chains * (gradients * self.n_operations + n_steps * 40 * self.size)
        held = memory, sizes, spreads, leaps
        return Launch(self.kernel(sampler, lanes, len(mass) > 1), work, given, result, source, held)

    def flat(self, x: Tensor) -> Any:
        """States ``(chain, *event)`` as ``(chain, d)``, of the same memory if that can be."""
        if x.requires_grad or x.is_neg():
            x = x.detach().resolve_neg()
        if x._is_zerotensor():
            x = torch.zeros(x.shape, dtype=x.dtype)
        states: Array = x.numpy()
        return states if states.ndim == 2 else states.reshape(len(states), -1)

    def copied(self, part: Any, shape: tuple[int, ...]) -> Tensor:
        """A part of a state of the chains as a tensor of its own."""
        return torch.from_numpy(part.copy().reshape(shape))

    def slopes(self, run: Run) -> list[list[float]]:
        """The derivatives in what the energy's own kernel gave: gradients, state by state."""
        gradients: list[list[float]] = self.gradients(run.state).tolist()
        return gradients

    def allowed(self, expected: list[float], offset: float, tolerance: float) -> list[float]:
        """How far energies may be off."""
        rounding = 16 * self.eps
        return [tolerance * (1 + abs(b - offset)) + rounding * abs(b) for b in expected]

    def units(self, largest: list[float]) -> list[float]:
        """What derivatives are measured by, given the largest of each row of `slopes`."""
        return [1 + most for most in largest]

    def probe(self, energy: EnergyFunction) -> Callable[[Tensor], Tensor]:
        """Gives by torch what is compared at each call, for ``(n, *event)`` states ``(n,)``."""
        return energy

    def wanted(self, energy: EnergyFunction, x: Tensor) -> tuple[Tensor, list[list[float]]]:
        """What `probe` gives, and what `slopes` should be."""
        energies, gradients = energy.energy_and_gradient(x)
        return energies, gradients.reshape(len(x), -1).tolist()

    def any(self, flags: Any) -> bool:
        """Whether one of these numbers is not 0."""
        return bool(np.dot(flags, flags) > 0)

    def slower(self, energy: EnergyFunction, x: Tensor, sampler: str) -> str | None:
        """Why torch would be quicker than a sampler's kernel for states ``x``; None if not."""
        return too_large(self.n_operations, len(x))

    def seconds(self, n_chains: int) -> float:
        """What a transition takes, guessed: it decides how long the first leg is."""
        return n_chains * (self.n_operations + 40 * self.size) / self.rate

    def took(self, n_gradients: int, seconds: float) -> None:
        """Learn from a launch of so many gradients; products are far quicker than the guess."""
        self.rate = max(self.rate, n_gradients * (self.n_operations + 40 * self.size) / seconds)

    def wait(self) -> None:
        """Until what was launched has run: it has."""

    def tensor(self, values: Any) -> Tensor:
        """What runs give, as a tensor of the same memory."""
        return torch.from_numpy(values)

    def slots(self, sampler: str, n_chains: int, n_slots: int) -> Slots:
        """Room for the draws and statistics of several runs."""
        return Slots(
            np.empty((n_chains, n_slots, self.size), self.real),
            np.empty((STATISTICS.get(sampler, USUAL), n_chains, n_slots), self.real),
        )

    def _one_each(self, n_chains: int) -> Array:
        betas = self._betas
        if len(betas) != n_chains:
            betas = self._betas = np.ones((n_chains, 1), self.real)
        return betas
