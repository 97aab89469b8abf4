import numpy as np
from machine import machine

from ebm_samplers.fused import compiler, loops

ROWS = """
def run(w: Reals, p: Reals):
    for i in range(100):
        factor = p[i]
        for lane in range(32):
            w[(i + 201) * 32 + lane] = w[i * 32 + lane] - factor
    keep_loops()
"""


def test_short_innermost_loops_are_marked():
    w = np.random.default_rng(0).normal(size=301 * 32).astype(np.float32)
    p = np.arange(100, dtype=np.float32)
    want = w.copy()
    want[201 * 32 :] = (w[: 100 * 32].reshape(100, 32) - p[:, None]).reshape(-1)
    machine(ROWS, head="from ebm_samplers.fused.loops import keep_loops")(w, p)
    assert np.array_equal(w, want)
    space = {"Reals": "float32*", "keep_loops": loops.keep_loops}
    exec(ROWS, space)
    text = str(compiler.compiled(ROWS, "run", space))
    assert text.count("llvm.loop.unroll.disable") == 1  # a mark, for the inner loop alone
    assert text.count("!llvm.loop") == 1


def test_branches_and_loops_without_number():
    collatz = """
    def run(n: Int, out: Ints):
        longest = 0
        for start in range(1, n):
            k = start
            steps = 0
            while k != 1:
                if k % 2 == 0:
                    k = k // 2
                else:
                    k = 3 * k + 1
                steps += 1
            longest = steps if steps > longest else longest
        out[0] = longest
        keep_loops()
    """
    out = np.zeros(1, np.int64)
    machine(collatz, head="from ebm_samplers.fused.loops import keep_loops")(100, out)
    assert out[0] == 118
