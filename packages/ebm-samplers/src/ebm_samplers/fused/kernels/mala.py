# ruff: noqa: F403, F405 - the names of a generated module
"""Metropolis-adjusted Langevin; see `ebm_samplers.langevin.MALA` for the step in torch.

Energy and gradient are evaluated at one place in the code, for proposals; a fresh chain begins with
a proposal of length zero that is accepted whatever it gives. So an evaluation rounds the same
however a run is cut.
"""

import math

import numpy as np

from ebm_samplers.fused.kernels.noise import fill_normals_float32 as fill_normals
from ebm_samplers.fused.kernels.noise import fill_uniforms, fill_words
from ebm_samplers.fused.kernels.tile import *

# compiled ---------------------------------------------------------------------------------------

DELTA, VERDICT, CURRENT = FREE, FREE + 1, FREE + 2
CX, CG, CE = CURRENT, CURRENT + D, CURRENT + 2 * D  # the state that proposals start from
OWN_ROWS = CE + 1 - OWN


@entry
def chains(p, offset, state, beta, step_size, scale, lengths,  # type: ignore[no-untyped-def]
           mass, root, key, first_chain, first_step, fresh, thin, first_slot, draws, statistics,
           largest, first_tile, last_tile):  # fmt: skip
    """Advance the chains of some tiles by ``len(step_size)`` transitions."""
    w = np.zeros((ROWS + OWN_ROWS) * L, real)
    words = np.empty(4 * PLANE, np.uint32)
    z = np.zeros(4 * PLANE, real)
    u = np.zeros(4 * PLANE, real)
    last_step = first_step + len(step_size)
    for tile in range(first_tile, last_tile):
        enter(w, CURRENT, state, tile)
        enter(w, BETA, beta, tile)
        clear(w, POTENTIAL, FREE - POTENTIAL)
        step = first_step - 1 if fresh else first_step
        while step < last_step:
            stop = min((step // CHUNK + 1) * CHUNK, last_step) if step >= first_step else first_step
            block, accept_block = step * D >> 2, step >> 2
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
                n_blocks = (stop + 3 >> 2) - accept_block
                fill_words(
                    words, PLANE, SHIFT, first_chain + tile * L, accept_block, n_blocks, ACCEPT, key
                )
                fill_uniforms(u, words, PLANE, n_blocks * L)
            while step < stop:
                now = step - first_step
                forced = now < 0
                size = step_size[max(now, 0)] if not forced else 0.0
                h = real(size)
                s = real(math.sqrt(2.0 * size))
                r = real(math.sqrt(0.5 * size))
                for i in range(D):
                    n = step * D + i - 4 * block
                    at = (n & 3) * PLANE + (n >> 2) * L
                    for lane in range(L):
                        drift = h * (w[BETA * L + lane] * w[(CG + i) * L + lane])
                        w[(X + i) * L + lane] = (
                            w[(CX + i) * L + lane] - drift + s * z[np.uint64(at + lane)]
                        )
                energy_and_gradient(w, p)
                for lane in range(L):
                    w[DELTA * L + lane] = w[BETA * L + lane] * (w[E * L + lane] - w[CE * L + lane])
                for i in range(D):
                    n = step * D + i - 4 * block
                    at = (n & 3) * PLANE + (n >> 2) * L
                    for lane in range(L):
                        a = r * (
                            w[BETA * L + lane] * (w[(CG + i) * L + lane] + w[(G + i) * L + lane])
                        )
                        w[DELTA * L + lane] += a * (real(0.5) * a - z[np.uint64(at + lane)])
                judge(
                    w,
                    u,
                    (step & 3) * PLANE + ((step >> 2) - accept_block) * L,
                    DELTA,
                    VERDICT,
                    forced,
                )
                choose(w, VERDICT, CURRENT)
                watch(w, CE, offset)
                step += 1
                if (now + 1) % thin == 0 and not forced:
                    if draws.shape[1] > 0:
                        record(w, CX, draws, tile, first_slot + now // thin)
                    report(w, statistics, tile, first_slot + now // thin)
                    clear(w, CHANCE, 2)
        for lane in range(min(L, len(state) - tile * L)):
            largest[tile * L + lane] = w[SIZE * L + lane]
            for i in range(2 * D + 1):
                state[tile * L + lane, i] = w[(CURRENT + i) * L + lane]
