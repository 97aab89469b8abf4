"""Energies as kernels, and chains run by them.

`fused_energy` traces an energy, lowers it, and checks the outcome against torch on several states;
it is remembered with the energy. `FusedEnergy.run` advances chains by the kernel of a sampler.
Nothing here knows what a sampler means: the host side passes arrays of settings, the kernels' text
does the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_core.energy import EnergyFunction, EnergyLike, as_energy, evaluation_mode
from ebm_core.errors import ConfigurationError
from ebm_samplers.fused.codegen import module_source
from ebm_samplers.fused.kernel import Kernel, counts
from ebm_samplers.fused.lowering import lower
from ebm_samplers.fused.parameters import parameters_now
from ebm_samplers.fused.rules import RULES
from ebm_samplers.fused.trace import CannotFuse, trace

Array = NDArray[Any]

TILE_BYTES = 2**18
"""A tile should stay in a core's second-level cache."""

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}
"""How far energies of kernel and torch may be apart, relative to 1 + |E - offset|; gradients ten
times that, relative to 1 and the largest element."""


@dataclass
class Run:
    """What a kernel gives, and where the chains stand.

    Attributes:
        state: The state after the last step: position, gradient and energy (without its additive
            constant) side by side, ``(chain, 2d + 1)``.
        draws: ``(chain, draw, d)``; no draws if none were asked for.
        statistics: ``(4, chain, slot)``: E with its constant, sum of acceptance probabilities,
            number of wild transitions, Hamiltonian.
        largest: The largest beta·|E| that each chain met, ``(chain,)``.
    """

    state: Array
    draws: Array
    statistics: Array
    largest: Array

    @property
    def x(self) -> Array:
        """Final positions, ``(chain, d)``."""
        return self.state[:, : self.state.shape[1] // 2]

    @property
    def potential(self) -> Array:
        """E at the end of each slot, ``(chain, slot)``."""
        return self.statistics[0]

    @property
    def acceptance(self) -> Array:
        """The sum of the acceptance probabilities of each slot, ``(chain, slot)``."""
        return self.statistics[1]

    @property
    def diverging(self) -> Array:
        """Whether a transition of the slot was wild, ``(chain, slot)``, bool."""
        wild: Array = self.statistics[2] > 0
        return wild

    @property
    def hamiltonian(self) -> Array:
        """H of the slot's last transition, ``(chain, slot)``."""
        return self.statistics[3]


class FusedEnergy:
    """An energy as kernels, for states of one shape and dtype; made by `fused_energy`."""

    def __init__(self, energy: EnergyFunction, x: Tensor) -> None:
        if x.device.type != "cpu" or x.dtype not in TOLERANCE:
            raise CannotFuse(f"states are {x.dtype} on {x.device}")
        counts["traced"] += 1
        self.dtype = x.dtype
        self.real = np.dtype(np.float64 if x.dtype == torch.float64 else np.float32)
        self.trace = trace(energy, x[:1], RULES)
        self.program, self.layout = lower(self.trace)
        self.n_operations = self.program.n_operations
        self.kernels: dict[tuple[str, int], Kernel] = {}
        self.checked: set[tuple[str, int]] = set()

    @property
    def size(self) -> int:
        """Elements of a state."""
        return self.program.size

    def lanes(self, n_chains: int) -> int:
        """How many lanes a tile has for so many chains."""
        if n_chains <= 2:
            return 1
        rows = self.program.n_rows + 6 * self.size
        most = 64
        while most > 16 and rows * most * self.real.itemsize > TILE_BYTES:
            most //= 2
        return 16 if n_chains <= 24 else most

    def kernel(self, sampler: str, lanes: int) -> Kernel:
        """The kernel of a sampler ("langevin", "mala", "hmc", or "energy" for energies alone)."""
        key = (sampler, lanes)
        if key not in self.kernels:
            source = module_source(
                self.program,
                sampler,
                lanes,
                self.dtype == torch.float64,
                f"{sampler} on an energy of {self.size} elements, {lanes} lanes",
            )
            self.kernels[key] = Kernel(source, lanes)
        return self.kernels[key]

    def parameters(self) -> Array:
        """The energy's numbers as they are now."""
        return parameters_now(self.trace, self.layout, self.dtype)

    def evaluate(
        self,
        x: Array,
        sampler: str = "energy",
        lanes: int | None = None,
        parameters: Array | None = None,
    ) -> tuple[Array, Array]:
        """Energies ``(n,)`` and gradients ``(n, d)`` of states, by the kernel of a sampler."""
        p = self.parameters() if parameters is None else parameters
        kernel = self.kernel(sampler, lanes or self.lanes(len(x)))
        if sampler == "energy":
            state = self._state(x)
            kernel(len(x), len(x) * self.n_operations, p, state)
        else:
            state = self.run(
                sampler, x, step_size=np.zeros(0), key=0, parameters=p, lanes=lanes
            ).state
        energies = state[:, -1] + kernel.offset(p)
        return energies.astype(self.real), state[:, self.size : -1]

    def _state(self, x: Array) -> Array:
        state = np.zeros((len(x), 2 * self.size + 1), self.real)
        state[:, : self.size] = x
        return state

    def run(
        self,
        sampler: str,
        x: Array,
        *,
        step_size: Array,
        key: int,
        scale: Array | None = None,
        lengths: Array | None = None,
        inverse_mass: Array | None = None,
        mass_root: Array | None = None,
        beta: Array | None = None,
        state: Array | None = None,
        first_chain: int = 0,
        first_step: int = 0,
        thin: int | None = None,
        keep_draws: bool = False,
        parameters: Array | None = None,
        lanes: int | None = None,
    ) -> Run:
        """Advance chains by ``len(step_size)`` transitions.

        Args:
            sampler: "langevin", "mala" or "hmc".
            x: Start states, ``(chain, d)``, C order, of this energy's dtype; not modified.
            step_size: h of each transition, float64.
            key: The 64-bit seed.
            scale: noise_scale of each transition (Langevin).
            lengths: Leapfrogs of each transition, int64 (HMC).
            inverse_mass: M⁻¹, ``(1, d)`` (a diagonal) or ``(d, d)``.
            mass_root: The lower Cholesky factor of M, likewise.
            beta: Inverse temperatures, ``(chain, 1)``.
            state: That of an earlier `Run`, instead of ``x``; None to compute energies and
                gradients anew.
            first_chain: Number of the first chain.
            first_step: Number of the first transition in the random streams.
            thin: Transitions of each slot of the statistics (and draw); None for one slot over all.
            keep_draws: Whether to write the states at the end of each slot.
            parameters: What `parameters` gave.
            lanes: Chains of a tile; None for what suits their number.
        """
        n_chains, n_steps = len(x), len(step_size)
        kernel = self.kernel(sampler, lanes or self.lanes(n_chains))
        p = self.parameters() if parameters is None else parameters
        thin = thin or max(n_steps, 1)
        n_slots = n_steps // thin
        ones = np.ones((1, self.size), self.real)
        result = Run(
            self._state(x) if state is None else state.copy(),
            np.empty((n_chains, n_slots if keep_draws else 0, self.size), self.real),
            np.zeros((4, n_chains, n_slots), self.real),
            np.zeros(n_chains, self.real),
        )
        plain = np.ascontiguousarray  # another layout or dtype would compile another kernel
        leaps = 1.0 if lengths is None or n_steps == 0 else float(lengths.mean())
        kernel(
            n_chains,
            n_chains * n_steps * (leaps * self.n_operations + 40 * self.size),
            p,
            kernel.offset(p),
            result.state,
            np.ones((n_chains, 1), self.real) if beta is None else plain(beta, self.real),
            plain(step_size, np.float64),
            np.ones(n_steps) if scale is None else plain(scale, np.float64),
            np.ones(n_steps, np.int64) if lengths is None else plain(lengths, np.int64),
            ones if inverse_mass is None else plain(inverse_mass, self.real),
            ones if mass_root is None else plain(mass_root, self.real),
            np.uint64(key),
            first_chain,
            first_step,
            state is None,
            thin,
            0,
            result.draws,
            result.statistics,
            result.largest,
        )
        return result

    def check(self, energy: EnergyFunction, x: Tensor, sampler: str = "energy") -> None:
        """Compare with torch: energies on up to four of the states ``x``, gradients if it is new.

        A kernel stops being new when it agreed on three states of finite energy.

        Raises:
            CannotFuse: If they differ.
        """
        key = (sampler, self.lanes(len(x)))
        new = key not in self.checked
        states = x[:4].detach()
        if new:
            states = torch.cat([states, _neighbours(states)])
        n = len(states)
        flat = np.ascontiguousarray(states.reshape(n, -1).numpy())
        p = self.parameters()
        energies, gradients = self.evaluate(flat, *key, p)
        with evaluation_mode(energy):
            if new:
                expected, slope = energy.energy_and_gradient(states)
            else:
                with torch.no_grad():
                    expected = energy(states)
        want = expected.detach().numpy()
        tolerance, offset = TOLERANCE[self.dtype], self.kernel(*key).offset(p)
        rounding = 16 * torch.finfo(self.dtype).eps * np.abs(want)
        if want.shape != (n,) or not _close(
            energies, want, tolerance * (1 + np.abs(want - offset)) + rounding
        ):
            raise CannotFuse(
                f"the kernel gives energies {_few(energies)} where forward gives {_few(want)}: "
                "forward mixes the states of a batch, or uses numbers that have changed since it "
                "was traced"
            )
        if new:
            slopes = slope.reshape(n, -1).numpy()
            scale = 1 + np.abs(slopes).max(1, keepdims=True)
            if not _close(gradients, slopes, 10 * tolerance * scale):
                raise CannotFuse("the kernel's gradient differs from autograd's")
            if np.isfinite(want).sum() >= 3:
                self.checked.add(key)


_known: WeakKeyDictionary[EnergyFunction, dict[Any, FusedEnergy]] = WeakKeyDictionary()


def fused_energy(energy: EnergyFunction, x: Tensor, sampler: str = "energy") -> FusedEnergy:
    """The kernels of an energy for states like ``x``, checked against torch on some of them.

    Args:
        energy: The energy; traced on first use, again when its kernel no longer agrees with it.
        x: States ``(chain, *event)``.
        sampler: Whose kernel is checked, see `FusedEnergy.kernel`.

    Raises:
        CannotFuse: If there is no kernel that agrees with the energy.
    """
    by_kind = _known.setdefault(energy, {})
    kind = (x.shape[1:], x.dtype, x.device)
    fused = by_kind.get(kind)
    if fused is not None:
        try:
            fused.check(energy, x, sampler)
            return fused
        except CannotFuse:
            del by_kind[kind]
    fused = FusedEnergy(energy, x)
    fused.check(energy, x, sampler)
    by_kind[kind] = fused
    return fused


def fuse(energy: EnergyLike) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Compile an energy: a function that gives energies and gradients of batches from one kernel.

    Each call compares energies with ``forward`` on up to four states, so that changed parameters,
    closures and attributes are followed or noticed.

    Args:
        energy: An `EnergyFunction` or any callable ``(batch, *event) -> (batch,)``.

    Returns:
        A callable ``x -> (energies (batch,), gradients of the shape of x)``, both without autograd
        history. It raises `ConfigurationError` where the energy cannot be compiled.

    Example:
        >>> energies, gradients = fuse(lambda x: x.square().sum(1))(torch.ones(3, 2))
        >>> energies
        tensor([2., 2., 2.])
    """
    wrapped = as_energy(energy)

    def energy_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        wrapped.batch_size(x)
        try:
            fused = fused_energy(wrapped, x)
        except CannotFuse as reason:
            raise ConfigurationError(
                f"the energy has no fused kernel: {reason}",
                "an energy that can be traced and compiled",
                "use energy.energy_and_gradient(x), or change what the message names",
            ) from reason
        flat = np.ascontiguousarray(x.detach().reshape(len(x), -1).numpy())
        energies, gradients = fused.evaluate(flat)
        return torch.from_numpy(energies), torch.from_numpy(gradients).reshape(x.shape)

    return energy_and_gradient


def _neighbours(x: Tensor) -> Tensor:
    """Three more states near the first, all different, so that a batch has states that differ."""
    numbers = torch.arange(3 * x[0].numel(), dtype=x.dtype).reshape(3, *x.shape[1:])
    return x[:1] + 0.4 * torch.sin(1.0 + 2.4 * numbers)


def _close(have: Array, want: Array, tolerance: Array) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(
            np.all(
                (np.abs(have - want) <= tolerance)
                | (have == want)
                | (np.isnan(have) & np.isnan(want))
            )
        )


def _few(numbers: Array) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers[:4])
