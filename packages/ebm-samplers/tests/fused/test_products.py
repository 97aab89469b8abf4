import numba
import numpy as np
import pytest
from interpreter import plain_product

from ebm_samplers.fused.products import tile_product


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("lanes", (1, 2, 16, 64))
def test_products_of_all_sizes(lanes, dtype):
    sizes = ((2, 1), (7, 37), (5, 100), (3, 410))
    products = tuple(tile_product(*size, lanes) for size in sizes)
    one, two, three, four = products

    @numba.njit
    def run(w, p, k, n, which):
        if which == 0:
            one(w, p, k + 1, 1, 3)
        elif which == 1:
            two(w, p, k + 1, 1, 3)
        elif which == 2:
            three(w, p, k + 1, 1, 3)
        else:
            four(w, p, k + 1, 1, 3)

    generator = np.random.default_rng(0)
    for which, (k, n) in enumerate(sizes):
        w = generator.normal(size=(1 + k + n + 1) * lanes).astype(dtype)
        p = generator.normal(size=3 + k * n).astype(dtype)
        want = w.copy()
        plain_product(k, n, lanes)(want, p, k + 1, 1, 3)
        run(w, p, k, n, which)
        tolerance = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(w, want, rtol=tolerance, atol=tolerance)
