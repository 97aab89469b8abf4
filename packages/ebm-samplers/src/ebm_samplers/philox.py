"""Philox4x32-10 and the numbers made of it: the one source of randomness, on every device.

Philox (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a
function from a counter (four 32-bit words) and a key (two) to four random words. There is no state
to carry along, so the numbers of a chain do not depend on how many chains, threads or pieces a run
has. The layout is public, and fixed for ever:

- key = (low, high word of the 64-bit seed); counter = (chain, low word of index, high word of
  index, stream);
- normal n of a chain comes from block (index) n // 4. Box–Muller makes normals 0 and 1 of a block
  from its words 0 and 1, and normals 2 and 3 from its words 2 and 3: r cos θ and r sin θ with r =
  sqrt(-2 ln u), u = (first word + 1/2)·2⁻³² and θ = 2π·(second word)·2⁻³². In float32 and float64
  these are the same numbers, to rounding;
- uniform n is ((w >> 9) + 1/2)·2⁻²³ with w = word n mod 4 of block n // 4: exact in both dtypes,
  never 0 or 1.

The functions are plain Python on integers, compiled by `fused.compiler`, or by Numba, which makes
device functions for CUDA of them too; `philox4x32` runs the same source on NumPy arrays.

Speed comes from form (`fused.kernels.noise`): a tile of blocks is made in two passes, first the
integers, then the numbers, each a loop without loads of counters or calls to libm, which LLVM turns
into SIMD code; logarithm, sine and cosine are polynomials. A tile is always computed
whole, so that no number depends on its place among others.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebm_core import ConfigurationError, ShapeError

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)

_f, _i, _u = np.float32, np.int32, np.uint32
_ROOT_HALF = _u(0xB504F334)  # sqrt(1/2)·2³², and its bits as a float32:
_ROOT_HALF_BITS = _i(0x3F3504F3)
_TURN = 2.0 * math.pi * 2.0**-32


def _compiled(function: Callable[..., Any]) -> Any:
    options: dict[str, Any] = {
        "error_model": "numpy",
        "nogil": True,
        "fastmath": {"contract"},
        "forceinline": True,
    }
    return numba.njit(**options)(function)


@_compiled
def philox_block(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """The four words of a counter under a key; every number a uint64 that holds 32 bits."""
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0 = (p1 >> _32) ^ c1 ^ k0
        c1 = p1 & _LOW
        c2 = (p0 >> _32) ^ c3 ^ k1
        c3 = p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@_compiled
def minus_log_unit(w):  # type: ignore[no-untyped-def]
    """-ln((w + 1/2)·2⁻³²) of a uint32 word, in float32; relative error below 2e-7.

    Above sqrt(1/2) the distance from 1 is taken from the integer, exactly; below, from mantissa and
    exponent.
    """
    close_to_one = w >= _ROOT_HALF
    v = _f(~w if close_to_one else w) + _f(0.5)
    bits = np.float32(v).view(np.int32)  # numba wants these spelt out
    exponent = (bits - _ROOT_HALF_BITS) >> _i(23)
    mantissa = np.int32(bits - (exponent << _i(23))).view(np.float32)
    t = -v * _f(2.0**-32) if close_to_one else mantissa - _f(1)
    k = _f(0) if close_to_one else _f(32) - _f(exponent)
    # (ln(1 + t) - t + t²/2)/t³ on [sqrt(1/2) - 1, sqrt(2) - 1], least maximum error 6e-9
    p = _f(-0.07634429633617401)
    p = p * t + _f(0.12761549651622772)
    p = p * t + _f(-0.131601944565773)
    p = p * t + _f(0.14201761782169342)
    p = p * t + _f(-0.16623356938362122)
    p = p * t + _f(0.20001226663589478)
    p = p * t + _f(-0.250008225440979)
    p = p * t + _f(0.3333333134651184)
    return k * _f(0.6931471805599453) - (t - t * t * (_f(0.5) - t * p))


@_compiled
def cos_sin_turn(w):  # type: ignore[no-untyped-def]
    """Cosine and sine of 2π·w·2⁻³² of a uint32 word, in float32; error below 1.2e-7."""
    quadrant = (w + _u(0x20000000)) >> _u(30)
    t = _f(_i(_u(w - (quadrant << _u(30))))) * _f(_TURN)
    z = t * t
    s = t + t * z * (
        _f(-0.16666655242443085) + z * (_f(0.008332177996635437) + z * _f(-0.00019517297914717346))
    )
    c = _f(1) + z * (
        _f(-0.5)
        + z
        * (
            _f(0.04166664555668831)
            + z * (_f(-0.001388736767694354) + z * _f(2.443845005473122e-05))
        )
    )
    odd = (quadrant & _u(1)) != 0
    cosine = s if odd else c
    sine = c if odd else s
    if ((quadrant + _u(1)) & _u(2)) != 0:
        cosine = -cosine
    if (quadrant & _u(2)) != 0:
        sine = -sine
    return cosine, sine


@_compiled
def minus_log_unit_float64(w):  # type: ignore[no-untyped-def]
    """-ln((w + 1/2)·2⁻³²) of a uint32 word, in float64; relative error below 1e-15."""
    bits = np.float64((np.float64(w) + 0.5) * 2.0**-32).view(np.int64)
    exponent = (bits - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)
    t = np.int64(bits - (exponent << np.int64(52))).view(np.float64) - 1.0
    s = t / (2.0 + t)  # ln(1 + t) = 2 artanh s, of which t - t²/2 is taken out
    z = s * s
    p = 0.09523809523809523
    p = p * z + 0.10526315789473684
    p = p * z + 0.11764705882352941
    p = p * z + 0.13333333333333333
    p = p * z + 0.15384615384615385
    p = p * z + 0.18181818181818182
    p = p * z + 0.2222222222222222
    p = p * z + 0.2857142857142857
    p = p * z + 0.4
    p = p * z + 0.6666666666666666
    h = 0.5 * t * t
    k = np.float64(exponent)
    return ((h - (s * (h + z * p) + k * 1.9082149292705877e-10)) - t) - k * 0.6931471803691238


@_compiled
def cos_sin_turn_float64(w):  # type: ignore[no-untyped-def]
    """Cosine and sine of 2π·w·2⁻³² of a uint32 word, in float64; error below 3e-16."""
    quadrant = (w + _u(0x20000000)) >> _u(30)
    t = np.float64(_i(_u(w - (quadrant << _u(30))))) * _TURN
    z = t * t
    s = 2.8114572543455206e-15
    s = s * z + -7.647163731819816e-13
    s = s * z + 1.6059043836821613e-10
    s = s * z + -2.505210838544172e-08
    s = s * z + 2.7557319223985893e-06
    s = s * z + -0.0001984126984126984
    s = s * z + 0.008333333333333333
    s = s * z + -0.16666666666666666
    s = t + t * z * s
    c = 4.779477332387385e-14
    c = c * z + -1.1470745597729725e-11
    c = c * z + 2.08767569878681e-09
    c = c * z + -2.755731922398589e-07
    c = c * z + 2.48015873015873e-05
    c = c * z + -0.001388888888888889
    c = c * z + 0.041666666666666664
    c = c * z + -0.5
    c = 1.0 + z * c
    odd = (quadrant & _u(1)) != 0
    cosine = s if odd else c
    sine = c if odd else s
    if ((quadrant + _u(1)) & _u(2)) != 0:
        cosine = -cosine
    if (quadrant & _u(2)) != 0:
        sine = -sine
    return cosine, sine


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """The random words of counters under keys: Philox4x32-10 (Salmon et al. 2011).

    Args:
        counter: Words below 2³² (integers, array or tensor), ``(..., 4)``.
        key: Words below 2³², ``(..., 2)``; leading axes broadcast with the counter's.

    Returns:
        Words, ``(..., 4)``.

    Raises:
        ShapeError: If the last axis has another length.
        ConfigurationError: If a word is no integer from 0 to 2³² - 1.

    Example:
        >>> [f"{word:08x}" for word in philox4x32([0, 0, 0, 0], [0, 0])]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    counters, keys = _words("counter", counter, 4), _words("key", key, 2)
    block = philox_block.py_func(
        *(counters[..., i] for i in range(4)), *(keys[..., i] for i in range(2))
    )
    return np.stack(np.broadcast_arrays(*block), axis=-1).astype(np.uint32)


def _words(name: str, value: ArrayLike, length: int) -> NDArray[np.uint64]:
    words = np.asarray(value)
    if words.ndim == 0 or words.shape[-1] != length:
        raise ShapeError(f"{name} has shape {words.shape}", f"(..., {length})", f"reshape {name}")
    if words.dtype.kind not in "iu" or (words < 0).any() or (words >= 2**32).any():
        raise ConfigurationError(
            f"{name} is {value!r}", "integers from 0 to 2**32 - 1", f"pass {name} as 32-bit words"
        )
    return words.astype(np.uint64)
