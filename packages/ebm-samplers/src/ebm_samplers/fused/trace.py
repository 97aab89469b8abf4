"""What an energy's ``forward`` and its gradient do, recorded as a list of ATen operations.

An energy is run once, on a batch of ONE state (so that ``x[:, 0]``, ``flatten(1)`` and ``sum(1)``
mean what their author meant), under ``torch.func.functionalize``, and differentiated by autograd. A
dispatch mode below both sees every operation that is left, forward and backward, with real tensors,
and writes it down. No symbolic machinery is involved, which keeps the first trace of a process
fast.

- Tensors that no recorded operation made are *leaves*: parameters and buffers, which are looked up
  again by name at each call, and tensors that a function closes over, which are held by reference.
- Operations that the compiler has no rule for are taken apart by ATen's decompositions, until all
  are known or one is refused.
- What depends on the state and cannot be compiled is refused with a `CannotFuse` that names
  operation and line: random numbers, values that leave torch (``.item()``, ``if x.sum() > 0``),
  unknown operations.
"""

import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from ebm_core.energy import EnergyFunction, evaluation_mode

aten = torch.ops.aten

SHAPE_ONLY = {
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.new_full.default,
}
"""Operations that look at the shape of a tensor alone."""

MOST_CALLED = 4096
"""States of a batch with which ``forward`` is called before it is traced, at most."""

STRIDED = {aten.as_strided.default, aten.as_strided_scatter.default}


class CannotFuse(Exception):  # noqa: N818 - a reason, not an error
    """Why an energy has no fused kernel, in words that finish "it is not fused because …"."""


def reason_of(error: BaseException) -> str:
    """The first line of an error, or its kind if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True)
class Leaf:
    """A tensor that comes from outside: where to find it at each call.

    Attributes:
        tensor: The tensor seen by the trace.
        owner: The dictionary of a module that holds it, or None for a tensor held by reference.
        key: Its name there.
    """

    tensor: Tensor
    owner: dict[str, Tensor | None] | None = None
    key: str = ""

    def now(self) -> Tensor | None:
        """The tensor as it is now."""
        return self.tensor if self.owner is None else self.owner.get(self.key)


@dataclass(frozen=True)
class Call:
    """One operation: ``function(*args, **kwargs)``, in which `Ref` stands for an earlier result."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: str


@dataclass(frozen=True)
class Ref:
    """A tensor of the trace: number ``index`` of `Trace.values`."""

    index: int


@dataclass
class Value:
    """What is known of a tensor of the trace.

    Attributes: example: The tensor at the traced state: gives shape and dtype, and the value if
        nothing enters it. call: The operation that made it (and which of its results it is), or
        None for the state and for leaves. leaf: Where it comes from, for leaves. varies: Whether it
        depends on the state. fixed: Whether it depends on nothing: neither on the state nor on a
        leaf.
    """

    example: Tensor
    call: Call | None = None
    part: int = 0
    leaf: Leaf | None = None
    varies: bool = False
    fixed: bool = False


@dataclass
class Trace:
    """The record of an energy and its gradient at one state; value 0 is the state.

    Attributes: values: All tensors. energy, gradient: Which they are. symmetric: Matrices that must
        stay positive definite and well-conditioned, see `algebra`. constants: Values, made from
        leaves, that are part of the program as they were: numbers that ``forward`` read, indices.
        slopes: Derivatives by parameters, None by those that the energy does not depend on.
        exports: What else a kernel is to give.
    """

    values: list[Value] = field(default_factory=list)
    energy: Ref = Ref(0)
    gradient: Ref = Ref(0)
    symmetric: list[Ref] = field(default_factory=list)
    constants: list[tuple[Ref, Tensor]] = field(default_factory=list)
    slopes: list[Ref | None] = field(default_factory=list)
    exports: list[Ref] = field(default_factory=list)

    @property
    def results(self) -> list[Ref]:
        """What a kernel gives."""
        return [self.energy, self.gradient, *self.exports]

    @property
    def leaves(self) -> list[Leaf]:
        """All leaves, in order of appearance."""
        return [value.leaf for value in self.values if value.leaf is not None]


def call_once(energy: EnergyFunction, x: Tensor) -> None:
    """Call an energy before it is traced.

    What ``forward`` makes when it is first called, and keeps (grids, lazy layers, values found from
    the first batch), must be made of tensors, not of what a trace has in their place. One state too
    may be a first: of a cache by the number of states. If it fails, the trace will say why.
    """
    with evaluation_mode(energy), torch.inference_mode(False), torch.no_grad():
        for states in (x[:MOST_CALLED], x[:1]):
            with suppress(Exception):
                energy(states.detach().clone())


def trace(energy: EnergyFunction, x: Tensor, known: Collection[Any]) -> Trace:
    """Record energy and gradient at one state.

    Args:
        energy: The energy; put in eval mode meanwhile.
        x: One state with its batch axis, ``(1, *event)``.
        known: The operations that need not be taken apart.

    Raises:
        CannotFuse: If the energy does something that a kernel cannot do.
    """

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        if type(energy).energy_and_gradient is not EnergyFunction.energy_and_gradient:
            own: tuple[Tensor, Tensor] = energy.energy_and_gradient(x)
            return own
        # Autograd stays outside functionalize where it can: torch.func.grad imports half of
        # torch.compile, which takes seconds, and is needed only where forward writes into parts
        # of tensors.
        energies = torch.func.functionalize(energy)(x)
        if not isinstance(energies, Tensor):
            raise CannotFuse(f"forward gave {type(energies).__name__}, not a tensor")
        if not energies.requires_grad:  # flat, or not differentiable: the comparison will tell
            return energies, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(energies.sum(), x)
        return energies, gradient

    def both_inside(x: Tensor) -> tuple[Tensor, Tensor]:
        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            energies = energy(x)
            return energies.sum(), energies

        def aux_last(x: Tensor) -> tuple[Tensor, Tensor]:
            gradient, energies = torch.func.grad(total, has_aux=True)(x)
            return energies, gradient

        inside: tuple[Tensor, Tensor] = torch.func.functionalize(aux_last)(x)
        return inside

    try:
        return _record(energy, x, known, both)
    except CannotFuse as error:
        if "derivative for aten::" not in str(error) and "writes in place" not in str(error):
            raise
        try:
            return _record(energy, x, known, both_inside)
        except CannotFuse:
            raise error from None


def trace_training(
    energy: EnergyFunction,
    outputs: Callable[[Tensor], tuple[Tensor, ...]],
    x: Tensor,
    known: Collection[Any],
    parameters: Sequence[Tensor],
) -> Trace:
    """Record values at one state and their derivatives by parameters, in the place of a gradient.

    Args:
        energy: Has the parameters; stays in its mode.
        outputs: Gives the values, for a batch, and what else is to be exported.
        x: One state with its batch axis, ``(1, *event)``.
        known: The operations that need not be taken apart.
        parameters: Leaves of the energy.

    Raises:
        CannotFuse: If there is something that a kernel cannot do.
    """

    def results(x: Tensor) -> tuple[Any, ...]:
        values, *others = outputs(x)
        slopes = torch.autograd.grad(values.sum(), parameters, allow_unused=True)
        return values, torch.zeros_like(x), slopes, others

    return _record(energy, x, known, results, nullcontext())


def _record(
    energy: EnergyFunction,
    x: Tensor,
    known: Collection[Any],
    results: Callable[[Tensor], tuple[Any, ...]],
    mode: AbstractContextManager[Any] | None = None,
) -> Trace:
    recorder = _Recorder(energy, known)
    x = x.detach().clone().requires_grad_()
    recorder.begin(x)
    try:
        # inference tensors and grad mode of the caller must not leak into the trace
        with (
            mode or evaluation_mode(energy),
            torch.inference_mode(False),
            torch.enable_grad(),
            recorder,
        ):
            energies, gradient, *further = results(x)
    except CannotFuse:
        raise
    except Exception as error:
        raise CannotFuse(_reason(error)) from error
    return recorder.finish(energies, gradient, *further)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, energy: nn.Module, known: Collection[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.trace = Trace()
        self.refs: dict[int, Ref] = {}  # by id; the tensors are kept alive by trace.values
        self.kept: list[Tensor] = []
        self.inverses: dict[Any, Tensor] = {}
        self.owners: dict[int, Leaf] = {}
        for module in energy.modules():
            stores: Any = (module._parameters, module._buffers)
            for store in stores:
                if not isinstance(store, dict):  # of a module of TorchScript
                    continue
                for key, tensor in store.items():
                    if tensor is not None:
                        self.owners[id(tensor)] = Leaf(tensor, store, key)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import torch._dynamo, which takes seconds

    def begin(self, x: Tensor) -> None:
        self._add(Value(x, varies=True))

    def finish(
        self,
        energies: Any,
        gradient: Tensor,
        slopes: Sequence[Tensor | None] = (),
        others: Sequence[Tensor] = (),
    ) -> Trace:
        x = self.trace.values[0].example
        if not isinstance(energies, Tensor) or energies.shape != x.shape[:1]:
            given = getattr(energies, "shape", type(energies))
            raise CannotFuse(f"forward gave {given} for a batch of one state")
        for tensor in (energies, gradient, *others):
            if tensor.dtype != x.dtype:
                raise CannotFuse(f"the energy of {x.dtype} states is computed in {tensor.dtype}")
        self.trace.energy, self.trace.gradient = self._ref(energies), self._ref(gradient)
        self.trace.slopes = [None if slope is None else self._ref(slope) for slope in slopes]
        self.trace.exports = [self._ref(other) for other in others]
        return self.trace

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        values = [self.trace.values[self._ref(t).index] for t in tensors]
        varies = any(value.varies for value in values)
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise CannotFuse(f"{_name(function)} draws random numbers{_place()}")
        if function._schema.is_mutable:
            return self._in_place(function, args, kwargs)
        if varies and function in STRIDED and not _plain(args[0]):
            raise CannotFuse(f"{_name(function)} looks at the memory behind a view{_place()}")
        if varies and function is aten.linalg_solve_triangular.default and not values[0].varies:
            return self._solved(*args, **kwargs)
        if varies and function not in self.known:
            taken_apart = self._taken_apart(function, args, kwargs)
            if taken_apart is not NotImplemented:
                return taken_apart
            if function is aten._local_scalar_dense.default:
                way = ".item(), if, float()"
                raise CannotFuse(f"a number computed from the state leaves torch ({way}){_place()}")
            raise CannotFuse(f"{_name(function)} has no rule in the compiler{_place()}")
        result = function(*args, **kwargs)
        if not varies and function is aten._local_scalar_dense.default:
            if not values[0].fixed:
                self.trace.constants.append((self._ref(args[0]), args[0].detach().clone()))
            return result
        fixed = all(value.fixed for value in values)
        if function in SHAPE_ONLY:
            varies, fixed = False, True
        call = Call(function, self._replaced(args), self._replaced(kwargs), _place())
        parts = result if isinstance(result, tuple | list) else (result,)
        for part, tensor in enumerate(parts):
            if isinstance(tensor, Tensor) and id(tensor) not in self.refs:
                self._add(Value(tensor, call, part, None, varies, fixed))
        return result

    def _solved(
        self, a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
    ) -> Tensor:
        """A triangular system as a product with the inverse, which torch computes at each call.

        The system with the transposed matrix, in the backward pass, uses the same inverse.
        """
        lower = a.mT if upper else a
        key = (lower.data_ptr(), lower.shape, lower.stride(), unitriangular)
        with self:
            if key not in self.inverses:
                lower = a.transpose(-2, -1) if upper else a
                identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand(a.shape)
                self.inverses[key] = torch.linalg.solve_triangular(
                    lower, identity, upper=False, unitriangular=unitriangular
                )
            inverse = self.inverses[key].transpose(-2, -1) if upper else self.inverses[key]
            return inverse @ b if left else b @ inverse

    def _in_place(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        """An operation on a temporary of the backward pass, as one that makes a new tensor."""
        target: Tensor = args[0]
        place = _place()
        name, overload = str(function).removeprefix("aten.").split(".")
        overload = {"pow_": f"Tensor_{overload}"}.get(name, overload)
        pure = getattr(getattr(aten, name.removesuffix("_"), None), overload, None)
        made_here = id(target) in self.refs and self.trace.values[self.refs[id(target)].index].call
        if place or pure is None or target._is_view() or not made_here:
            raise CannotFuse(f"{_name(function)} writes in place{place}")
        with self:
            result = pure(*args, **kwargs)
        # what was recorded before keeps the old numbers; `kept` keeps ids from being used again
        value = self.trace.values[self._ref(target).index]
        self.kept += [target, value.example]
        value.example = target.detach().clone()
        self.refs[id(target)] = self._ref(result)
        function(*args, **kwargs)
        return target

    def _taken_apart(self, function: Any, args: Any, kwargs: Any) -> Any:
        rule = _decompositions().get(function)
        with self:
            if rule is not None:
                return rule(*args, **kwargs)
            return function.decompose(*args, **kwargs)

    def _ref(self, tensor: Tensor) -> Ref:
        ref = self.refs.get(id(tensor))
        if ref is None:
            leaf = self.owners.get(id(tensor), Leaf(tensor))
            ref = self._add(Value(tensor, leaf=leaf))
        return ref

    def _add(self, value: Value) -> Ref:
        ref = Ref(len(self.trace.values))
        self.trace.values.append(value)
        self.refs[id(value.example)] = ref
        return ref

    def _replaced(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self._ref(tree)
        if isinstance(tree, tuple | list):
            return type(tree)(self._replaced(part) for part in tree)
        if isinstance(tree, dict):
            return {key: self._replaced(part) for key, part in tree.items()}
        return tree


_table: dict[Any, Callable[..., Any]] = {}


def _decompositions() -> dict[Any, Callable[..., Any]]:
    if not _table:
        from torch._decomp import core_aten_decompositions

        _table.update(core_aten_decompositions())
    return _table


def _plain(tensor: Tensor) -> bool:
    """Whether the elements in memory are those of the tensor, in C order."""
    storage = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.is_contiguous() and storage == tensor.numel()


def _name(function: Any) -> str:
    return str(function).removesuffix(".default")


def _place() -> str:
    """The line of the user's code that is running, as " (file:line)"; "" in the backward pass."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if frame.f_code is _BACKWARD:
            return ""
        if module.partition(".")[0] not in _INTERNAL and module != __name__:
            return f" ({frame.f_code.co_filename}:{frame.f_lineno})"
        frame = frame.f_back
        if frame is not None and frame.f_code is _record.__code__:
            return ""
    return ""


_BACKWARD = torch.autograd.graph._engine_run_backward.__code__
_INTERNAL = {"torch", "ebm_core"}


def _reason(error: Exception) -> str:
    if "in-place operation" in str(error):
        return "forward writes in place into the states that it is given; let it begin with a copy"
    for line in reversed(traceback.extract_tb(error.__traceback__)):
        if (
            "/torch/" not in line.filename
            and "/ebm_core/" not in line.filename
            and line.filename != __file__
        ):
            place = f"{line.filename}:{line.lineno}"
            return f"tracing failed with {type(error).__name__}: {error} ({place})"
    return f"tracing failed with {type(error).__name__}: {error}"
