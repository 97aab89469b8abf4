# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Philox's numbers for tiles, in planes; see `tile` for their order.

This function does not depend on the energy: it is compiled once, apart from the kernels that call
it, and called once for some steps.
"""

import math
from typing import Any

import numpy as np

from ebm_samplers.fused.kernels.tile import Int, Key, Reals, Words
from ebm_samplers.philox import (
    cos_sin_turn,
    cos_sin_turn_float64,
    minus_log_unit,
    minus_log_unit_float64,
)

real: Any = np.float32
DOUBLE = False

# compiled ---------------------------------------------------------------------------------------


def fill(
    out: Reals, words: Words, plane: Int, at: Int, shift: Int, chain: Int,
    first_block: Int, apart: Int, n_blocks: Int, stream: Int, key: Key, uniform: Int,
):  # fmt: skip
    """Numbers of ``n_blocks`` blocks of the 2^shift chains from ``chain`` on.

    The blocks are ``first_block`` and those 2^apart, 2·2^apart, … further on. Numbers go into the
    planes of ``out`` from place ``at`` on.

    First the integers, then normals or uniforms, each in a loop that LLVM turns into SIMD code.
    """
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    s, wide = np.uint64(shift), np.uint64(apart)
    mask = (np.uint64(1) << s) - np.uint64(1)
    n = n_blocks << shift
    for q in range(n):
        # Philox's rounds stand here in full: a call of philox_block is not always inlined.
        block = np.uint64(first_block) + ((np.uint64(q) >> s) << wide)
        c0 = (np.uint64(chain) + (np.uint64(q) & mask)) & low
        c1 = block & low
        c2 = block >> high
        c3 = np.uint64(stream)
        k0 = key & low
        k1 = key >> high
        for _ in range(10):
            p0 = np.uint64(0xD2511F53) * c0
            p1 = np.uint64(0xCD9E8D57) * c2
            c0 = (p1 >> high) ^ c1 ^ k0
            c1 = p1 & low
            c2 = (p0 >> high) ^ c3 ^ k1
            c3 = p0 & low
            k0 = (k0 + np.uint64(0x9E3779B9)) & low
            k1 = (k1 + np.uint64(0xBB67AE85)) & low
        words[q] = np.uint32(c0)
        words[plane + q] = np.uint32(c1)
        words[2 * plane + q] = np.uint32(c2)
        words[3 * plane + q] = np.uint32(c3)
    if uniform:
        for word in range(4):
            a = word * plane
            for q in range(n):
                number = np.float32(words[a + q] >> np.uint32(9)) + np.float32(0.5)
                out[a + at + q] = number * np.float32(2.0**-23)
    else:
        for pair in range(2):
            a, b = 2 * pair * plane, (2 * pair + 1) * plane
            for q in range(n):
                if DOUBLE:
                    radius = math.sqrt(2.0 * minus_log_unit_float64(words[a + q]))
                    cosine_64, sine_64 = cos_sin_turn_float64(words[b + q])
                    out[a + at + q] = radius * cosine_64
                    out[b + at + q] = radius * sine_64
                else:
                    distance = np.sqrt(np.float32(2) * minus_log_unit(words[a + q]))
                    cosine, sine = cos_sin_turn(words[b + q])
                    out[a + at + q] = distance * cosine
                    out[b + at + q] = distance * sine
