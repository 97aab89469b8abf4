"""Which engine runs a sampler's chains, and why."""

import functools
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import isfunction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ebm_core import ConfigurationError, evaluation_mode, state_options
from ebm_samplers.arguments import checked_states
from ebm_samplers.captured import (
    CannotCapture,
    CapturedChains,
    captured_on,
    explained_graphs,
    require_uncaptured,
)
from ebm_samplers.chains import Chains, Position, TorchChains
from ebm_samplers.fused import CannotFuse, lookup
from ebm_samplers.fused.chains import FusedChains
from ebm_samplers.fused.cuda._backend import CudaUnavailableError

if TYPE_CHECKING:
    from ebm_samplers.sampler import MarkovSampler


@dataclass(frozen=True)
class Explanation:
    """Which engine runs, and why.

    Attributes:
        engine: ``"torch"`` or ``"fused"``.
        reason: Why this one.
        n_operations: Scalar operations of an energy and its gradient; as all that follows, None on
            the torch engine.
        form: ``"straight-line"`` code, or ``"looped"`` over elements.
        lanes: Chains that the kernel advances together.
        cached: Whether the kernel was compiled before, and came from disk.
        seconds: What compiling it took, or loading it.
        source: The generated module.
        graphs: On CUDA devices, how the torch engine issues its steps: as CUDA graphs, or why not;
            None elsewhere.
    """

    engine: str
    reason: str
    n_operations: int | None = None
    form: str | None = None
    lanes: int | None = None
    cached: bool | None = None
    seconds: float | None = None
    source: str | None = None
    graphs: str | None = None

    def __str__(self) -> str:
        """A line, or two."""
        line = f"engine {self.engine!r}: {self.reason}"
        if self.engine == "torch":
            return f"{line}\n{self.graphs}" if self.graphs else line
        origin = "loaded from the cache" if self.cached else "compiled"
        return (
            f"{line}\n{self.n_operations} scalar operations, {self.form}, {self.lanes} lanes, "
            f"{origin} in {self.seconds:.2f} s"
        )


def open_chains(
    sampler: "MarkovSampler", position: Position, check_start: bool, total: int, ahead: int = 0
) -> Chains:
    """Chains of a sampler, on the engine that it asks for.

    See `TorchChains`, `CapturedChains` (the torch engine on CUDA) and `FusedChains`.

    Raises:
        ConfigurationError: If it asks for the fused engine, which cannot run it.
        ConfigurationError: If the caller is capturing a CUDA graph.
        NumericalError: As `TorchChains` and `FusedChains`.
    """
    require_uncaptured(position.x.device)
    if sampler.engine != "torch":
        try:
            return FusedChains(sampler, kernel_of(sampler), position, check_start, ahead)
        except CudaUnavailableError as error:
            if sampler.engine == "fused":
                raise
            _warn_once(str(error))
        except CannotFuse as reason:
            if sampler.engine == "fused":
                TorchChains(sampler, position, check_start)  # the energy's own errors come first
                raise ConfigurationError(
                    f"engine is 'fused', which cannot run this: {reason}",
                    "an energy and states that can be fused",
                    "set engine='auto', or change what the message names",
                ) from reason
    if captured_on(position.x.device):
        with suppress(CannotCapture):
            return CapturedChains(sampler, position, check_start, total)
    return TorchChains(sampler, position, check_start)


def explained(sampler: "MarkovSampler", x: Tensor | None) -> Explanation:
    """The engine for states like ``x``; compiles what it describes."""
    if x is None:
        shape = sampler.energy.event_shape
        if shape is None and sampler.engine == "torch":
            return Explanation("torch", "the sampler was made with engine='torch'")
        if shape is None:
            raise ConfigurationError(
                "x is None, and the energy has no event_shape",
                "states",
                "pass states like those to be sampled",
            )
        device, dtype = state_options(sampler.energy)
        x = torch.zeros(1, *shape, device=device, dtype=dtype)
    x = checked_states(sampler.energy, x, "x")
    explanation = _explained(sampler, x)
    if explanation.engine == "fused" or not captured_on(x.device):
        return explanation
    return replace(explanation, graphs=explained_graphs(sampler, Position(x, key=0)))


def _explained(sampler: "MarkovSampler", x: Tensor) -> Explanation:
    if sampler.engine == "torch":
        return Explanation("torch", "the sampler was made with engine='torch'")
    try:
        kernel = kernel_of(sampler)
        with evaluation_mode(sampler.energy), torch.inference_mode(False), torch.no_grad():
            if_quicker = sampler.engine == "auto"
            start = lookup.fused_start(sampler.energy, x.detach(), kernel, if_quicker)
    except CudaUnavailableError as error:
        return Explanation("torch", f"kernels for CUDA cannot be made here: {error}")
    except CannotFuse as reason:
        insists = "; engine='fused' will raise" if sampler.engine == "fused" else ""
        return Explanation("torch", f"the fused engine cannot run this: {reason}{insists}")
    compiled = start.fused.kernel(kernel, start.lanes)
    return Explanation(
        "fused",
        "the energy has a kernel that agrees with its forward",
        start.fused.n_operations,
        start.fused.form,
        start.lanes,
        compiled.cached,
        compiled.seconds,
        compiled.source,
    )


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(f"chains on CUDA run on the torch engine: {reason}", RuntimeWarning, stacklevel=2)


def kernel_of(sampler: "MarkovSampler") -> str:
    """The name of the kernel whose steps are those of the sampler.

    A class that derives from one with a kernel has it too, unless it changes the step.

    Raises:
        CannotFuse: If there is none.
    """
    kernel, changed, step = _kernel_of(type(sampler))
    if kernel is None:
        raise CannotFuse(f"{type(sampler).__name__} has no kernel")
    changed = changed | (step & vars(sampler).keys())
    if changed:
        raise CannotFuse(f"{type(sampler).__name__} has its own {', '.join(sorted(changed))}")
    return kernel


@functools.cache
def _kernel_of(kind: "type[MarkovSampler]") -> tuple[str | None, set[str], set[str]]:
    """The name of the kernel, the parts of the step that a derived class changed, and all parts."""
    own: set[str] = set()
    for base in kind.__mro__:
        kernel = vars(base).get("kernel")
        if kernel is not None:
            step = {name for name, value in vars(base).items() if isfunction(value)}
            step |= {"start", "evaluate", "transition"}
            return str(kernel), own & step, step
        own |= {name for name in vars(base) if not name.startswith("__")}
    return None, set(), set()
