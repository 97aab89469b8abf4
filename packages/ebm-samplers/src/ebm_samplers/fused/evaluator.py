"""`FusedEvaluator`: the terms of training objectives from kernels, ready for a backward pass."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Size, Tensor

from ebm_core import ConfigurationError
from ebm_core.protocols import Terms
from ebm_core.validation import check_choice
from ebm_samplers.fused.lookup import Start, fused_start
from ebm_samplers.fused.trace import CannotFuse
from ebm_samplers.fused.trainable import Evaluation, Trainable, TrainableEnergy, Training

MOST_KNOWN = 16
"""Objectives, or shapes of their arguments, whose kernels an evaluator keeps."""


class FusedEvaluator:
    """Evaluates terms of objectives by kernels: values and their derivatives by parameters.

    What objectives of ebm-losses take as ``evaluator``. The whole term, second and third
    derivatives of a network included, becomes one kernel on CPUs, whose derivatives by weights are
    put together by products of matrices. Each call compares energies with the energy's ``forward``
    on up to four states, as `fuse` does.

    Torch evaluates what has no kernel: convolutions and parametrised weights, modules with hooks,
    arguments that require gradients themselves, other devices; calls without autograd; and what
    takes it few operations, as energies alone do.

    Args:
        engine: ``"auto"``; ``"fused"`` raises where there is no kernel, says why, and has kernels
            of few operations, too.

    Example:
        >>> from torch import nn
        >>> from ebm_core import as_energy
        >>> net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))
        >>> class Values:
        ...     energy = as_energy(lambda x: net(x).squeeze(1), net)
        ...     def __call__(self, x):
        ...         energies = self.energy(x)
        ...         return energies, energies.detach()
        >>> values, _ = FusedEvaluator("fused")(Values(), torch.randn(128, 2))
        >>> values.mean().backward()
        >>> net[0].weight.grad.shape
        torch.Size([32, 2])
    """

    def __init__(self, engine: str = "auto") -> None:
        self.engine = check_choice("engine", engine, ("auto", "fused"))
        self._known: dict[Any, _Joined] = {}

    def __call__(self, terms: Terms, x: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        """What ``terms(x, *drawn)`` gives, by a kernel if there is one; see `Terms`.

        Raises:
            ConfigurationError: If ``engine`` is "fused", and there is no kernel.
        """
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():  # a validation, say
            return terms(x, *drawn)
        try:
            return self._fused(terms, (x, *drawn))
        except CannotFuse as reason:
            if self.engine == "fused":
                raise ConfigurationError(
                    f"engine is 'fused', and {type(terms).__name__} has no kernel: {reason}",
                    "terms that can be fused",
                    "use FusedEvaluator('auto'), or change what the message names",
                ) from reason
        return terms(x, *drawn)

    def explain(self, terms: Terms, x: Tensor, *drawn: Tensor) -> str:
        """Whether a kernel evaluates them, or why not."""
        try:
            joined = self._joined((x, *drawn), terms)
            with torch.inference_mode(False):
                start = self._start(joined, (x, *drawn), Training(joined))
        except CannotFuse as reason:
            return f"engine 'torch': {reason}"
        return (
            f"engine 'fused': {start.fused.n_operations} scalar operations a state, "
            f"{start.fused.form}, {start.lanes} lanes"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without kernels, which a copy makes anew."""
        return {"engine": self.engine, "_known": {}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.engine!r})"

    def _fused(self, terms: Terms, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for part in parts:
            _check_constant(part, parts[0])
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._functorch.peek_interpreter_stack() is not None
            or torch.autograd.forward_ad._current_level >= 0
        ):
            raise CannotFuse("a transform of torch is at work")
        joined = self._joined(parts, terms)
        training = Training(joined)
        start = self._start(joined, parts, training)
        tensors = *parts, *training.parameters
        found: tuple[Tensor, ...] = _Outputs.apply(joined, training.names, start, *tensors)  # type: ignore[no-untyped-call]
        return found

    def _start(self, joined: "_Joined", parts: Sequence[Tensor], training: Training) -> Start:
        with torch.no_grad(), _unhooked():
            if_quicker = self.engine == "auto"
            return fused_start(joined, _flat(parts), "sensitivities", if_quicker, None, training)

    def _joined(self, parts: Sequence[Tensor], terms: Terms) -> "_Joined":
        shapes = tuple(part.shape[1:] for part in parts)
        key = (terms, shapes)
        try:
            joined = self._known.get(key)
        except TypeError as error:
            raise CannotFuse(f"its terms are not hashable ({error})") from error
        if joined is None:
            if len(self._known) >= MOST_KNOWN:
                with suppress(KeyError, StopIteration, RuntimeError):  # of other threads' doing
                    del self._known[next(iter(self._known))]
            joined = self._known[key] = _Joined(terms, shapes)
        return joined


def _unhooked() -> AbstractContextManager[Any]:
    """What is traced and compared is nobody's graph: hooks on saved tensors would rerun a loss."""
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return nullcontext()
    hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(_itself, _itself)
    return hooks


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _check_constant(part: Tensor, x: Tensor) -> None:
    if part.requires_grad:
        raise CannotFuse("an argument requires gradients")
    if part.is_inference():
        raise CannotFuse("an argument was made in inference mode")
    if part.dtype != x.dtype:
        raise CannotFuse(f"arguments are {x.dtype} and {part.dtype}")
    if part.device.type != "cpu" or part.ndim == 0 or len(part) != len(x) or len(x) == 0:
        raise CannotFuse(f"an argument has shape {tuple(part.shape)} on {part.device}")


def _flat(parts: Sequence[Tensor]) -> Tensor:
    """Arguments side by side, one row for each state."""
    rows = [part.detach().reshape(len(part), -1) for part in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


class _Joined(Trainable):
    """Terms as a function of their arguments in one row."""

    def __init__(self, terms: Terms, shapes: tuple[Size, ...]) -> None:
        super().__init__()
        self.energy = terms.energy  # whose parameters and modes are those of this module
        self.terms, self.shapes = terms, shapes
        self.sizes = [shape.numel() for shape in shapes]

    def parts(self, z: Tensor) -> list[Tensor]:
        """The arguments in rows ``(n, size)``."""
        parts = torch.split_with_sizes(z, self.sizes, 1) if len(self.sizes) > 1 else (z,)
        return [part.view(-1, *s) for part, s in zip(parts, self.shapes, strict=True)]

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the terms give."""
        outputs = self.terms(*self.parts(x))
        if not isinstance(outputs, tuple) or len(outputs) < 2:
            raise CannotFuse(f"{type(self.terms).__name__} does not give terms and energies")
        return outputs

    def witness(self, x: Tensor) -> Tensor:
        """Energies of the first argument."""
        return self.terms.energy(self.parts(x)[0])


class _Outputs(torch.autograd.Function):
    """(joined, names, start, *parts, *parameters) -> values, others."""

    @staticmethod
    def forward(
        ctx: Any, joined: _Joined, names: list[str], start: Start, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        fused, run = start.fused, start.run
        assert isinstance(fused, TrainableEnergy)
        assert isinstance(run, Evaluation)
        ctx.joined, ctx.names, ctx.fused = joined, names, fused
        ctx.save_for_backward(run.exported, *tensors)  # freed with the graph, and kept from changes
        others = fused.others(run.exported)
        ctx.mark_non_differentiable(*others)
        return fused.tensor(fused.energies(run.state, start.offset)), *others

    @staticmethod
    def backward(ctx: Any, slopes: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        exported, *tensors = ctx.saved_tensors
        none = [None] * (3 + len(tensors) - len(ctx.names))
        if torch.is_grad_enabled():  # they will be differentiated once more, which is torch's part
            return *none, *_by_torch(ctx.joined, ctx.names, tensors, slopes)
        return *none, *ctx.fused.by_parameters(exported, slopes)


def _by_torch(
    joined: _Joined, names: list[str], tensors: Sequence[Tensor], slopes: Tensor
) -> list[Tensor | None]:
    """Derivatives of values by parameters as they were, with their history."""
    n = len(tensors) - len(names)
    parts, parameters = tensors[:n], tensors[n:]
    values = torch.func.functional_call(
        joined, dict(zip(names, parameters, strict=True)), (_flat(parts),)
    )
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    found = iter(torch.autograd.grad(values, wanted, slopes, create_graph=True, allow_unused=True))
    return [next(found) if parameter.requires_grad else None for parameter in parameters]
