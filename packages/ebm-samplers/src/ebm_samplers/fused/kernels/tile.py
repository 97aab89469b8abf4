# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""What all kernels share: the tile's layout, and the procedures on its rows.

A tile holds the states of ``L`` chains (lanes). The names in capitals are constants of the
generated module, into which everything below the line "compiled" is expanded (`expansion`); here
they only have a type. Arrays are bare pointers, in C order. A kernel serves tiles ``first_tile`` to
``last_tile - 1``, so that threads share the work by tiles. With L = 1 a tile is a thread of a GPU.

Noise is made for some steps at a time, in planes: word (and number) n of a lane stands at ``(n mod
4) * PLANE + (n // 4) * L + lane``. Lanes run over chains and blocks alike, so that one chain alone
fills SIMD registers too.
"""

from typing import Any, TypeAlias

import numpy as np

L = 1  # lanes, a power of two
SHIFT = 0  # its logarithm
D = 1  # elements of a state
X, G, E, OWN = 0, 0, 0, 0  # first rows of state, gradient, energy, and of the kernel's own rows
ROWS = 1  # rows of the energy's program
CHUNK = 4  # steps whose noise is made at once, a multiple of 4
PLANE = 1  # D * CHUNK / 4 * L, numbers of a plane of normals
UNIFORM_PLANE = 1  # CHUNK / 4 * L, of uniforms
NOISE, MOMENTUM, ACCEPT, DIRECTION, LEAF = 1, 2, 3, 5, 8  # streams
# rows of the kernel itself: of the run, beta and the largest beta·|E|; of a slot's statistics, the
# energy, summed acceptance probability, wild transitions, Hamiltonian, and what a sampler adds
BETA, SIZE, POTENTIAL, CHANCE, WILD, TOTAL, FREE = 0, 1, 2, 3, 4, 5, 6
STATISTICS = 4  # numbers of a slot's statistics
DENSE = 0  # whether masses are matrices, not diagonals
LOCAL_ROWS = 0  # see `codegen`
COALESCED = 0  # whether there is one lane, and arrays have the chains along their last axis
LOOPED = 0  # whether the energy's program has loops
CARRIED = 0  # numbers of a state beside positions, gradient and energy, after these
END = 1  # rows of the whole tile
OPERATIONS, MANY_OPERATIONS = 1, 100  # of the energy; and with how many long registers pay
LONG_REGISTERS = 0  # whether SIMD code is to use all that the processor has
CURRENT = 0  # first row of the state that the next transition starts from: x, gradient, energy
real: Any = np.float32
exp: Any = None
# pointers, and numbers of 64 bits
Reals: TypeAlias = Any
Words: TypeAlias = Any
Ints: TypeAlias = Any
Int: TypeAlias = Any
Real: TypeAlias = Any  # float32 or float64, as states
Key: TypeAlias = Any


def energy_and_gradient(w: Any, p: Any) -> None:
    """Stands for the generated function: state rows in, gradient and energy rows out."""


def local(memory: Any) -> Any:
    """Stands for `intrinsics.local_memory`."""


def accepted(taken: Any, new: Any, old: Any) -> Any:
    """Stands for a choice that one lane alone leaves to the processor's prediction."""


def keep_loops() -> None:
    """Stands for `loops.keep_loops`."""


def work_fast() -> Any:
    """Stands for `processor.work_fast`."""


def use_long_registers() -> None:
    """Stands for `processor.use_long_registers`."""


def work_as_before(before: Any) -> None:
    """Stands for `processor.work_as_before`."""


def fill(*_: Any) -> None:
    """Stands for `noise.fill`."""


# compiled ---------------------------------------------------------------------------------------


def enter(w, row, n_rows, values, tile, n_chains):
    """Rows from an array ``(chain, rows)``; lanes beyond the last chain repeat it."""
    if COALESCED:
        for i in range(n_rows):
            w[row + i] = values[i * n_chains + tile]
    else:
        for chain in range(tile * L, tile * L + L):
            source = chain if chain < n_chains else n_chains - 1
            for i in range(n_rows):
                w[(row + i) * L + chain - tile * L] = values[source * n_rows + i]


def leave(w, row, n_rows, values, tile, n_chains):
    """Rows into an array ``(chain, rows)``."""
    if COALESCED:
        for i in range(n_rows):
            values[i * n_chains + tile] = w[row + i]
    else:
        stop = tile * L + L if tile * L + L < n_chains else n_chains
        for chain in range(tile * L, stop):
            for i in range(n_rows):
                values[chain * n_rows + i] = w[(row + i) * L + chain - tile * L]


def note_start(w, notes, tile, n_chains):
    """Of fresh chains: E into ``notes[1, chain]``, and 1 into ``notes[2, chain]`` if not finite."""
    if COALESCED:
        notes[n_chains + tile] = w[CURRENT + 2 * D]
        total = w[CURRENT]
        for i in range(2 * D):
            total += w[CURRENT + 1 + i]
        notes[2 * n_chains + tile] = real(0) if abs(total) < real(np.inf) else real(1)
    else:
        stop = tile * L + L if tile * L + L < n_chains else n_chains
        for chain in range(tile * L, stop):
            total = w[(CURRENT + 2 * D) * L + chain - tile * L]
            notes[n_chains + chain] = total
            for i in range(2 * D):
                total += w[(CURRENT + i) * L + chain - tile * L]
            notes[2 * n_chains + chain] = real(0) if abs(total) < real(np.inf) else real(1)


def record(w, draws, statistics, tile, n_chains, slot, n_slots, n_draws):
    """The state into ``draws[chain, slot]``, statistics into ``statistics[row, chain, slot]``."""
    if COALESCED:
        if n_draws > 0:
            for i in range(D):
                draws[(slot * D + i) * n_chains + tile] = w[CURRENT + i]
        for i in range(STATISTICS):
            statistics[(i * n_slots + slot) * n_chains + tile] = w[POTENTIAL + i]
    else:
        stop = tile * L + L if tile * L + L < n_chains else n_chains
        for chain in range(tile * L, stop):
            at = chain - tile * L
            if n_draws > 0:
                for i in range(D):
                    draws[(chain * n_draws + slot) * D + i] = w[(CURRENT + i) * L + at]
            for i in range(STATISTICS):
                statistics[(i * n_chains + chain) * n_slots + slot] = w[(POTENTIAL + i) * L + at]


def clear(w, row, n_rows):
    """Set rows to zero."""
    for i in range(n_rows):
        for lane in range(L):
            w[(row + i) * L + lane] = real(0)


def watch(w, offset):
    """Put the energy among the statistics, and the largest beta·|E| of each lane."""
    for lane in range(L):
        value = w[(CURRENT + 2 * D) * L + lane] + offset
        w[POTENTIAL * L + lane] = value
        size = abs(w[BETA * L + lane] * value)
        w[SIZE * L + lane] = size if size > w[SIZE * L + lane] else w[SIZE * L + lane]


def judge(w, u, at, delta, verdict, forced):
    """The Metropolis test of each lane: finiteness first, then u < min(1, exp(-Δ)).

    Then state, gradient and energy are taken over in the lanes that accepted.
    """
    counted = real(0) if forced else real(1)
    bonus = real(2) if forced else real(0)
    for lane in range(L):
        d = w[delta * L + lane]
        finite = abs(d) < real(np.inf)
        safe = d if finite else real(1e30)
        chance = exp(-(safe if safe > real(0) else real(0)))
        chance = chance if finite else real(0)
        w[verdict * L + lane] = real(1) if u[at + lane] < chance + bonus else real(0)
        w[CHANCE * L + lane] += counted * chance
        w[WILD * L + lane] += real(0) if safe <= real(1000) else counted
    for i in range(2 * D + 1):
        for lane in range(L):
            taken = w[verdict * L + lane] != real(0)
            old = w[(CURRENT + i) * L + lane]
            w[(CURRENT + i) * L + lane] = accepted(taken, w[(X + i) * L + lane], old)
