# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: F403, F405 - the names of a generated module
"""Energies and gradients of a batch, and what derivatives by parameters are made of."""

from typing import Any

from ebm_samplers.fused.kernels.tile import *


def export(w: Any, exported: Any, tile: Any, stride: Any) -> None:
    """Stands for the generated function: exported rows into an array ``(row, chain)``."""


# compiled ---------------------------------------------------------------------------------------

END = OWN


def chains(
    p: Reals, source: Reals, state: Reals, n_chains: Int, exported: Reals, stride: Int,
    memory: Reals, first_tile: Int, last_tile: Int,
):  # fmt: skip
    """Energies, gradients and exports of the states of some tiles."""
    before = work_fast()
    w = local(memory) if END <= LOCAL_ROWS else memory
    for tile in range(first_tile, last_tile):
        enter(w, X, D, source, tile, n_chains)
        energy_and_gradient(w, p)
        leave(w, X, 2 * D + 1, state, tile, n_chains)
        export(w, exported, tile, stride)
    work_as_before(before)
    if L > 1 and LOOPED:
        keep_loops()
