# ruff: noqa: F403, F405 - the names of a generated module
"""Unadjusted Langevin; see `ebm_samplers.langevin.LangevinDynamics` for the step in torch.

As in torch, each step ends with energy and gradient of the new state, so that no state that is not
finite goes unseen; a fresh chain begins with a step of size zero. Energy and gradient share almost
all of their work.
"""

import math

import numpy as np

from ebm_samplers.fused.kernels.noise import fill_normals_float32 as fill_normals
from ebm_samplers.fused.kernels.noise import fill_words
from ebm_samplers.fused.kernels.tile import *

# compiled ---------------------------------------------------------------------------------------

OWN_ROWS = FREE - OWN


@entry
def chains(p, offset, state, beta, step_size, scale, lengths,  # type: ignore[no-untyped-def]
           mass, root, key, first_chain, first_step, fresh, thin, first_slot, draws, statistics,
           largest, first_tile, last_tile):  # fmt: skip
    """Advance the chains of some tiles by ``len(step_size)`` transitions."""
    w = np.zeros((ROWS + OWN_ROWS) * L, real)
    words = np.empty(4 * PLANE, np.uint32)
    z = np.zeros(4 * PLANE, real)
    last_step = first_step + len(step_size)
    for tile in range(first_tile, last_tile):
        enter(w, X, state, tile)
        enter(w, BETA, beta, tile)
        clear(w, POTENTIAL, FREE - POTENTIAL)
        step = first_step - 1 if fresh else first_step
        while step < last_step:
            stop = min((step // CHUNK + 1) * CHUNK, last_step) if step >= first_step else first_step
            block = step * D >> 2
            if step >= first_step:
                n_blocks = (stop * D + 3 >> 2) - block
                fill_words(
                    words,
                    PLANE,
                    SHIFT,
                    first_chain + tile * L,
                    block,
                    n_blocks,
                    np.uint64(NOISE),
                    key,
                )
                fill_normals(z, words, PLANE, n_blocks * L)
            while step < stop:
                now = step - first_step
                size = step_size[max(now, 0)] if now >= 0 else 0.0
                h = real(size)
                s = real(math.sqrt(2.0 * size) * scale[max(now, 0)]) if now >= 0 else real(0)
                for i in range(D):
                    n = step * D + i - 4 * block
                    at = (n & 3) * PLANE + (n >> 2) * L
                    for lane in range(L):
                        x = w[(X + i) * L + lane]
                        drift = h * (w[BETA * L + lane] * w[(G + i) * L + lane])
                        w[(X + i) * L + lane] = x - drift + s * z[np.uint64(at + lane)]
                energy_and_gradient(w, p)
                step += 1
                if now >= 0:
                    flag_infinite(w)
                    if (now + 1) % thin == 0:
                        watch(w, E, offset)
                        if draws.shape[1] > 0:
                            record(w, X, draws, tile, first_slot + now // thin)
                        report(w, statistics, tile, first_slot + now // thin)
                        clear(w, WILD, 1)
        for lane in range(min(L, len(state) - tile * L)):
            largest[tile * L + lane] = w[SIZE * L + lane]
            for i in range(2 * D + 1):
                state[tile * L + lane, i] = w[(X + i) * L + lane]


@compiled
def flag_infinite(w):  # type: ignore[no-untyped-def]
    """Count the lanes' steps to a state or energy that is not finite."""
    for lane in range(L):
        total = w[E * L + lane]
        for i in range(D):
            total += w[(X + i) * L + lane]
        w[WILD * L + lane] += real(0) if abs(total) < real(np.inf) else real(1)
