# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Numbers of some chains as an array, for torch; made by `noise.fill`, tile after tile."""

import numpy as np

from ebm_samplers.fused.kernels.tile import Int, Key, Reals, Words, fill

TILE = 128  # blocks made at once
SHIFT = 7  # its logarithm

# compiled ---------------------------------------------------------------------------------------


def fill_rows(
    out: Reals, rows: Int, length: Int, uniform: Int, key: Key, stream: Int, first_chain: Int,
    first_index: Key, words: Words, z: Reals,
):  # fmt: skip
    """Element (i, j) of ``out`` is number first_index + j of chain first_chain + i."""
    first_block = np.int64(first_index >> np.uint64(2))
    skipped = np.int64(first_index & np.uint64(3))
    n_blocks = (skipped + length + 3) // 4
    if rows >= n_blocks:  # lanes run over chains, or over the blocks of one: whichever are more
        for block in range(n_blocks):
            for row in range(0, rows, TILE):
                at = first_block + block
                fill(z, words, TILE, 0, SHIFT, first_chain + row, at, 0, 1, stream, key, uniform)
                count = TILE if row + TILE < rows else rows - row
                for word in range(4):
                    column = 4 * block + word - skipped
                    if column >= 0 and column < length:
                        for i in range(count):
                            out[(row + i) * length + column] = z[word * TILE + i]
    else:
        for row in range(rows):
            for block in range(0, n_blocks, TILE):
                count = TILE if block + TILE < n_blocks else n_blocks - block
                at = first_block + block
                fill(z, words, TILE, 0, 0, first_chain + row, at, 0, count, stream, key, uniform)
                for i in range(count):
                    column = 4 * (block + i) - skipped
                    for word in range(4):
                        if column + word >= 0 and column + word < length:
                            out[row * length + column + word] = z[word * TILE + i]
