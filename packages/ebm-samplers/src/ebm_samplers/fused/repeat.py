"""A `sample_chain` made again: what a loss pays for, at each training step, beside the steps.

The kernel's arguments stand ready in memory that is used again, so that little is left to do but to
compare: parameters with those packed last, energies with ``forward``, states with finite numbers.
Where anything is not as it was, `Repeat` steps aside without having changed anything, and the call
is made the general way, which finds out what to say of it.
"""

import functools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_core import evaluation_mode
from ebm_samplers.acceptance import RESOLUTION
from ebm_samplers.fused.arrays import column, plain
from ebm_samplers.fused.engine import FusedEnergy, Launch
from ebm_samplers.fused.kernel import address
from ebm_samplers.fused.lookup import STATES, agree, alike
from ebm_samplers.fused.noise import fill_rows
from ebm_samplers.fused.precision import exact_products
from ebm_samplers.fused.trace import CannotFuse

if TYPE_CHECKING:
    from ebm_samplers.sampler import MarkovSampler

Array = NDArray[Any]

UNIFORMS = 256
"""How many uniforms that all chains share are made at once for short runs, which often follow each
other."""


@dataclass
class LastCall:
    """What the last ``sample_chain`` was about; to set it on a module itself takes long."""

    rate: Tensor | float | None = None
    dtype: torch.dtype = torch.float32
    repeat: "Repeat | None" = None


class Repeat:
    """A call of ``sample_chain`` that was one launch on the CPU, ready to be made again.

    A sampler forgets it when one of its attributes is set, and its copies do not get it.

    Args:
        sampler: Whose call it was: without adaptation, schedules, or anything that its chains carry
            beside positions.
        fused: The kernels of its energy.
        kernel: Its kernel's name.
        lanes: Chains of a tile.
        shape: Of the states, ``(chain, *event)``.
        n_steps: Number of transitions.
        launch: The launch, whose memory is used again.
    """

    def __init__(
        self,
        sampler: "MarkovSampler",
        fused: FusedEnergy,
        kernel: str,
        lanes: int,
        shape: torch.Size,
        n_steps: int,
        launch: Launch,
    ) -> None:
        self.energy, self.fused, self.launch = sampler.energy, fused, launch
        self.kernel, self.lanes, self.shape, self.n_steps = kernel, lanes, shape, n_steps
        launch.source = None  # the states of the first call
        self.values = {name: setting.value for name, setting in sampler.settings.items()}
        self.n_compared = min(shape[0], STATES)
        self.each = np.ones(shape[0], fused.real)
        run = launch.run
        self.largest, began, self.wild = run.notes  # the same memory at each call, as all of these
        self.began = began[: self.n_compared]
        self.acceptance = run.acceptance[:, 0]
        self.positions = run.state[:, : fused.size]
        self.key, self.counter = 0, 0
        self.lengths: Any = None  # held while the kernel reads them
        self._lock = threading.Lock()

    def again(
        self, sampler: "MarkovSampler", x: Tensor, n_steps: int, key: int, counter: int
    ) -> tuple[Tensor, float | None] | None:
        """Make the call.

        Args:
            sampler: Whose call it is; not held, since it holds this.
            x: Start states.
            n_steps: Number of transitions.
            key: The 64-bit seed.
            counter: Number of the first transition in the random streams.

        Returns:
            Final states and the mean acceptance rate (None without an accept test); None if this
            call is another, or has something to say.
        """
        if not self._fits(sampler, x, n_steps) or not self._lock.acquire(blocking=False):
            return None
        try:
            self.key, self.counter = key, counter
            with evaluation_mode(self.energy), torch.no_grad():
                return self._made(sampler) if self._holds(sampler, x) else None
        except CannotFuse:
            return None
        finally:
            self._lock.release()

    def _fits(self, sampler: "MarkovSampler", x: Tensor, n_steps: int) -> bool:
        """Whether the call is of the same kind."""
        return (
            type(x) is Tensor
            and n_steps == self.n_steps
            and x.shape == self.shape
            and x.dtype is self.fused.dtype
            and x.device.type == "cpu"
            and x.layout is torch.strided
            and {name: at.value for name, at in sampler.settings.items()} == self.values
            and not sampler.kernel_constants(x)
            and not torch.is_inference_mode_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not x.is_inference()
        )

    def _holds(self, sampler: "MarkovSampler", x: Tensor) -> bool:
        """Launch, and see whether nothing speaks against it."""
        fused, launch, given = self.fused, self.launch, self.launch.given
        given["p"], given["offset"] = fused.parameters(self.kernel, self.lanes)
        if x.is_contiguous() and not x.is_neg() and not x._is_zerotensor():
            given["source"] = x.data_ptr()
        else:
            states = plain(fused.flat(x), fused.real)
            given["source"] = address(states)
        given["key"], given["first_step"] = self.key, self.counter
        lengths = sampler.kernel_final_lengths(self.n_steps, self._uniforms)
        self.lengths, given["lengths"] = column(lengths, np.int64)
        given["length_stride"] = len(self.lengths) > 1
        n = self.n_compared
        first = x if n == self.shape[0] else x[:n]
        if n > 1 and alike(fused.flat(first)):
            return False  # looked at more closely
        with exact_products():
            expected = self.energy(first)
        launch()
        fine = not self.wild.dot(self.wild) and agree(fused, self.began, given["offset"], expected)
        return fine and (not sampler.adjusted or self._is_resolved())

    def _is_resolved(self) -> bool:
        """Whether energies are small enough for accept tests; their norm is quicker than max."""
        largest, bound = self.largest, RESOLUTION / self.fused.eps
        return bool(largest.dot(largest) <= bound * bound or largest.max() <= bound)

    def _made(self, sampler: "MarkovSampler") -> tuple[Tensor, float | None]:
        final = self.fused.copied(self.positions, self.shape)
        if not sampler.adjusted:
            return final, None
        rate = self.acceptance.dot(self.each) / (self.n_steps * self.shape[0])
        return final, float(rate)

    def _uniforms(self, stream: int, n: int) -> Array:
        return shared_uniforms(self.key, self.counter, stream, n)


def shared_uniforms(key: int, counter: int, stream: int, n: int) -> Array:
    """Uniforms of ``n`` transitions from step ``counter`` on that all chains share."""
    block, first = divmod(counter, UNIFORMS)
    if first + n <= UNIFORMS:
        return _uniforms(key, stream, block * UNIFORMS, UNIFORMS)[first : first + n]
    return _uniforms.__wrapped__(key, stream, counter, n)


@functools.lru_cache(maxsize=8)
def _uniforms(key: int, stream: int, first: int, n: int) -> Array:
    """Uniforms of steps ``first`` to ``first + n - 1`` of chain 0."""
    out = np.empty((1, n), np.float32)
    fill_rows(out, True, key, stream, 0, first)
    uniforms: Array = out[0].astype(np.float64)
    return uniforms
