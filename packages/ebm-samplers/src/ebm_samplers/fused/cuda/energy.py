"""Energies as kernels on CUDA devices: `FusedEnergy` with tensors in the place of arrays."""

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebm_core.energy import EnergyFunction
from ebm_samplers.captured import graphs_wanted
from ebm_samplers.fused.arrays import spread
from ebm_samplers.fused.cuda._backend import numba_cuda, simulated
from ebm_samplers.fused.cuda.kernel import CudaKernel
from ebm_samplers.fused.cuda.parameters import CudaParameters
from ebm_samplers.fused.cuda.source import device_source
from ebm_samplers.fused.cuda.trial import Trial, tried
from ebm_samplers.fused.engine import FusedEnergy, Launch, Run, Slots
from ebm_samplers.fused.kernels import CARRIED, STATISTICS, USUAL
from ebm_samplers.fused.precision import preferred_precision
from ebm_samplers.fused.trace import CannotFuse

OPERATIONS, OPERATION = 1e12, 3e-9
"""Scalar operations a second of all threads together, and seconds of one in a thread: guesses."""

UNTRIED = 2_000
"""Scalar operations up to which a kernel is taken untried, since torch has some twenty kernels to
launch for them: a guess, and a small one."""

MOST = 400_000
"""Scalar operations beyond which it is not tried: with `OPERATION` a thread would take a
millisecond."""

LOCAL_SHARE = 1 / 8
"""Of a device's memory, which drivers may set aside for the local memory of all its threads."""

MOST_STATES = 2**18
"""States of a trial, so that its time and memory are bounded."""

LARGEST_STATE = 128
"""Elements of a state that a thread may hold; beyond, torch's batches are left to it."""


class CudaEnergy(FusedEnergy):
    """An energy as kernels, for states of one shape and dtype on one CUDA device.

    The attributes are those of `FusedEnergy`; what are arrays there are tensors here, some of them
    transposed views.
    """

    rate: float = OPERATIONS
    keeps_slopes = False
    """A thread would need half more registers (Langevin of a perceptron 88 instead of 56)."""

    def __init__(self, energy: EnergyFunction, x: Tensor) -> None:
        self.device = x.device
        if x[0].numel() > LARGEST_STATE:
            raise CannotFuse(
                f"states have {x[0].numel()} elements; on CUDA kernels are for {LARGEST_STATE}"
            )
        numba_cuda()
        super().__init__(energy, x)

    def runs_on(self, device: torch.device) -> bool:
        """CUDA devices; in the simulator, the CPU."""
        return device.type == ("cpu" if simulated() else "cuda")

    def prepare(self) -> None:
        """Arguments that are mostly the same."""
        self.layout = CudaParameters(self.layout)
        self._unit: Tensor = self._full((1, self.size), 1)
        self._nothing: Tensor = self._full((0, 0, self.size), 1)
        self._known_offset: tuple[Tensor | None, float] = None, 0.0
        self._trials: dict[Any, Trial] = {}  # by sampler, bits of the number, and precision
        self.wait()  # they are for all streams

    def lanes(self, n_chains: int) -> int:
        """A thread has one chain."""
        return 1

    def make_kernel(self, sampler: str, lanes: int, dense: bool = False) -> CudaKernel:
        """A kernel for this device."""
        double = self.dtype == torch.float64
        title = f"{sampler} on an energy of {self.size} elements"
        return CudaKernel(device_source(self.program, sampler, double, title, dense), double)

    def parameters(self, sampler: str, lanes: int) -> tuple[Any, float]:
        """The energy's numbers as they are now, and its additive constant."""
        p: Any = self.layout.now()
        known, offset = self._known_offset
        if p is not known:
            kernel = self.kernel(sampler, lanes)
            depends = known is None or kernel.space["OFFSET_VARIES"]
            offset = kernel.offset(p.cpu().numpy()) if depends else offset
            self._known_offset = p, offset
        return p, offset

    def start(
        self, x: Any, sampler: str, lanes: int, p: Any, offset: float, **constants: Any
    ) -> Run:
        """A run of no transitions from positions ``(chain, d)``."""
        if sampler != "energy":
            return super().start(x, sampler, lanes, p, offset, **constants)
        n_chains = len(x)
        state, notes = self._empty(2 * self.size + 1, n_chains), self._empty(3, n_chains)
        given = {"p": p, "source": x.t().contiguous(), "state": state, "n_chains": n_chains}
        self.kernel(sampler, lanes)(given, n_chains, self.device)
        notes[1] = state[-1]
        slots = self.slots(sampler, n_chains, 0)
        return Run(state.t(), slots.draws, slots.statistics, notes)  # type: ignore[arg-type]

    def launch(  # type: ignore[override]
        self,
        sampler: str,
        x: Tensor | None,
        *,
        n_steps: int,
        step_size: Any,
        key: int,
        noise_scale: Any = 1.0,
        friction: Any = None,
        lengths: Any = 1,
        leapfrogs: float | None = None,  # of no use: threads are not counted by work
        inverse_mass: Any = None,
        mass_root: Any = None,
        beta: Tensor | None = None,
        state: Tensor | None = None,
        first_chain: int = 0,
        first_step: int = 0,
        thin: int | None = None,
        keep_draws: bool = False,
        slots: Slots | None = None,
        parameters: Tensor | None = None,
        offset: float | None = None,
        lanes: int | None = None,
    ) -> Launch:
        """Make ready to advance chains by ``n_steps`` transitions; see `FusedEnergy.launch`."""
        rows = state if x is None else self.fresh(sampler, x)
        assert rows is not None
        n_chains = len(rows)
        if parameters is None or offset is None:
            parameters, offset = self.parameters(sampler, 1)
        thin = thin or max(n_steps, 1)
        if slots is None:
            slots = self.slots(sampler, n_chains, n_steps // thin, keep_draws)
        after, notes = self._empty(self.width(sampler), n_chains), self._empty(3, n_chains)
        sizes = self._column(step_size, self.dtype)
        spreads = self._column(spread(step_size, noise_scale, friction), self.dtype)
        leaps = self._column(lengths, torch.int64)
        mass = self._matrix(inverse_mass)
        given = {
            "p": parameters,
            "offset": offset,
            "n_chains": n_chains,
            "source": rows.t().contiguous(),
            "fresh": int(x is not None),
            "state": after,
            "beta": self._full((n_chains,), 1) if beta is None else self._given(beta),
            "step_size": sizes,
            "spread": spreads,
            "lengths": leaps,
            "size_stride": int(len(sizes) > 1),
            "spread_stride": int(len(spreads) > 1),
            "length_stride": int(len(leaps) > 1),
            "mass": mass,
            "root": self._matrix(mass_root),
            "key": np.uint64(key),
            "first_chain": first_chain,
            "first_step": first_step,
            "n_steps": n_steps,
            "thin": thin,
            "first_slot": slots.first,
            "n_slots": slots.statistics.shape[2],
            "n_draws": slots.draws.shape[1],
            "draws": _memory(slots.draws),
            "statistics": _memory(slots.statistics),
            "notes": notes,
        }
        kernel = self.kernel(sampler, 1, len(mass) > 1)
        result = Run(after.t(), slots.draws, slots.statistics, notes)  # type: ignore[arg-type]
        return Launch(lambda _, given: kernel(given, n_chains, self.device), 0.0, given, result)

    def fresh(self, sampler: str, x: Any) -> Any:
        """What a kernel enters of fresh chains at positions ``(chain, d)``."""
        missing = self.width(sampler) - x.shape[1]
        if sampler not in CARRIED or not missing:
            return x
        return torch.nn.functional.pad(x, (0, missing))

    def slots(self, sampler: str, n_chains: int, n_slots: int, keep_draws: bool = True) -> Slots:
        """Room for draws and statistics, with the chains along the last axis of the memory."""
        draws: Any = self._nothing
        if keep_draws:
            draws = self._empty(n_slots, self.size, n_chains).permute(2, 0, 1)
        n_statistics = STATISTICS.get(sampler, USUAL)
        statistics: Any = self._empty(n_statistics, n_slots, n_chains).transpose(1, 2)
        return Slots(draws, statistics)

    def energies(self, state: Any, offset: float) -> Any:
        """E with its additive constant, ``(chain,)``, in a state of the chains."""
        return state[:, 2 * self.size] + offset

    def flat(self, x: Tensor) -> Any:
        """States ``(chain, *event)`` as ``(chain, d)``."""
        if x._is_zerotensor():
            x = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        return x.detach().resolve_neg().reshape(len(x), -1)

    def copied(self, part: Any, shape: tuple[int, ...]) -> Tensor:
        """A part of a state of the chains as a tensor of its own."""
        copy: Tensor = part.clone(memory_format=torch.contiguous_format)
        return copy.view(shape)

    def any(self, flags: Any) -> bool:
        """Whether one of these numbers is not 0; waits for the device."""
        return bool(flags.any())

    def slower(self, energy: EnergyFunction, x: Tensor, sampler: str) -> str | None:
        """Why torch would be quicker, in CUDA graphs: found out once for about so many chains.

        Where torch would issue step by step, it is not asked: without graphs, and by NUTS, whose
        steps look at what the device found.
        """
        if self.n_operations > MOST:
            return (
                f"it takes {self.n_operations:,} scalar operations at each state, and beyond "
                f"{MOST:,} many threads at each are quicker than one"
            )
        kernel = self.kernel(sampler, 1)
        numbers = sum(kernel.space[name] for name in ("ROWS", "NORMALS", "UNIFORMS", "STACK"))
        local = numbers * x.element_size()
        if local > self._most_local:
            return (
                f"each thread would take {local:,} bytes of local memory, and with more than "
                f"{self._most_local:,.0f} all of them could fill an eighth of the device's memory"
            )
        if self.n_operations <= UNTRIED or sampler == "nuts" or not graphs_wanted():
            return None
        x = x[:MOST_STATES]
        about = sampler, len(x).bit_length(), preferred_precision()
        if about not in self._trials:
            p, offset = self.parameters(sampler, 1)
            run = {"n_steps": 0, "step_size": 0.0, "key": 0, "parameters": p, "offset": offset}
            launch = self.launch(sampler, self.flat(x), **run)
            by_torch = functools.partial(energy.energy_and_gradient, x)
            kinds = [type(module).__qualname__ for module in energy.modules()]
            names = "\0".join((*kinds, kernel.source))
            self._trials[about] = tried(names, launch, by_torch, len(x), self.device)
        trial = self._trials[about]
        return str(trial) if trial.torch < trial.kernel else None

    @functools.cached_property
    def _most_local(self) -> float:
        """Bytes that a thread may take of its device's memory."""
        if self.device.type != "cuda":
            return math.inf
        device = torch.cuda.get_device_properties(self.device)
        n_threads = device.multi_processor_count * device.max_threads_per_multi_processor
        return LOCAL_SHARE * float(device.total_memory) / n_threads

    def seconds(self, n_chains: int) -> float:
        """What a transition takes, from what launches have shown or devices can do."""
        operations = self.n_operations + 40 * self.size
        return max(n_chains * operations / self.rate, operations * OPERATION)

    def wait(self) -> None:
        """Until what was launched on the current stream has run."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def tensor(self, values: Any) -> Tensor:
        """What is a tensor already."""
        assert isinstance(values, Tensor)
        return values

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _full(self, shape: tuple[int, ...], value: float) -> Tensor:
        return torch.full(shape, value, dtype=self.dtype, device=self.device)

    def _column(self, values: Any, dtype: torch.dtype) -> Tensor:
        """A value for each transition, or one for all."""
        if isinstance(values, np.ndarray):
            return torch.from_numpy(values).to(self.device, dtype, non_blocking=True)
        return _one(float(values), dtype, self.device)

    def _given(self, values: Any) -> Tensor:
        """An array or tensor as a contiguous tensor on the device."""
        return torch.as_tensor(values).to(self.device, self.dtype).contiguous()

    def _matrix(self, values: Any) -> Tensor:
        """A mass."""
        return self._unit if values is None else self._given(values)


@functools.lru_cache(maxsize=64)
def _one(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    one = torch.full((1,), value, dtype=dtype, device=device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # it is for all streams
    return one


def _memory(view: Any) -> Tensor:
    """The memory of a transposed view, in the order in which it lies."""
    order = sorted(range(view.ndim), key=lambda axis: -view.stride(axis))
    memory: Tensor = view.permute(order)
    return memory
