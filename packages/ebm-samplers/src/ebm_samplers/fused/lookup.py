"""Which kernels an energy has, and whether they still agree with it.

A kernel is remembered with its energy. What it was made of may change without notice (a rebound
tensor of a closure, a Python number), so each use compares its energies with ``forward`` on up to
four start states (where these are all the same, on others near them, too), and a mismatch traces
the energy again. A kernel that is new is compared more thoroughly: on states that differ, as one
batch, gradients too. So an energy that mixes the states of a batch has no kernel.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ebm_core.energy import EnergyFunction, evaluation_mode
from ebm_samplers.fused.arrays import Array
from ebm_samplers.fused.engine import FusedEnergy, Run
from ebm_samplers.fused.native import COMPILING
from ebm_samplers.fused.precision import exact_products
from ebm_samplers.fused.trace import CannotFuse
from ebm_samplers.fused.trainable import TrainableEnergy, Training

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}
"""How far energies of kernel and torch may be apart, relative to 1 + |E - offset|; gradients ten
times that, relative to 1 and the largest element."""

STATES = 4
"""How many start states are compared."""

MOST_KNOWN = 64
"""So many kinds of states, and sets of modules in training, have kernels at once."""

RETRACES = 5
"""So often an energy may have changed; then it is left to torch."""


@dataclass
class Start:
    """A kernel that agrees with its energy, and chains at their start.

    Attributes:
        fused: The energy's kernels.
        lanes: Chains of a tile.
        parameters: The energy's numbers as they are now.
        offset: Its additive constant.
        run: What the chains' kernel gave.
    """

    fused: FusedEnergy
    lanes: int
    parameters: Array
    offset: float
    run: Run


Begin = Callable[[FusedEnergy, int, Array, float], Run]
"""Lets chains begin, given kernels, lanes, the energy's numbers and its additive constant: what it
gives is thrown away if the kernel turns out not to agree with the energy."""


class NoGain(CannotFuse):
    """There is, or would be, a kernel, but torch is quicker with so many chains."""


class Lookup:
    """The kernels of one energy, by shape, dtype and device of the states; or why there is none.

    The reason is kept as text, since an exception holds on to all that led to it.
    """

    def __init__(self) -> None:
        self.known: dict[Any, FusedEnergy | str] = {}
        self.n_retraces = 0

    def start(
        self,
        energy: EnergyFunction,
        x: Tensor,
        sampler: str,
        if_quicker: bool,
        begin: Begin | None,
        training: Training | None = None,
    ) -> Start:
        """Begin chains at ``x``.

        Raises:
            CannotFuse: If there is no kernel that agrees with the energy, or it does not pay.
        """
        kind: Any = (x.shape[1:], x.dtype, x.device, torch.is_autocast_enabled(x.device.type))
        if training is not None:
            kind += training.form
        found = self.known.get(kind)
        if isinstance(found, str):
            raise CannotFuse(found)
        if found is not None:
            try:
                return self._begun(found, energy, x, sampler, if_quicker, begin)
            except NoGain:
                raise
            except CannotFuse:
                pass  # it has changed, or was looked at too early
        with COMPILING:
            if self.known.get(kind) is found:
                make = kernels_for(x.device) if training is None else TrainableEnergy
                return self._traced(found, kind, make, energy, x, sampler, if_quicker, begin)
        # another thread was quicker
        return self.start(energy, x, sampler, if_quicker, begin, training)

    def _traced(
        self,
        old: FusedEnergy | None,
        kind: Any,
        make: type[FusedEnergy],
        energy: EnergyFunction,
        x: Tensor,
        *how: Any,
    ) -> Start:
        """Begin chains with a kernel that is new, or in the place of an old one."""
        if old is not None:
            self.n_retraces += 1
            if self.n_retraces > RETRACES:
                changing = self.known[kind] = (
                    f"forward has changed {RETRACES} times since it was first traced, by more "
                    "than its parameters: keep numbers that change in buffers of the energy"
                )
                raise CannotFuse(changing)
        if len(self.known) >= MOST_KNOWN:
            del self.known[next(iter(self.known))]
        try:
            fused = self.known[kind] = make(energy, x)
            return self._begun(fused, energy, x, *how)
        except NoGain:
            raise
        except CannotFuse as reason:
            self.known[kind] = str(reason)
            raise

    def _begun(
        self,
        fused: FusedEnergy,
        energy: EnergyFunction,
        x: Tensor,
        sampler: str,
        if_quicker: bool,
        begin: Begin | None,
    ) -> Start:
        reason = fused.slower(energy, x, sampler) if if_quicker else None
        if reason is not None:
            raise NoGain(reason)
        return compared(fused, energy, x, sampler, begin)


def kernels_for(device: torch.device) -> type[FusedEnergy]:
    """The class of kernels for states on a device.

    Raises:
        CannotFuse: If CUDA kernels cannot be made here.
    """
    if device.type != "cuda":
        return FusedEnergy
    from ebm_samplers.fused.cuda.energy import CudaEnergy

    return CudaEnergy


_lookups: WeakKeyDictionary[EnergyFunction, Lookup] = WeakKeyDictionary()


def fused_start(
    energy: EnergyFunction,
    x: Tensor,
    sampler: str,
    if_quicker: bool = False,
    begin: Begin | None = None,
    training: Training | None = None,
) -> Start:
    """Begin chains at ``x`` with a kernel that agrees with the energy there.

    Args:
        energy: The energy, in eval mode and without autograd; traced on first use, and again when
            its kernel no longer agrees with it.
        x: Start states, ``(chain, *event)``.
        sampler: Whose kernel, see `FusedEnergy.kernel`.
        if_quicker: Refuse where torch is quicker, see `FusedEnergy.slower`.
        begin: Launches the sampler's kernel on ``x``; None for a run of no transitions.
        training: For kernels of a `TrainableEnergy`, of the energy in its present mode.

    Raises:
        CannotFuse: If there is no such kernel.
    """
    lookup = _lookups.get(energy)
    if lookup is None:
        lookup = _lookups[energy] = Lookup()
    return lookup.start(energy, x, sampler, if_quicker, begin, training)


def fused_energy(energy: EnergyFunction, x: Tensor, sampler: str = "energy") -> FusedEnergy:
    """The kernels of an energy for states like ``x``, compared with torch as in `fused_start`."""
    with evaluation_mode(energy), torch.inference_mode(False), torch.no_grad():
        return fused_start(energy, x, sampler).fused


def compared(
    fused: FusedEnergy, energy: EnergyFunction, x: Tensor, sampler: str, begin: Begin | None = None
) -> Start:
    """Begin chains at ``x``, and compare energies with torch's on up to four of them.

    Raises:
        CannotFuse: If they differ.
    """
    lanes = fused.lanes_for(sampler, len(x))
    p, offset = fused.parameters(sampler, lanes)
    first = x if len(x) <= STATES else x[:STATES]
    if (sampler, lanes) not in fused.checked:
        _compare_thoroughly(fused, energy, x, sampler, lanes)
    elif alike(fused.flat(first)):
        _compare_elsewhere(fused, energy, x, sampler, lanes)
    with exact_products():
        want = fused.probe(energy)(first)
    if begin is None:
        run = fused.start(fused.flat(x), sampler, lanes, p, offset)
    else:
        run = begin(fused, lanes, p, offset)
    _require_close(fused, run, offset, want, min(len(x), STATES))
    return Start(fused, lanes, p, offset, run)


def _compare_thoroughly(
    fused: FusedEnergy, energy: EnergyFunction, x: Tensor, sampler: str, lanes: int
) -> None:
    """Compare energies and gradients on states that differ.

    A kernel stops being new when it agreed on three states of finite energy.
    """
    x = x[:STATES]
    states = torch.cat([x, _neighbours(x)])
    p, offset = fused.parameters(sampler, lanes)
    run = fused.start(fused.flat(states), sampler, lanes, p, offset)
    with exact_products():
        want, slopes = fused.wanted(energy, states)
    _require_close(fused, run, offset, want, len(states))
    tolerance = 10 * TOLERANCE[fused.dtype]
    largest = [max((abs(n) for n in row if math.isfinite(n)), default=0.0) for row in slopes]
    found = zip(fused.slopes(run), slopes, fused.units(largest), strict=True)
    for row, wanted, unit in found:
        allowed = [tolerance * unit] * len(wanted)
        if len(row) != len(wanted) or not all(map(_close, row, wanted, allowed)):
            raise CannotFuse("the kernel's derivatives differ from autograd's")
    if want.isfinite().sum() >= 3:
        fused.checked.add((sampler, lanes))


def _compare_elsewhere(
    fused: FusedEnergy, energy: EnergyFunction, x: Tensor, sampler: str, lanes: int
) -> None:
    """Compare energies near the start states, too.

    At one place, a minimum for example, energies may be the same though the energy has changed.
    """
    states = _neighbours(x)
    p, offset = fused.parameters(sampler, lanes)
    run = fused.start(fused.flat(states), sampler, lanes, p, offset)
    with exact_products():
        want = fused.probe(energy)(states)
    _require_close(fused, run, offset, want, len(states))


def alike(states: Any) -> bool:
    """Whether all are the same state; mostly the first and the last tell."""
    return bool((states[0] == states[-1]).all() and (states == states[:1]).all())


def _require_close(fused: FusedEnergy, run: Run, offset: float, expected: Tensor, n: int) -> None:
    """Compare the first ``n`` energies at the start of a run with what they should be."""
    began = run.notes[1, :n]
    if not agree(fused, began, offset, expected):
        have = [energy + offset for energy in began.tolist()]
        raise CannotFuse(
            f"the kernel gives energies {_few(have)} where forward gives "
            f"{_few(expected.tolist())}: forward mixes the states of a batch, or uses numbers that "
            "have changed since it was traced"
        )


def agree(fused: FusedEnergy, began: Array, offset: float, expected: Tensor) -> bool:
    """Whether a run's energies at its start, without the offset, are what they should be."""
    if expected.shape != began.shape:
        return False
    wanted = expected.tolist()
    limits = fused.allowed(wanted, offset, TOLERANCE[fused.dtype])
    for a, b, allowed in zip(began.tolist(), wanted, limits, strict=True):
        if not abs(a + offset - b) <= allowed < math.inf and not _close(a + offset, b, allowed):
            return False
    return True


def _neighbours(x: Tensor) -> Tensor:
    """Three more states near the first, all different, so that a batch has states that differ."""
    numbers = torch.arange(3 * x[0].numel(), dtype=x.dtype, device=x.device).reshape(
        3, *x.shape[1:]
    )
    return x[:1] + 0.4 * torch.sin(1.0 + 2.4 * numbers)


def _close(a: float, b: float, tolerance: float) -> bool:
    """Whether two numbers agree; of what is not finite, only that it is not."""
    if not math.isfinite(b):
        return not math.isfinite(a)
    return abs(a - b) <= tolerance


def _few(numbers: Any) -> str:
    return ", ".join(f"{number:.6g}" for number in np.ravel(numbers)[:STATES])
