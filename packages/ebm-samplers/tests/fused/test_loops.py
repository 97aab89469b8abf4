import numba
import numpy as np

from ebm_samplers.fused.loops import keep_loops

OPTIONS = {"fastmath": {"contract", "reassoc"}, "error_model": "numpy"}


def test_short_innermost_loops_are_marked_and_become_simd():
    @numba.njit(**OPTIONS)
    def kept(w, p):
        for i in range(100):
            factor = p[i]
            for lane in range(32):
                w[(i + 201) * 32 + lane] = w[i * 32 + lane] - factor
        keep_loops()

    w = np.random.default_rng(0).normal(size=301 * 32).astype(np.float32)
    p = np.arange(100, dtype=np.float32)
    want = w.copy()
    want[201 * 32 :] = (w[: 100 * 32].reshape(100, 32) - p[:, None]).reshape(-1)
    kept(w, p)
    assert np.array_equal(w, want)
    (llvm,) = kept.inspect_llvm().values()
    assert "llvm.loop.unroll.disable" in llvm
    assert "gather" not in llvm  # the outer loop, had the inner one gone


def test_branches_and_loops_without_number():
    @numba.njit(**OPTIONS)
    def collatz(n):
        longest = 0
        for start in range(1, n):
            k, steps = start, 0
            while k != 1:
                k = k // 2 if k % 2 == 0 else 3 * k + 1
                steps += 1
            longest = max(longest, steps)
        keep_loops()
        return longest

    assert collatz(100) == 118
