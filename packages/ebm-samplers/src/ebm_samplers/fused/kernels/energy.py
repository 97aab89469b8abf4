# ruff: noqa: F403, F405 - the names of a generated module
"""Energies and gradients of a batch."""

import numpy as np

from ebm_samplers.fused.kernels.tile import *

# compiled ---------------------------------------------------------------------------------------


@entry
def chains(p, state, first_tile, last_tile):  # type: ignore[no-untyped-def]
    """Energies and gradients of the states of some tiles."""
    w = np.zeros(ROWS * L, real)
    for tile in range(first_tile, last_tile):
        enter(w, X, state, tile)
        energy_and_gradient(w, p)
        for lane in range(min(L, len(state) - tile * L)):
            for i in range(2 * D + 1):
                state[tile * L + lane, i] = w[(X + i) * L + lane]
