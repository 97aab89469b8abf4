"""Random numbers for torch: tensors filled from Philox's streams, and the numbers of each step.

Which number goes where is fixed by `ebm_samplers.philox`; nothing here has any state that matters.
`Noise` makes the numbers of several steps at a time, because a call costs more than a few numbers
do; by the layout, how many it makes at once changes nothing.
"""

import math
import warnings

import torch
from torch import Tensor

from ebm_core import ConfigurationError, ShapeError
from ebm_samplers.fused.cuda._backend import CudaUnavailableError
from ebm_samplers.fused.noise import fill_rows

_ELEMENTS_AT_ONCE = 2**16
_STEPS_AT_ONCE = 64


def fill_normals(
    out: Tensor, key: int, stream: int, first_chain: int = 0, first_index: int = 0
) -> Tensor:
    """Fill a tensor with standard normals.

    Element (i, j) is normal first_index + j of chain first_chain + i.

    Args:
        out: Floating tensor ``(chain, k)`` on any device; overwritten.
        key: The 64-bit seed.
        stream: Number of the stream, see `Stream`.
        first_chain: Number of the chain of row 0.
        first_index: Number of the first normal within its chain.

    Returns:
        ``out``.

    Raises:
        ShapeError: If ``out`` has not two axes.
        ConfigurationError: If a number does not fit into its words of the counter.

    Example:
        >>> fill_normals(torch.empty(2, 2), key=0, stream=1)
        tensor([[ 1.6512,  0.8456],
                [-0.1750,  0.3935]])
    """
    return _fill(out, False, key, stream, first_chain, first_index)


def fill_uniforms(
    out: Tensor, key: int, stream: int, first_chain: int = 0, first_index: int = 0
) -> Tensor:
    """Fill a tensor with uniforms in (0, 1), never 0 or 1; otherwise as `fill_normals`.

    In half precision, those near 1 are rounded to it.
    """
    return _fill(out, True, key, stream, first_chain, first_index)


def _fill(
    out: Tensor, uniform: bool, key: int, stream: int, first_chain: int, first_index: int
) -> Tensor:
    if out.ndim != 2:
        raise ShapeError(f"out has shape {tuple(out.shape)}", "(chain, k)", "reshape out")
    check_counter(key, stream, first_chain, len(out), first_index, out.shape[1])
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    place = uniform, key, stream, first_chain, first_index
    if out.device.type == "cuda" and not _unable and _filled_there(out, dtype, place):
        return out
    direct = out.device.type == "cpu" and out.dtype == dtype and out.is_contiguous()
    target = out.detach() if direct else torch.empty(out.shape, dtype=dtype, device="cpu")
    fill_rows(target.numpy(), *place)
    return out if direct else out.copy_(target)


_unable: set[str] = set()
"""Why numbers cannot be made on CUDA devices: then they are made here, and copied."""


def _filled_there(out: Tensor, dtype: torch.dtype, place: tuple[bool, int, int, int, int]) -> bool:
    try:
        from ebm_samplers.fused.cuda.noise import fill_rows as fill_rows_on_device

        direct = out.dtype == dtype and out.is_contiguous()
        target = out.detach() if direct else torch.empty_like(out, dtype=dtype).contiguous()
        fill_rows_on_device(target, *place)
    except Exception as error:
        _unable.add(str(error))
        if not isinstance(error, CudaUnavailableError):  # of which the engines warn
            text = f"random numbers are made on the CPU and copied: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return False
    if not direct:
        out.copy_(target)
    return True


def check_counter(
    key: int, stream: int, first_chain: int, n_chains: int, first_index: int, n: int
) -> None:
    """Refuse numbers of chains, and so on, that do not fit into their words of the counter."""
    for name, value, below in (
        ("key", key, 2**64),
        ("stream", stream, 2**32),
        ("first_chain", first_chain, 2**32 - n_chains + 1),
        ("first_index", first_index, 2**64 - n),
    ):
        if not 0 <= value < below:
            raise ConfigurationError(
                f"{name} is {value}", f"an integer from 0 to {below - 1}", f"pass another {name}"
            )


class Noise:
    """The random numbers of chains, step by step.

    Args:
        key: The 64-bit seed.
        first_chain: Number of the first chain.
        like: A batch of states ``(chain, *event)``: gives shape, dtype and device.

    Attributes:
        block: For how many steps numbers are made at a time; some 64 Ki elements, or a few states
            if those are larger.
    """

    def __init__(self, key: int, first_chain: int, like: Tensor) -> None:
        self.key = key
        self.first_chain = first_chain
        self.like = like
        self.size = math.prod(like.shape[1:])
        least = 4 // math.gcd(4, self.size)  # steps that share a block of Philox
        self.block = max(least, min(_STEPS_AT_ONCE, _ELEMENTS_AT_ONCE // max(1, like.numel())))
        self.open(0, 0)

    def open(self, first_step: int, n_steps: int) -> None:
        """Make ready for the steps ``first_step``, …, ``first_step + n_steps - 1``."""
        self.first_step, self.n_steps = first_step, n_steps
        self._normals: dict[int, tuple[Tensor, ...]] = {}
        self._uniforms: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._shared: dict[int, list[float]] = {}

    def normals(self, stream: int, step: int) -> Tensor:
        """Standard normals of a step, ``(chain, *event)``; of one call each, not to be modified."""
        if stream not in self._normals:
            out = self._empty(self.n_steps * self.size)
            fill_normals(out, self.key, stream, self.first_chain, self.first_step * self.size)
            steps = out.view(len(out), self.n_steps, *self.like.shape[1:])
            self._normals[stream] = steps.unbind(1)
        return self._normals[stream][step - self.first_step]

    def uniforms(self, stream: int, step: int) -> Tensor:
        """Uniforms in (0, 1) of a step, ``(chain,)``, of float32 at least."""
        return self.uniforms_all(stream, 1, step)[:, 0]

    def uniforms_all(self, stream: int, per_step: int, step: int) -> Tensor:
        """All of the ``per_step`` uniforms of a step, ``(chain, per_step)``, likewise."""
        kind = stream, per_step
        if kind not in self._uniforms:
            # Rounded to half precision, they would be above a probability near 1 far too often.
            out = self._empty(self.n_steps * per_step)
            out = out if out.dtype == torch.float64 else out.float()
            fill_uniforms(out, self.key, stream, self.first_chain, self.first_step * per_step)
            self._uniforms[kind] = out.view(len(out), self.n_steps, per_step).unbind(1)
        return self._uniforms[kind][step - self.first_step]

    def uniforms_of(self, stream: int, per_step: int, step: int, first: int, n: int) -> Tensor:
        """Of the ``per_step`` uniforms of a step ``n`` from number ``first`` on: ``(chain, n)``."""
        first += step * per_step
        return fill_uniforms(self._empty(n), self.key, stream, self.first_chain, first)

    def shared_uniform(self, stream: int, step: int) -> float:
        """A uniform in (0, 1) of a step that all chains share, whatever their numbers."""
        if stream not in self._shared:
            out = fill_uniforms(
                torch.empty(1, self.n_steps, device="cpu"), self.key, stream, 0, self.first_step
            )
            self._shared[stream] = out[0].tolist()
        return self._shared[stream][step - self.first_step]

    def _empty(self, length: int) -> Tensor:
        dtype = self.like.dtype if self.like.is_floating_point() else torch.float32
        return torch.empty((len(self.like), length), dtype=dtype, device=self.like.device)
