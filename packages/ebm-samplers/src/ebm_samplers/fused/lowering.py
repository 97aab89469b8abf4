"""From a trace to the program of an energy.

`Lowering` goes through the recorded operations and turns each into an array of expressions by its
rule (`rules`). Only what depends on the state is lowered; what depends on parameters alone is
computed by torch at each call (`parameters`), so that a Cholesky factor or a normalised weight
costs the kernel nothing. Views are lowered in both cases: a matrix and its transpose are then one
parameter.
"""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ebm_samplers.fused.algebra import cost, refs, simplified
from ebm_samplers.fused.graph import Expr, Index, Pool, TooLarge
from ebm_samplers.fused.guards import unguarded
from ebm_samplers.fused.parameters import Parameters, arrangement
from ebm_samplers.fused.program import Array, Nest, Program, ravel
from ebm_samplers.fused.rules import RULES, VIEWS
from ebm_samplers.fused.slopes import Slopes, key_of
from ebm_samplers.fused.trace import Call, CannotFuse, Ref, Trace, Value, aten

INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
COUNTING = {
    aten.sum.default, aten.sum.dim_IntList, aten.max.dim, aten.min.dim,
    aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default,
}  # fmt: skip
"""Operations that may give integers (numbers of truth values, places of extrema) made from a state:
real numbers in a kernel, and exact."""

STRAIGHT_LIMIT = 1500
"""Expressions (loads included) up to which an energy is compiled without loops."""


ALWAYS_PAYS, PAYS_WITH_CHAINS, LARGEST = 400_000, 25_000_000, 4_000_000
"""Scalar operations of one evaluation up to which a kernel beats torch's batches for any number of
chains; with how many for all chains together it still does, since torch then waits for itself; and
up to which it is compiled at all. Measured with MALA on perceptrons of up to 2-512-512-1 and
logistic regressions of up to 5000 × 50 on one core: a kernel was 1.2 to 8 times as fast up to
270,000 operations, with 16 to 4096 chains; at 1,000,000 it was 2.4 times as fast with 16 chains and
half as fast with 4096."""


def too_large(n_operations: int, n_chains: int) -> str | None:
    """Why a kernel does not pay, or None if it does.

    Args:
        n_operations: Scalar operations of one evaluation, `Program.n_operations`.
        n_chains: How many chains run at once.
    """
    limit = min(LARGEST, max(ALWAYS_PAYS, PAYS_WITH_CHAINS // max(n_chains, 1)))
    if n_operations <= limit:
        return None
    chains = "one chain" if n_chains == 1 else f"{n_chains:,} chains"
    return (
        f"it takes {n_operations:,} scalar operations at each state, and beyond {limit:,} torch's "
        f"batches are quicker with {chains}"
    )


def lower(trace: Trace, keep_slopes: bool = True) -> tuple[Program, Parameters]:
    """The program of a trace: straight if it is small enough, else looped.

    Args:
        trace: Of the energy.
        keep_slopes: Whether looped programs keep the derivatives of activations, see `slopes`.

    Raises:
        CannotFuse: If an operation is used in a form that no rule knows, or if there are more
            operations than pay.
    """
    multiplications = cost(trace)
    if multiplications > 2 * LARGEST:  # refused before any work: few save so many
        raise CannotFuse(str(too_large(2 * multiplications, 1)))
    try:
        trace = simplified(trace)
    except CannotFuse:
        raise
    except Exception as error:  # torch's, of a form that nobody foresaw
        raise CannotFuse(f"it cannot be simplified ({type(error).__name__}: {error})") from error
    try:
        program, parameters = Lowering(trace, straight=True).program()
    except TooLarge:
        program, parameters = Lowering(trace, straight=False, keep_slopes=keep_slopes).program()
    reason = too_large(program.n_operations, 1)
    if reason:
        raise CannotFuse(reason)
    return program, parameters


class Lowering:
    """Goes through a trace once; arrays by number of value."""

    def __init__(self, trace: Trace, straight: bool, keep_slopes: bool = True) -> None:
        self.trace = trace
        self.pool = Pool(STRAIGHT_LIMIT if straight else None)
        self.size = trace.values[0].example.numel()
        self.dtype = trace.values[0].example.dtype
        self.out = Program(self.size, straight, self.pool)
        self.arrays: dict[int, Array] = {}
        self.blocks: dict[tuple[int, bool], int] = {}  # what is packed, and from where on
        self.places: dict[tuple[int, bool], int] = {}  # where a value is found, packed or alike
        self.first_alike: dict[Any, int] = {}  # the same by leaf and order of elements
        self.n_parameters = 0
        self.done: dict[str, Array] = {}
        self.uses = self._count_uses()
        self.first_rows: dict[int, int] = {}  # that the lowering of a value may have made
        self.slopes = Slopes(self, keep_slopes and not straight)

    def program(self) -> tuple[Program, Parameters]:
        """Lower energy and gradient.

        Raises:
            CannotFuse: If a rule does not know the form in which an operation is used.
            TooLarge: If the straight program is too long.
        """
        try:
            return self._program()
        except (CannotFuse, TooLarge):
            raise
        except Exception as error:  # never a wrong kernel: what a rule did not foresee is refused
            raise CannotFuse(f"it cannot be compiled ({type(error).__name__}: {error})") from error

    def _program(self) -> tuple[Program, Parameters]:
        out, pool = self.out, self.pool
        x = self.trace.values[0].example
        self.arrays[0] = out.rows(0, tuple(x.shape))
        for number in sorted(self.uses):
            if self.trace.values[number].varies and number:
                self._lower(number)
        energy = self.array(self.trace.energy).load((0,))
        energy, out.offset = pool.split_constant(energy)
        gradient = self.array(self.trace.gradient)
        if out.straight:
            out.nests.clear()
        out.assign(2 * self.size, Array((), lambda index: energy, None, 1))
        out.assign(self.size, gradient)
        out.exports = [out.exported(self.array(ref)) for ref in self.trace.exports]
        if out.straight:
            nests = [nest for nest in out.nests if isinstance(nest, Nest)]
            stores = [store for nest in nests for store in nest.stores]
            values = unguarded(pool, [store.value for store in stores])
            stores = [replace(s, value=v) for s, v in zip(stores, values, strict=True)]
            out.nests[:] = [Nest((), tuple(stores))]
        return out, Parameters(self.trace, self.blocks, self.n_parameters)

    def array(self, value: Any) -> Array:
        """A value of the trace, or a number, as an array."""
        if isinstance(value, Ref):
            if value.index not in self.arrays:
                self.arrays[value.index] = self._uniform(value.index)
            return self.arrays[value.index]
        if isinstance(value, Array):
            return value
        node = self.pool.const(value)
        return Array((), lambda index: node, lambda index: node, 0, False, isinstance(value, bool))

    def constant(self, ref: Ref | Array) -> np.ndarray[Any, Any]:
        """The value of a tensor of integers, which is taken as a part of the program."""
        if isinstance(ref, Array):
            raise NotImplementedError("an index that is computed from the state")
        value = self.trace.values[ref.index]
        if not value.fixed:
            self.trace.constants.append((ref, value.example.detach().clone()))
        return value.example.detach().cpu().numpy()

    def _count_uses(self) -> dict[int, int]:
        """How often each value that matters is used."""
        uses = dict(Counter([0, *(ref.index for ref in self.trace.results)]))
        for number in range(len(self.trace.values) - 1, 0, -1):
            call = self.trace.values[number].call
            if number in uses and call is not None:
                for ref in refs(call):
                    uses[ref.index] = uses.get(ref.index, 0) + 1
        return uses

    def _lower(self, number: int) -> None:
        value = self.trace.values[number]
        call = value.call
        assert call is not None
        key = key_of(value)
        self.first_rows[number] = self.out.n_rows
        if key in self.done:
            self.arrays[number] = self.done[key]
            return
        try:
            array = self.slopes.multiplied(number)
            if array is None:
                array = RULES[call.function](self, *self._arguments(call), **_settings(call))
            if isinstance(array, tuple):
                array = array[value.part]
            array = self.slopes.stored_with(number, array)
        except (CannotFuse, TooLarge):
            raise
        except Exception as error:
            raise CannotFuse(
                f"{call.function} is used in a form that has no rule{call.place}: {error}"
            ) from error
        self._require_kind(array, value, call)
        if (self.uses[number] > 1 and array.cost > 3) or Ref(number) in self.trace.exports:
            array = self.out.stored(array)
        self.arrays[number] = self.done[key] = array

    def _require_kind(self, array: Array, value: Value, call: Call) -> None:
        """Refuse arrays that differ from torch's tensor in shape or kind."""
        example = value.example
        if array.shape != tuple(example.shape):
            raise CannotFuse(
                f"{call.function} gave {array.shape}, not {tuple(example.shape)}{call.place}"
            )
        if call.function in COUNTING and not array.boolean and example.dtype == torch.int64:
            return
        if example.dtype != (torch.bool if array.boolean else self.dtype):
            raise CannotFuse(
                f"{call.function} computes {example.dtype} from a state of {self.dtype}{call.place}"
            )

    def _arguments(self, call: Call) -> list[Any]:
        def replaced(argument: Any) -> Any:
            if isinstance(argument, Ref):
                value = self.trace.values[argument.index]
                index = not value.varies and value.example.dtype in INTEGERS
                return argument if index else self.array(argument)
            if isinstance(argument, tuple | list):
                return [replaced(part) for part in argument]
            return argument

        return [replaced(argument) for argument in call.args]

    def _uniform(self, number: int) -> Array:
        """A value that no lane changes: a view, a constant, or a block of parameters."""
        value = self.trace.values[number]
        if value.call is not None and value.call.function in VIEWS:
            try:
                view: Array = RULES[value.call.function](
                    self, *self._arguments(value.call), **_settings(value.call)
                )
                if view.shape == tuple(value.example.shape):
                    return replace(view, number=number)
            except (AttributeError, TypeError, NotImplementedError):
                pass  # computed by torch, as all else
        shape, pool = tuple(value.example.shape), self.pool
        boolean = value.example.dtype == torch.bool
        numbers = value.example.detach().reshape(-1).tolist() if value.fixed else None
        same = numbers is not None and len(set(numbers)) == 1

        def flat(index: Index) -> Expr:
            if numbers is not None and (same or isinstance(index, int)):
                number_ = numbers[0 if same else index]  # type: ignore[index]
                return pool.const(number_ if boolean else float(number_))
            element = pool.param(self._block(number) + index)
            return pool("ne", element, pool.const(0.0)) if boolean else element

        return Array(
            shape, lambda index: flat(ravel(index, shape)), flat, 0, False, boolean, number
        )

    def packed(self, array: Array, turned: bool = False) -> Array:
        """Matrices that no lane changes, as a block of parameters in C order.

        Args:
            array: With a number, ``(..., m, n)``.
            turned: Whether to swap the last two axes.
        """
        assert array.number is not None
        first = self._block(array.number, turned)
        *lead, m, n = array.shape
        shape = (*lead, n, m) if turned else array.shape

        def flat(index: Index) -> Expr:
            return self.pool.param(first + index)

        return Array(shape, lambda index: flat(ravel(index, shape)), flat, 0, False)

    def _block(self, number: int, turned: bool = False) -> int:
        key = (number, turned)
        if key not in self.places:
            found = arrangement(self.trace, number, turned)
            same = key if found is None else (found[0], found[1].tobytes())
            if same not in self.first_alike:  # a matrix that is used three times stands there once
                self.first_alike[same] = self.blocks[key] = self.n_parameters
                self.n_parameters += self.trace.values[number].example.numel()
            self.places[key] = self.first_alike[same]
        return self.places[key]


def _settings(call: Call) -> dict[str, Any]:
    """The keyword arguments that change a result's values."""
    ignored = ("layout", "device", "pin_memory", "memory_format", "implicit", "non_blocking")
    return {
        key: value
        for key, value in call.kwargs.items()
        if key not in ignored and not (key == "dtype" and value is None)
    }
