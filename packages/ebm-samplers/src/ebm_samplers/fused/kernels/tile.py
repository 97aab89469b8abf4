"""What all kernels share: the tile's layout, its noise, and the way in and out.

A tile holds the states of ``L`` chains (lanes). The names in capitals are constants of the
generated module, into which everything below the line "compiled" is copied; here they only have a
type. A kernel serves tiles ``first_tile`` to ``last_tile - 1``, so that threads share the work by
tiles. With L = 1 a tile is a thread of a GPU.

Noise is made for some steps at a time, in planes: word (and number) n of a lane stands at ``(n mod
4) * PLANE + (n // 4) * L + lane``. Lanes run over chains and blocks alike, so that one chain alone
fills SIMD registers too.
"""

from typing import Any

import numpy as np

L = 1  # lanes, a power of two
SHIFT = 0  # its logarithm
D = 1  # elements of a state
X, G, E, OWN = 0, 0, 0, 0  # first rows of state, gradient, energy, and of the kernel's own rows
ROWS = 1  # rows of the energy's program
CHUNK = 4  # steps whose noise is made at once, a multiple of 4
PLANE = 1  # D * CHUNK / 4 * L, numbers of a plane
NOISE, MOMENTUM, ACCEPT = 1, 2, 3  # streams
exp: Any = None
# rows of the kernel itself; of a slot's statistics: energy, summed acceptance probability, wild
# transitions, Hamiltonian; of the run: largest beta·|E|
BETA, POTENTIAL, CHANCE, WILD, TOTAL, SIZE, FREE = 0, 1, 2, 3, 4, 5, 6
real: Any = np.float32

OPTIONS: dict[str, Any] = {}


def compiled(function: Any) -> Any:
    """Stands for ``numba.njit(**OPTIONS)``."""
    return function


def entry(function: Any) -> Any:
    """As `compiled`, and kept on disk: for the functions that Python calls."""
    return function


def energy_and_gradient(w: Any, p: Any) -> None:
    """Stands for the generated function: state rows in, gradient and energy rows out."""


# compiled ---------------------------------------------------------------------------------------


@compiled
def enter(w, row, values, tile):  # type: ignore[no-untyped-def]
    """Rows from an array ``(chain, rows)``; lanes beyond the last chain repeat it."""
    for lane in range(L):
        chain = min(tile * L + lane, values.shape[0] - 1)
        for i in range(values.shape[1]):
            w[(row + i) * L + lane] = values[chain, i]


@compiled
def record(w, row, out, tile, slot):  # type: ignore[no-untyped-def]
    """Write rows into ``out[chain, slot]``."""
    for lane in range(min(L, out.shape[0] - tile * L)):
        for i in range(out.shape[2]):
            out[tile * L + lane, slot, i] = w[(row + i) * L + lane]


@compiled
def report(w, statistics, tile, slot):  # type: ignore[no-untyped-def]
    """Write the rows of a slot's statistics into ``statistics[column, chain, slot]``."""
    for lane in range(min(L, statistics.shape[1] - tile * L)):
        for i in range(statistics.shape[0]):
            statistics[i, tile * L + lane, slot] = w[(POTENTIAL + i) * L + lane]


@compiled
def clear(w, row, n_rows):  # type: ignore[no-untyped-def]
    """Set rows to zero."""
    for i in range(row * L, (row + n_rows) * L):
        w[i] = real(0)


@compiled
def watch(w, energy_row, offset):  # type: ignore[no-untyped-def]
    """Put the energy among the statistics, and the largest beta·|E| of each lane."""
    shift = real(offset)
    for lane in range(L):
        value = w[energy_row * L + lane] + shift
        w[POTENTIAL * L + lane] = value
        size = abs(w[BETA * L + lane] * value)
        w[SIZE * L + lane] = size if size > w[SIZE * L + lane] else w[SIZE * L + lane]


@compiled
def judge(w, u, at, delta, verdict, forced):  # type: ignore[no-untyped-def]
    """The Metropolis test of each lane: finiteness first, then u < min(1, exp(-Δ))."""
    for lane in range(L):
        d = w[delta * L + lane]
        finite = abs(d) < real(np.inf)
        safe = d if finite else real(1e30)
        chance = exp(-(safe if safe > real(0) else real(0)))
        chance = chance if finite else real(0)
        taken = u[np.uint64(at + lane)] < chance
        w[verdict * L + lane] = real(1) if (taken or forced) else real(0)
        if not forced:
            w[CHANCE * L + lane] += chance
            w[WILD * L + lane] += real(0) if d <= real(1000) and finite else real(1)


@compiled
def choose(w, verdict, target):  # type: ignore[no-untyped-def]
    """Take state, gradient and energy over in the lanes that accepted."""
    for i in range(2 * D + 1):
        for lane in range(L):
            taken = w[verdict * L + lane] != real(0)
            a = w[(X + i) * L + lane]
            b = w[(target + i) * L + lane]
            w[(target + i) * L + lane] = a if taken else b
