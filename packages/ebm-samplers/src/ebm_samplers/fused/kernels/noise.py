"""Philox's numbers for tiles, in planes; see `tile` for their order.

These functions do not depend on the energy. They are called once for some steps, so that nothing is
lost by not inlining them.
"""

import math

import numpy as np

from ebm_samplers.philox import _compiled, cos_sin_turn, minus_log_unit

# compiled ---------------------------------------------------------------------------------------


@_compiled
def fill_words(words, plane, shift, chain, first_block, n_blocks, stream, key):  # type: ignore[no-untyped-def]
    """Words of blocks ``first_block``, … of the 2^shift chains from ``chain`` on."""
    # Philox's rounds stand here in full: a call of philox_block is not always inlined, and then
    # nothing is SIMD.
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    s = np.uint64(shift)
    mask = (np.uint64(1) << s) - np.uint64(1)
    for q in range(n_blocks << shift):
        block = np.uint64(first_block) + (np.uint64(q) >> s)
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


@_compiled
def fill_normals_float32(z, words, plane, n):  # type: ignore[no-untyped-def]
    """The first ``n`` normals of each plane."""
    for pair in range(2):
        a = 2 * pair * plane
        for q in range(n):
            radius = np.sqrt(np.float32(2) * minus_log_unit(words[np.uint64(a + q)]))
            cosine, sine = cos_sin_turn(words[np.uint64(a + plane + q)])
            z[np.uint64(a + q)] = radius * cosine
            z[np.uint64(a + plane + q)] = radius * sine


@_compiled
def fill_normals_float64(z, words, plane, n):  # type: ignore[no-untyped-def]
    """The first ``n`` normals of each plane."""
    for pair in range(2):
        a = 2 * pair * plane
        for q in range(n):
            radius = math.sqrt(-2.0 * math.log((words[a + q] + 0.5) * 2.0**-32))
            angle = words[a + plane + q] * (2.0 * math.pi * 2.0**-32)
            z[a + q] = radius * math.cos(angle)
            z[a + plane + q] = radius * math.sin(angle)


@_compiled
def fill_uniforms(u, words, plane, n):  # type: ignore[no-untyped-def]
    """The first ``n`` uniforms of each plane."""
    for word in range(4):
        a = word * plane
        for q in range(n):
            number = np.float32(words[np.uint64(a + q)] >> np.uint32(9)) + np.float32(0.5)
            u[np.uint64(a + q)] = number * np.float32(2.0**-23)
