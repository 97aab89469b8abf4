# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: F403, F405 - the names of a generated module
"""The loop of all samplers: over tiles, steps whose noise is made at once, and steps.

A sampler's own file gives its rows, its streams, and the procedures ``transition`` and ``settle``,
which completes the statistics of a slot. A fresh chain, whose energy and gradient are not known,
begins with a transition of size zero before the first step (``now`` is -1), which is accepted
whatever it gives. So there is one place in the code where energy and gradient are computed, and an
evaluation rounds the same however a run is cut.
"""

from typing import Any

from ebm_samplers.fused.kernels.tile import *

NORMALS = NOISE  # the stream of a transition's normals
ADJUSTED = 0  # whether it needs a uniform
TREES = 0  # whether it needs those of trees


def fill_trees(*_: Any) -> None:
    """Stands for the sampler's, where there are trees."""


def transition(*_: Any) -> None:
    """Stands for the sampler's."""


def settle(w: Any, offset: float) -> None:
    """Stands for the sampler's."""


# compiled ---------------------------------------------------------------------------------------


def chains(
    p: Reals, beta: Reals, mass: Reals, root: Reals,
    offset: Real, source: Reals, fresh: Int, state: Reals,
    step_size: Reals, spread: Reals, lengths: Ints,
    size_stride: Int, spread_stride: Int, length_stride: Int,
    key: Key, first_chain: Int, first_step: Int,
    n_chains: Int, n_steps: Int, thin: Int, first_slot: Int, n_slots: Int, n_draws: Int,
    draws: Reals, statistics: Reals, notes: Reals,
    memory: Reals, words: Words, z: Reals, u: Reals, stack: Reals,
    first_tile: Int, last_tile: Int,
):  # fmt: skip
    """Advance the chains of some tiles by ``n_steps`` transitions.

    From ``source``: states as this function leaves them in ``state``, or positions of fresh chains
    (of kernels that carry more, such states, of which energy and gradient are not known).
    """
    before = work_fast()
    if LONG_REGISTERS:
        use_long_registers()
    w = local(memory) if END <= LOCAL_ROWS else memory
    last_step = first_step + n_steps
    for tile in range(first_tile, last_tile):
        if fresh:  # a step of size 0 must find finite numbers
            if CARRIED:
                enter(w, CURRENT, 2 * D + 1 + CARRIED, source, tile, n_chains)
            else:
                enter(w, CURRENT, D, source, tile, n_chains)
            clear(w, CURRENT + D, D + 1)
            for i in range(4 * PLANE):
                z[i] = real(0)
            if ADJUSTED + TREES:
                for i in range(4 * UNIFORM_PLANE):
                    u[i] = real(0)
        else:
            enter(w, CURRENT, 2 * D + 1 + CARRIED, source, tile, n_chains)
        enter(w, BETA, 1, beta, tile, n_chains)
        clear(w, SIZE, 1)
        clear(w, POTENTIAL, STATISTICS)
        step = first_step - 1 if fresh else first_step
        stop = first_step
        chunk = step
        block = step * D >> 2
        accept_block = step >> 2
        slot = first_slot
        left = thin + 1 if fresh else thin  # transitions to the end of the slot
        while step < last_step:
            if step >= first_step:
                chunk = step
                stop = (step // CHUNK + 1) * CHUNK
                stop = stop if stop < last_step else last_step
                block = step * D >> 2
                accept_block = step >> 2
                count = (stop * D + 3 >> 2) - block
                chain = first_chain + tile * L
                fill(z, words, PLANE, 0, SHIFT, chain, block, 0, count, NORMALS, key, 0)
                if ADJUSTED:
                    count = (stop + 3 >> 2) - accept_block
                    fill(
                        u, words, UNIFORM_PLANE, 0, SHIFT, chain, accept_block, 0, count,
                        ACCEPT, key, 1,
                    )  # fmt: skip
                if TREES:
                    fill_trees(u, words, chain, step, stop - step, key)
            while step < stop:
                now = step - first_step
                uniforms = (step & 3) * UNIFORM_PLANE + ((step >> 2) - accept_block) * L
                at = now if now >= 0 else 0
                h = step_size[at * size_stride]
                h = h if now >= 0 else real(0)
                s = spread[at * spread_stride]
                s = s if now >= 0 else real(0)
                transition(
                    w, p, z, step * D - 4 * block, u, uniforms, now, h, s,
                    lengths[at * length_stride] if now >= 0 else 1, mass, root, offset,
                    step - chunk, step, first_chain + tile * L, key, words, stack,
                )  # fmt: skip
                if now < 0:
                    note_start(w, notes, tile, n_chains)
                step += 1
                left -= 1
                if left == 0:
                    settle(w, offset)
                    record(w, draws, statistics, tile, n_chains, slot, n_slots, n_draws)
                    clear(w, POTENTIAL, STATISTICS)
                    slot += 1
                    left = thin
        leave(w, CURRENT, 2 * D + 1 + CARRIED, state, tile, n_chains)
        leave(w, SIZE, 1, notes, tile, n_chains)
    work_as_before(before)
    if L > 1 and LOOPED:
        keep_loops()
