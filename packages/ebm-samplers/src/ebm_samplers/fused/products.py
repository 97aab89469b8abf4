"""A tile times a matrix of parameters, with sums that stay in registers.

Most of the work of dense Gaussians, hidden layers and data sets is ``out[j] = Σ_k row[k] · m[k,
j]`` for all lanes. Written as loops over rows it moves each sum to memory and back for every few
terms, and LLVM does not know that rows are distinct. Here it is LLVM code with vectors of fixed
length: a block of outputs, a few vectors of lanes wide, is summed over all k in registers. With one
lane vectors run over outputs, which is why ``m`` lies in C order.

The order of summation, and so the result, is the same for any number of lanes: k upwards, each
product added with one rounding where the machine can.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir

from ebm_samplers.fused.processor import Registers, registers
from ebm_samplers.fused.values import Instruction, Value, cast

OUTPUTS = 6
"""Of a block, with many lanes; as many vectors of lanes as let all its sums stay in registers."""


def tile_product(
    n_inner: int, n_outputs: int, lanes: int, simd: Registers | None = None
) -> Instruction:
    """The function ``product(w, p, out, row, m)``.

    It sets rows ``out + j`` of the tile ``w`` to Σ_k row (``row + k``) · ``p[m + k * n_outputs +
    j]``. All sizes are constants of the compiled code.

    Args:
        n_inner: Terms of each sum.
        n_outputs: Rows to compute; they must not overlap those that are read.
        lanes: Lanes of the tile, a power of two.
        simd: Registers to write it for; None for this processor's.
    """
    simd = simd or registers()

    def product(
        builder: ir.IRBuilder, w: Value, p: Value, out: Value, row: Value, m: Value
    ) -> None:
        writer = _Writer(builder, (w, p, out, row, m), lanes, simd)
        if lanes == 1:
            writer.one_lane(n_inner, n_outputs)
        else:
            writer.many_lanes(n_inner, n_outputs)

    return Instruction(product)


def _parts(total: int, most: int) -> list[tuple[int, int, int]]:
    """(start, size, count) of blocks of nearly equal size, at most ``most``, that cover a range."""
    n = -(-total // most)
    small, n_large = divmod(total, n)
    parts = [(0, small + 1, n_large), (n_large * (small + 1), small, n - n_large)]
    return [part for part in parts if part[2]]


class _Writer:
    """Writes the loops of one product."""

    def __init__(
        self, builder: ir.IRBuilder, arguments: Sequence[Value], lanes: int, simd: Registers
    ) -> None:
        self.builder, self.lanes = builder, lanes
        self.w, self.p = (pointer.code for pointer in arguments[:2])
        out, row, self.matrix = (cast(builder, a, "int64").code for a in arguments[2:])
        self.scalar = self.w.type.pointee
        self.bytes = 8 if isinstance(self.scalar, ir.DoubleType) else 4
        self.width = simd.n_bytes // self.bytes
        self.n_sums = simd.number * 3 // 4  # the others hold factors
        self.out, self.row = (self._times(a, lanes) for a in (out, row))

    def many_lanes(self, n_inner: int, n_outputs: int) -> None:
        width = min(self.width, self.lanes)
        across = min(self.n_sums // OUTPUTS, self.lanes // width)  # vectors of lanes of a block
        for start, size, count in _parts(n_outputs, self.n_sums // across):
            with self._range(count) as block:
                first = self._plus(self._times(block, size), start)
                with self._range(self.lanes // (width * across)) as part:
                    lane = self._times(part, width * across)
                    self._lanes_block(n_inner, n_outputs, first, size, lane, width, across)

    def _lanes_block(
        self,
        n_inner: int,
        n_outputs: int,
        first: Any,
        size: int,
        lane: Any,
        width: int,
        across: int,
    ) -> None:
        sums = self._sums([width] * (size * across))
        with self._range(n_inner) as k:
            row = self._plus(self.row, self._plus(self._times(k, self.lanes), lane))
            vectors = [self._load(self.w, self._plus(row, c * width), width) for c in range(across)]
            at = self._plus(self._plus(self.matrix, first), self._times(k, n_outputs))
            for j in range(size):
                factor = self._spread(self._load(self.p, self._plus(at, j), 1), width)
                for c in range(across):
                    self._add(sums[j * across + c], factor, vectors[c])
        for j in range(size):
            below = self._times(self._plus(first, j), self.lanes)
            row = self._plus(self.out, self._plus(below, lane))
            for c in range(across):
                self._store(sums[j * across + c], self._plus(row, c * width))

    def one_lane(self, n_inner: int, n_outputs: int) -> None:
        widths = [self.width] * (n_outputs // self.width)
        left = n_outputs % self.width
        widths += [1 << bit for bit in reversed(range(left.bit_length())) if left >> bit & 1]
        start = 0
        while widths:
            block, widths = widths[: self.n_sums], widths[self.n_sums :]
            starts = [start + sum(block[:i]) for i in range(len(block))]
            start += sum(block)
            sums = self._sums(block)
            with self._range(n_inner) as k:
                x = self._load(self.w, self._plus(self.row, k), 1)
                at = self._plus(self.matrix, self._times(k, n_outputs))
                for total, width, place in zip(sums, block, starts, strict=True):
                    self._add(
                        total,
                        self._spread(x, width),
                        self._load(self.p, self._plus(at, place), width),
                    )
            for total, place in zip(sums, starts, strict=True):
                self._store(total, self._plus(self.out, place))

    def _range(self, count: int) -> Any:
        index = ir.IntType(64)
        return _once(index(0)) if count == 1 else _loop(self.builder, index(count))

    def _times(self, a: Any, n: int) -> Any:
        return self.builder.mul(a, a.type(n))

    def _plus(self, a: Any, b: Any) -> Any:
        return self.builder.add(a, a.type(b) if isinstance(b, int) else b)

    def _sums(self, widths: list[int]) -> list[Any]:
        sums = []
        for width in widths:
            kind = self._kind(width)
            with self.builder.goto_entry_block():
                place = self.builder.alloca(kind)
            self.builder.store(kind(0.0) if width == 1 else kind([0.0] * width), place)
            sums.append(place)
        return sums

    def _kind(self, width: int) -> Any:
        return self.scalar if width == 1 else ir.VectorType(self.scalar, width)

    def _load(self, array: Any, index: Any, width: int) -> Any:
        place = self.builder.gep(array, [index])
        if width > 1:
            place = self.builder.bitcast(place, self._kind(width).as_pointer())
        return self.builder.load(place, align=self.bytes)

    def _store(self, total: Any, index: Any) -> None:
        place = self.builder.gep(self.w, [index])
        place = self.builder.bitcast(place, total.type)
        self.builder.store(self.builder.load(total), place, align=self.bytes)

    def _spread(self, number: Any, width: int) -> Any:
        if width == 1:
            return number
        kind = self._kind(width)
        single = self.builder.insert_element(kind(ir.Undefined), number, ir.IntType(32)(0))
        zeros = ir.VectorType(ir.IntType(32), width)([0] * width)
        return self.builder.shuffle_vector(single, kind(ir.Undefined), zeros)

    def _add(self, total: Any, a: Any, b: Any) -> None:
        flags = ("contract",)
        term = self.builder.fmul(a, b, flags=flags)
        self.builder.store(self.builder.fadd(self.builder.load(total), term, flags=flags), total)


@contextmanager
def _loop(builder: Any, count: Any) -> Iterator[Any]:
    """A loop of at least one turn."""
    before, inside = builder.block, builder.append_basic_block()
    after = builder.append_basic_block()
    builder.branch(inside)
    builder.position_at_end(inside)
    turn = builder.phi(count.type)
    turn.add_incoming(count.type(0), before)
    yield turn
    following = builder.add(turn, count.type(1), flags=("nsw",))
    turn.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), inside, after)
    builder.position_at_end(after)


@contextmanager
def _once(index: Any) -> Iterator[Any]:
    yield index
