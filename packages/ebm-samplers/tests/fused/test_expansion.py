"""What kernels become before they are compiled, run as plain Python."""

import ast
import textwrap

import numpy as np
import pytest

from ebm_samplers.fused.expansion import expanded
from ebm_samplers.fused.registers import simplify

L, D, ROWS = 4, 3, 12

PROCEDURES = textwrap.dedent("""
    SECOND = FIRST + D

    def scale(w, row, by):
        for i in range(D):
            factor = by[i]
            for lane in range(L):
                w[(row + i) * L + lane] *= factor

    def mix(w, p):
        '''Rows SECOND + i from rows i, and row 9, which is used here alone.'''
        for i in range(D):
            at = i * 2
            for lane in range(L):
                a = w[(FIRST + i) * L + lane]
                w[9 * L + lane] = a + p[at]
                w[(SECOND + i) * L + lane] += w[9 * L + lane] if a > 0 else -a

    def chains(w, p, by, n):
        for step in range(n):
            if EXTRA:
                scale(w, SECOND, by)
            mix(w, p)
            total = p[0]
            scale(w, FIRST, by)
            for lane in range(L):
                w[10 * L + lane] = total + w[FIRST * L + lane]
        for i in range(2):
            for chain in range(L):
                w[(10 + i) * L + chain] += 1.0
""")


def constants(extra):
    return {"L": L, "D": D, "FIRST": 0, "EXTRA": extra}


def arrays():
    g = np.random.default_rng(0)
    return g.normal(size=ROWS * L), g.normal(size=2 * D), g.uniform(0.5, 1, size=D), 3


def plain(extra):
    names = constants(extra)
    exec(PROCEDURES, names)
    args = arrays()
    names["chains"](*args)
    return args[0].reshape(ROWS, L)


def rewritten(extra, source=PROCEDURES):
    function, values = expanded(source, "chains", constants(extra), [])
    assert values["SECOND"] == D
    numbers = simplify(function, L)
    text = ast.unparse(ast.fix_missing_locations(function))
    names = {"real": float, "np": np, "select": lambda c, a, b: a if c else b}
    for name, number in numbers.items():
        names[name] = eval(number, names)
    exec(text, names)
    args = arrays()
    names["chains"](*args)
    return args[0].reshape(ROWS, L), text


@pytest.mark.parametrize("extra", (0, 1))
def test_the_same_numbers_come_out(extra):
    have, _ = rewritten(extra)
    want = plain(extra)
    used = [row for row in range(ROWS) if row != 9]
    assert np.array_equal(have[used], want[used])


def test_one_loop_over_lanes_without_calls_or_rows_that_nobody_reads():
    have, text = rewritten(0)
    assert text.count(f"range({L})") == 1 + 1  # lanes; chains
    assert "mix" not in text
    assert "scale" not in text
    assert np.array_equal(have[9], arrays()[0].reshape(ROWS, L)[9])  # not stored


def test_loops_stay_apart_where_a_scalar_between_them_reads_the_tile():
    source = PROCEDURES.replace("total = p[0]", "total = w[0]")
    have, text = rewritten(0, source)
    assert text.count(f"range({L})") == 2 + 1
    names = constants(0)
    exec(source, names)
    args = arrays()
    names["chains"](*args)
    assert np.array_equal(have, args[0].reshape(ROWS, L)) or np.array_equal(
        np.delete(have, 9, 0), np.delete(args[0].reshape(ROWS, L), 9, 0)
    )
