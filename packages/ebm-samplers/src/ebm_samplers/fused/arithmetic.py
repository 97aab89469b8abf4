"""Elementary functions for kernels, in a form that LLVM turns into SIMD code.

They are polynomials after a range reduction by integer bits, without branches, to about 2 units in
the last place in float32 and 4 in float64 (errors are relative unless said otherwise, and measured
in the tests); numbers below the smallest normal one become 0. Those of exp and log are in pairs of
terms, so that fewer operations wait for another than in Horner's form. Reassociation would undo the
reductions, so that these functions are compiled with contraction alone. What is not here is that of
the C library: in float64, sine and cosine too, whose reduction takes more than it brings.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "nogil": True,
    "fastmath": {"contract"},
    "forceinline": True,  # else LLVM calls a function that is used often, and SIMD is lost
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}

_f, _i = np.float32, np.int32


def _compiled(function: Callable[..., Any]) -> Any:
    return numba.njit(**OPTIONS)(function)


@_compiled
def exp_float32(x):  # type: ignore[no-untyped-def]
    """e^x."""
    # Adding 3·2²² rounds to an integer, which then is in the lowest bits, and stays right up to
    # where the result is not normal; what is computed beyond is not used.
    shifted = np.float32(x * _f(1.44269504) + _f(12582912))
    k = shifted - _f(12582912)
    r = x - k * _f(0.693359375)
    r = r + k * _f(2.12194440e-4)
    z = r * r
    p = _f(1.9875691500e-4) * r + _f(1.3981999507e-3)
    p = p * z + (_f(8.3334519073e-3) * r + _f(4.1665795894e-2))
    p = p * z + (_f(1.6666665459e-1) * r + _f(5.0000001201e-1))
    y = np.float32(p * z + r + _f(1))
    y = np.int32(y.view(np.int32) + (shifted.view(np.int32) << _i(23))).view(np.float32)
    y = y if x >= _f(-87.33) else _f(0)
    return y if x <= _f(88.72283) else x * _f(np.inf)  # infinity, and NaN


@_compiled
def log_float32(x):  # type: ignore[no-untyped-def]
    """ln x."""
    tiny = x < _f(1.17549435e-38)
    v = x * _f(8388608.0) if tiny else x
    bits = np.float32(v).view(np.int32)
    k = _i(_i(bits - _i(0x3F3504F3)) >> _i(23))  # Numba's arithmetic of integers is in 64 bits
    t = np.int32(bits - (k << _i(23))).view(np.float32) - _f(1)
    e = _f(k) - (_f(23) if tiny else _f(0))
    z = t * t
    p = _f(7.0376836292e-2) * z + (_f(-1.1514610310e-1) * t + _f(1.1676998740e-1))
    p = p * z + (_f(-1.2420140846e-1) * t + _f(1.4249322787e-1))
    p = p * z + (_f(-1.6668057665e-1) * t + _f(2.0000714765e-1))
    p = p * z + (_f(-2.4999993993e-1) * t + _f(3.3333331174e-1))
    y = t * z * p + e * _f(-2.12194440e-4) - _f(0.5) * z
    y = t + y + e * _f(0.693359375)
    y = y if x < _f(np.inf) else x  # infinity and NaN
    y = _f(-np.inf) if x == _f(0) else y
    return _f(np.nan) if x < _f(0) else y


@_compiled
def _sine_of_quarters(x, quarters):  # type: ignore[no-untyped-def]
    wide = np.float64(x)  # so that the reduction is exact to rounding for |x| up to some 1e8
    k = np.floor(wide * 0.6366197723675814 + 0.5)
    r = _f(wide - k * 1.5707963267948966)
    r = r if abs(r) < _f(1) else _f(0)  # beyond 1e15, where x does not know its phase
    z = r * r
    s = r + r * z * (_f(-1.6666654611e-1) + z * (_f(8.3321608736e-3) + z * _f(-1.9515295891e-4)))
    c = (
        _f(1)
        - _f(0.5) * z
        + z
        * z
        * (
            _f(4.166664568298827e-2)
            + z * (_f(-1.388731625493765e-3) + z * _f(2.443315711809948e-5))
        )
    )
    q = _i(k - 4.0 * np.floor(0.25 * k)) + quarters
    y = c if (q & _i(1)) != 0 else s
    y = -y if (q & _i(2)) != 0 else y
    return y if abs(x) < _f(np.inf) else _f(np.nan)


@_compiled
def sin_float32(x):  # type: ignore[no-untyped-def]
    """sin x."""
    return _sine_of_quarters(x, _i(0))


@_compiled
def cos_float32(x):  # type: ignore[no-untyped-def]
    """cos x."""
    return _sine_of_quarters(x, _i(1))


@_compiled
def expm1_float32(x):  # type: ignore[no-untyped-def]
    """e^x - 1."""
    # near 0 by the series, elsewhere from exp
    s = _f(1.0 / 5040)
    s = s * x + _f(1.0 / 720)
    s = s * x + _f(1.0 / 120)
    s = s * x + _f(1.0 / 24)
    s = s * x + _f(1.0 / 6)
    s = s * x + _f(0.5)
    near = x + x * x * s
    return near if abs(x) < _f(0.35) else exp_float32(x) - _f(1)


@_compiled
def log1p_float32(x):  # type: ignore[no-untyped-def]
    """ln(1 + x)."""
    u = _f(1) + x
    y = log_float32(u)
    # the rounding error of 1 + x, put right to first order
    y = y + (x - (u - _f(1))) / u
    y = x if u == _f(1) else y
    return y if u < _f(np.inf) and u > _f(0) else log_float32(u)


@_compiled
def tanh_float32(x):  # type: ignore[no-untyped-def]
    """tanh x."""
    z = x * x
    p = _f(-5.70498872745e-3)
    p = p * z + _f(2.06390887954e-2)
    p = p * z + _f(-5.37397155531e-2)
    p = p * z + _f(1.33314422036e-1)
    p = p * z + _f(-3.33332819422e-1)
    near = x + x * z * p
    far = _f(1) - _f(2) / (exp_float32(_f(2) * abs(x)) + _f(1))
    far = -far if x < _f(0) else far
    return near if abs(x) < _f(0.625) else far


@_compiled
def sigmoid_float32(x):  # type: ignore[no-untyped-def]
    """1/(1 + e^-x)."""
    return _f(1) / (_f(1) + exp_float32(-x))


@_compiled
def softplus_float32(x):  # type: ignore[no-untyped-def]
    """ln(1 + e^x)."""
    return (x if x > _f(0) else _f(0)) + log1p_float32(exp_float32(-abs(x)))


@_compiled
def exp_float64(x):  # type: ignore[no-untyped-def]
    """e^x."""
    shifted = np.float64(x * 1.4426950408889634 + 6755399441055744.0)  # as in float32; 3·2⁵¹
    k = shifted - 6755399441055744.0
    r = x - k * 0.693145751953125
    r = r - k * 1.4286068203094173e-06
    z = r * r
    p = 1.6059043836821613e-10 * r + 2.08767569878681e-09  # 1/n!: |r| < 0.35 leaves no more
    p = p * z + (2.505210838544172e-08 * r + 2.755731922398589e-07)
    p = p * z + (2.7557319223985893e-06 * r + 2.48015873015873e-05)
    p = p * z + (0.0001984126984126984 * r + 0.001388888888888889)
    p = p * z + (0.008333333333333333 * r + 0.041666666666666664)
    p = p * z + (0.16666666666666666 * r + 0.5)
    y: Any = np.float64(1.0 + (r + z * p))
    y = np.int64(y.view(np.int64) + (shifted.view(np.int64) << 52)).view(np.float64)
    y = y if x >= -708.39 else 0.0
    return y if x <= 709.782712893384 else x * np.inf  # infinity, and NaN


@_compiled
def log_float64(x):  # type: ignore[no-untyped-def]
    """ln x."""
    tiny = x < 2.2250738585072014e-308
    v = x * 18014398509481984.0 if tiny else x
    bits = np.float64(v).view(np.int64)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    t = np.int64(bits - (k << 52)).view(np.float64) - 1.0
    e = np.float64(k) - (54.0 if tiny else 0.0)
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
    y: Any = s * (h + z * p) + e * 1.9082149292705877e-10
    y = e * 0.6931471803691238 - ((h - y) - t)
    y = y if x < np.inf else x  # infinity and NaN
    y = -np.inf if x == 0.0 else y
    return np.nan if x < 0.0 else y


@_compiled
def expm1_float64(x):  # type: ignore[no-untyped-def]
    """e^x - 1."""
    s = 4.779477332387385e-14
    s = s * x + 7.647163731819816e-13
    s = s * x + 1.1470745597729725e-11
    s = s * x + 1.6059043836821613e-10
    s = s * x + 2.08767569878681e-09
    s = s * x + 2.505210838544172e-08
    s = s * x + 2.755731922398589e-07
    s = s * x + 2.7557319223985893e-06
    s = s * x + 2.48015873015873e-05
    s = s * x + 0.0001984126984126984
    s = s * x + 0.001388888888888889
    s = s * x + 0.008333333333333333
    s = s * x + 0.041666666666666664
    s = s * x + 0.16666666666666666
    s = s * x + 0.5
    near = x + x * x * s
    return near if abs(x) < 0.5 else exp_float64(x) - 1.0


@_compiled
def log1p_float64(x):  # type: ignore[no-untyped-def]
    """ln(1 + x)."""
    u = 1.0 + x
    y = log_float64(u)
    # the rounding error of 1 + x, put right to first order
    y = y + (x - (u - 1.0)) / u
    y = x if u == 1.0 else y
    return y if u < np.inf and u > 0.0 else log_float64(u)


@_compiled
def tanh_float64(x):  # type: ignore[no-untyped-def]
    """tanh x."""
    size = abs(x)
    e = expm1_float64(2.0 * (size if size < 20.0 else 20.0))
    y = e / (e + 2.0)
    y = -y if x < 0.0 else y
    return y if x == x else x


@_compiled
def sigmoid_float64(x):  # type: ignore[no-untyped-def]
    """1/(1 + e^-x)."""
    return 1.0 / (1.0 + exp_float64(-x))


@_compiled
def softplus_float64(x):  # type: ignore[no-untyped-def]
    """ln(1 + e^x)."""
    return (x if x > 0.0 else 0.0) + log1p_float64(exp_float64(-abs(x)))


def sigmoid(x: Any) -> Any:
    """1/(1 + e^-x), by NumPy."""
    return 1.0 / (1.0 + np.exp(-x))


def softplus(x: Any) -> Any:
    """ln(1 + e^x), by NumPy."""
    return np.logaddexp(0.0, x)


NUMPY_NAMES = {
    **{n: f"np.{n}" for n in ("exp", "log", "sin", "cos", "tanh", "log1p", "expm1", "sqrt")},
    **{n: f"np.arc{n[1:]}" for n in ("atan", "asin", "acos")},
    "floor": "np.floor",
    **{n: f"math.{n}" for n in ("erf", "erfc")},
    **{n: f"arithmetic.{n}" for n in ("sigmoid", "softplus")},
}
"""How source that is not compiled calls each function."""


def function_names(double: bool) -> dict[str, str]:
    """How generated source calls each function in a dtype."""
    names = {name: f"math.{name}" for name in ("atan", "asin", "acos", "erf", "erfc", "sqrt")}
    names["floor"] = "np.floor"
    ours = ["exp", "log", "tanh", "sigmoid", "softplus", "log1p", "expm1"]
    if double:
        names |= {name: f"math.{name}" for name in ("sin", "cos")}
    else:
        ours += ["sin", "cos"]
    dtype = "float64" if double else "float32"
    return names | {name: f"arithmetic.{name}_{dtype}" for name in ours}
