"""Activations whose derivative is computed with them.

A network's gradient takes f'(a) of each layer long after f(a), and of SiLU and GELU the two share
most of their work. Looped programs compute both in one loop and keep f'(a), so that the way back is
one multiplication. It takes the rows of a, of which nobody but f and f' has any need.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

from ebm_samplers.fused.algebra import refs
from ebm_samplers.fused.program import Array
from ebm_samplers.fused.rules import RULES, SLOPES
from ebm_samplers.fused.trace import Value, aten

if TYPE_CHECKING:
    from ebm_samplers.fused.lowering import Lowering


class Slopes:
    """The derivatives of a program's activations.

    Args:
        low: The lowering of the program.
        keep: Whether any are kept.
    """

    def __init__(self, low: "Lowering", keep: bool) -> None:
        self.low, self.values = low, low.trace.values
        self.pairs = self._find_pairs() if keep else {}
        self.stored: dict[int, Array] = {}
        self.keys = Counter(key_of(self.values[number]) for number in low.uses if self.pairs)

    def stored_with(self, number: int, activation: Array) -> Array:
        """The array of a value, in rows if it is an activation whose derivative is kept."""
        product = self.pairs.get(number)
        if product is None:
            return activation
        low, call = self.low, self.values[product].call
        assert call is not None
        argument = low.array(call.args[1])
        base = low.out.rows_under(argument)
        if base is None or not self._is_alone(call.args[1].index, base):
            return activation
        slope = RULES[call.function](low, 1.0, argument, **call.kwargs)
        activation, self.stored[product] = low.out.together(activation, slope, base)
        return activation

    def multiplied(self, number: int) -> Array | None:
        """A gradient times a derivative that is kept; None if the value is something else."""
        if number not in self.stored:
            return None
        call = self.values[number].call
        assert call is not None
        array: Array = RULES[aten.mul.Tensor](self.low, call.args[0], self.stored[number])
        return array

    def _find_pairs(self) -> dict[int, int]:
        """Of each activation, the number of the value that its derivative makes of a gradient."""
        known: dict[Any, int] = {}
        pairs: dict[int, int] = {}
        for number in sorted(self.low.uses):
            call = self.values[number].call
            if call is None or not self.values[number].varies:
                continue
            if call.function in SLOPES:
                known[SLOPES[call.function], call.args[0], repr(call.kwargs)] = number
            elif call.function in SLOPES.values():
                activation = known.get((call.function, call.args[1], repr(call.kwargs)))
                if activation is not None and self.low.uses[call.args[1].index] == 2:
                    pairs[activation] = number
        return pairs

    def _is_alone(self, number: int, row: int) -> bool:
        """Whether the rows from ``row`` on, under a value, were made for it or on the way to it."""
        while (call := self.values[number].call) is not None:
            if self.keys[key_of(self.values[number])] > 1:
                return False  # equal values are one array
            if self.low.first_rows[number] <= row:
                return True
            parts = [ref.index for ref in refs(call) if self.values[ref.index].varies]
            if len(parts) != 1 or self.low.uses[parts[0]] > 1:
                return False
            number = parts[0]
        return False


def key_of(value: Value) -> str:
    """Equal for values that the same operation makes of the same arguments."""
    call = value.call
    return "" if call is None else repr((call.function, call.args, call.kwargs, value.part))
