import numba
import numpy as np
import pytest

from ebm_samplers.fused import arithmetic

RANGES = {
    "exp": (-87, 88.7), "log": (1e-37, 1e30), "sin": (-1e6, 1e6), "cos": (-1000, 1000),
    "expm1": (-20, 80), "log1p": (-0.999, 1e6),
    "tanh": (-12, 12), "sigmoid": (-30, 30), "softplus": (-40, 40),
}  # fmt: skip
EXACT = {
    **{name: getattr(np, name) for name in ("exp", "log", "sin", "cos", "expm1", "log1p", "tanh")},
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(0, x),
}


@pytest.mark.parametrize("name", tuple(RANGES))
def test_float32_functions(name):
    function = getattr(arithmetic, f"{name}_float32")

    @numba.njit
    def over(x, y):
        for i in range(len(x)):
            y[i] = function(x[i])

    low, high = RANGES[name]
    x = np.linspace(low, high, 100_001)
    if low > 0:
        x = np.geomspace(low, high, 100_001)
    x = np.concatenate([x, np.linspace(max(low, -1), 1, 10_001), [0.0]]).astype(np.float32)
    x = x[(x >= low) & (x <= high)]
    y = np.empty_like(x)
    over(x, y)
    want = EXACT[name](x.astype(np.float64))
    error = np.abs(y - want)
    scale = np.abs(want) if name not in ("sin", "cos") else 1.0
    assert (error <= 4e-7 * scale + 1e-38).all(), x[np.argmax(error / (scale + 1e-38))]
    if name in ("sin", "cos"):  # no phase to speak of, but a sine
        far = np.geomspace(1e7, 3e38, 1000).astype(np.float32)
        sines = np.empty_like(far)
        over(far, sines)
        assert (np.abs(sines) <= 1 + 1e-6).all()
    edges = np.array([np.inf, -np.inf, np.nan], np.float32)
    out = np.empty(3, np.float32)
    over(edges, out)
    with np.errstate(all="ignore"):
        assert np.array_equal(
            out, EXACT[name](edges.astype(np.float64)).astype(np.float32), equal_nan=True
        )


RANGES_64 = {
    "exp": (-708, 709.7), "log": (1e-307, 1e300), "expm1": (-30, 700), "log1p": (-0.999999, 1e10),
    "tanh": (-25, 25), "sigmoid": (-40, 40), "softplus": (-700, 700),
}  # fmt: skip


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no wider type to compare with")
@pytest.mark.parametrize("name", tuple(RANGES_64))
def test_float64_functions(name):
    function = getattr(arithmetic, f"{name}_float64")

    @numba.njit
    def over(x, y):
        for i in range(len(x)):
            y[i] = function(x[i])

    low, high = RANGES_64[name]
    x = np.geomspace(low, high, 50_001) if low > 0 else np.linspace(low, high, 50_001)
    small = np.geomspace(1e-12, 1, 5_001)
    x = np.concatenate([x, small, -small, np.linspace(max(low, -1), 1, 10_001), 1 + small / 10])
    x = x[(x >= low) & (x <= high)]
    y = np.empty_like(x)
    over(x, y)
    if name == "softplus":
        # np.logaddexp loses the digits of x in 1 + e^-|x| in any dtype
        wide = x.astype(np.longdouble)
        want = np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))
    else:
        want = EXACT[name](x.astype(np.longdouble))
    error = np.abs(y - want) / np.spacing(np.abs(want).astype(np.float64) + 1e-300)
    assert error.max() <= 4, (x[np.argmax(error)], error.max())
    edges = np.array([np.inf, -np.inf, np.nan, 0.0, 720.0, -760.0])
    out = np.empty(6)
    over(edges, out)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(out, EXACT[name](edges), rtol=1e-15, atol=1e-300)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("n", (1, 64))
def test_exp_beyond_its_range(dtype, n):
    # in scalar code and in SIMD code, and with the options of a kernel
    function = getattr(arithmetic, f"exp_{np.dtype(dtype).name}")
    real = np.dtype(dtype).type

    @numba.njit(error_model="numpy", fastmath={"contract", "arcp", "nsz", "afn", "reassoc"})
    def over(x, y):
        for i in range(n):
            y[i] = real(2) * function(real(0.5) * (x[i] + x[i])) * real(0.5)

    info = np.finfo(dtype)
    least, most = np.log(info.tiny), np.log(info.max)
    around = np.linspace(-0.02, 0.02, 41)
    inside = [least + 0.021 + around, most - 0.021 + around]
    zero = [least - 0.02 + around - 0.02, [-1e3, -1e4, -1e9, -1e20, -info.max / 4, -np.inf]]
    large = [[89 if dtype is np.float32 else 710, 1e4, 1e9, 1e20, info.max / 4, np.inf]]
    for given, want in ((inside, np.exp), (zero, np.zeros_like), (large, lambda x: np.inf * x)):
        for value in np.concatenate(given).astype(dtype):
            x, y = np.full(n, value), np.empty(n, dtype)
            over(x, y)
            wanted = want(np.float64(value))
            assert np.allclose(y, wanted, rtol=4 * info.eps, atol=2 * info.tiny), value
    x, y = np.full(n, np.nan, dtype), np.empty(n, dtype)
    over(x, y)
    assert np.isnan(y).all()
