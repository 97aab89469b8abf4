# ruff: noqa: F403, F405 - the names of a generated module
"""Hamiltonian Monte Carlo; see `ebm_samplers.hamiltonian` for the step in torch.

As in MALA, a fresh chain begins with a trajectory of one step of size zero that is accepted
whatever it gives.
"""

import numpy as np

from ebm_samplers.fused.kernels.noise import fill_normals_float32 as fill_normals
from ebm_samplers.fused.kernels.noise import fill_uniforms, fill_words
from ebm_samplers.fused.kernels.tile import *

# compiled ---------------------------------------------------------------------------------------

DELTA, VERDICT, CURRENT = FREE, FREE + 1, FREE + 2
CX, CG, CE = CURRENT, CURRENT + D, CURRENT + 2 * D  # the state that trajectories start from
P = CE + 1  # momentum
V = P + D  # velocity M⁻¹ p
KINETIC = V + D  # of each element at the start
OWN_ROWS = KINETIC + D - OWN


@compiled
def set_velocity(w, mass):  # type: ignore[no-untyped-def]
    """V = M⁻¹ P; ``mass`` is M⁻¹, a row of it for a diagonal."""
    if mass.shape[0] == 1:
        for i in range(D):
            m = mass[0, i]
            for lane in range(L):
                w[(V + i) * L + lane] = m * w[(P + i) * L + lane]
    else:
        for i in range(D):
            clear(w, V + i, 1)
            for j in range(D):
                m = mass[i, j]
                for lane in range(L):
                    w[(V + i) * L + lane] += m * w[(P + j) * L + lane]


@compiled
def draw_momentum(w, root, z, first):  # type: ignore[no-untyped-def]
    """P = M^½ z; ``root`` is the lower Cholesky factor of M, or a row for a diagonal."""
    clear(w, P, D)
    for i in range(D):
        for j in range(i if root.shape[0] == 1 else 0, i + 1):
            m = root[0, i] if root.shape[0] == 1 else root[i, j]
            n = first + j
            at = (n & 3) * PLANE + (n >> 2) * L
            for lane in range(L):
                w[(P + i) * L + lane] += m * z[np.uint64(at + lane)]


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
                    words, PLANE, SHIFT, first_chain + tile * L, block, n_blocks, MOMENTUM, key
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
                h = real(step_size[max(now, 0)]) if not forced else real(0)
                length = lengths[max(now, 0)] if not forced else 1
                draw_momentum(w, root, z, step * D - 4 * block)
                kick = real(0.5) * h
                for leap in range(-1, length):
                    if leap >= 0:
                        for i in range(D):
                            for lane in range(L):
                                w[(X + i) * L + lane] += h * w[(V + i) * L + lane]
                        energy_and_gradient(w, p)
                        kick = h if leap < length - 1 else real(0.5) * h
                        for i in range(D):
                            for lane in range(L):
                                w[(P + i) * L + lane] -= kick * (
                                    w[BETA * L + lane] * w[(G + i) * L + lane]
                                )
                        set_velocity(w, mass)
                    else:
                        set_velocity(w, mass)
                        for i in range(D):
                            for lane in range(L):
                                momentum = w[(P + i) * L + lane]
                                w[(KINETIC + i) * L + lane] = momentum * w[(V + i) * L + lane]
                                w[(X + i) * L + lane] = w[(CX + i) * L + lane]
                                pull = kick * (w[BETA * L + lane] * w[(CG + i) * L + lane])
                                w[(P + i) * L + lane] = momentum - pull
                        set_velocity(w, mass)
                for lane in range(L):
                    w[DELTA * L + lane] = w[BETA * L + lane] * (w[E * L + lane] - w[CE * L + lane])
                    w[TOTAL * L + lane] = w[BETA * L + lane] * (w[CE * L + lane] + real(offset))
                for i in range(D):
                    for lane in range(L):
                        before = w[(KINETIC + i) * L + lane]
                        after = w[(P + i) * L + lane] * w[(V + i) * L + lane]
                        w[DELTA * L + lane] += real(0.5) * (after - before)
                        w[TOTAL * L + lane] += real(0.5) * before
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
                    for lane in range(L):  # H of the accepted state
                        taken = w[VERDICT * L + lane] != real(0)
                        w[TOTAL * L + lane] += w[DELTA * L + lane] if taken else real(0)
                    if draws.shape[1] > 0:
                        record(w, CX, draws, tile, first_slot + now // thin)
                    report(w, statistics, tile, first_slot + now // thin)
                    clear(w, CHANCE, 2)
        for lane in range(min(L, len(state) - tile * L)):
            largest[tile * L + lane] = w[SIZE * L + lane]
            for i in range(2 * D + 1):
                state[tile * L + lane, i] = w[(CURRENT + i) * L + lane]
