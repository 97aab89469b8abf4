import numpy as np
import pytest
from interpreter import plain_product
from machine import machine

REGISTERS = ((32, 64), (16, 32), (16, 16), (32, 16))  # AVX-512, AVX, SSE2, NEON


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("lanes", (1, 2, 16, 64))
@pytest.mark.parametrize("registers", REGISTERS)
def test_products_of_all_sizes(registers, lanes, dtype):
    generator = np.random.default_rng(0)
    for k, n in ((2, 1), (7, 37), (5, 100), (3, 410)):
        product = machine(
            """
            def run(w: Reals, p: Reals, k: Int):
                product(w, p, k + 1, 1, 3)
            """,
            dtype is np.float64,
            f"""
            from ebm_samplers.fused.processor import Registers
            from ebm_samplers.fused.products import tile_product
            product = tile_product({k}, {n}, {lanes}, Registers{registers})
            """,
        )
        w = generator.normal(size=(1 + k + n + 1) * lanes).astype(dtype)
        p = generator.normal(size=3 + k * n).astype(dtype)
        want = w.copy()
        plain_product(k, n, lanes)(want, p, k + 1, 1, 3)
        product(w, p, k)
        tolerance = 1e-5 if dtype == np.float32 else 1e-13
        np.testing.assert_allclose(w, want, rtol=tolerance, atol=tolerance)
