import math

import numpy as np
import pytest
from machine import machine

from ebm_samplers.fused import compiler

INTEGERS = (-9, -8, -1, 0, 1, 7, 8, 2**31 - 1, 2**40 + 3)


def floats(text, given=(), double=False, n=16, head=""):
    out = np.full(n, -7.0, np.float64 if double else np.float32)
    machine(f"def run(out: Reals, x: 'float64*', i: Int, k: Key):\n{text}", double, head)(
        out, np.array(given or [0.0], np.float64), 5, 2**64 - 3
    )
    return out.tolist()


def refused(text, **space):
    names = {"Ints": "int64*", "Int": "int64", "Double": "float64", "np": np, "math": math, **space}
    exec(text, names)
    with pytest.raises(compiler.CannotCompile) as error:
        compiler.compiled(text, "run", names)
    return str(error.value)


@pytest.mark.parametrize(
    "expression",
    ("a + 2", "a - b", "a * b", "a // 8", "a % 8", "a // 7", "a % 7",
     "a >> 2", "a << 3", "a & b", "a | b", "a ^ b",
     "-a", "~a", "a if a < b else b", "2 if a == b or a > 6 else 3", "a if not a else -a",
     "1 if b >= 0 and a <= 7 and a != 1 else 0", "b if 0 < 1 else a", "8 if a and b else 9"),
)  # fmt: skip
def test_integers_are_those_of_python(expression):
    run = machine(f"""
        def run(out: Ints, a: Int, b: Int):
            out[0] = {expression}
    """)
    for a in INTEGERS:
        for b in (0, 3, -2):
            out = np.zeros(1, np.int64)
            run(out, a, b)
            assert out[0] == eval(expression), (a, b)


@pytest.mark.parametrize("double", (False, True))
def test_numbers_meet_as_numpys_do_in_numba(double):
    dtype = np.float64 if double else np.float32
    out = floats(
        """
    third = real(1) / real(3)
    out[0] = third
    out[1] = third * 3.0  # float64 in between
    out[2] = real(i) / real(2)
    out[3] = i / 2
    out[4] = k  # unsigned
    out[5] = np.float32(np.uint32(k))
    out[6] = np.uint64(3) - np.uint64(5)
    out[7] = np.int32(np.uint32(2) - np.uint32(3))
    out[8] = np.float32(1).view(np.int32)
    out[9] = np.int64(x[0])
    out[10] = abs(x[0]) ** 2.0
    out[11] = -real(np.inf)
    out[12] = 1 if x[1] != x[1] else 0
    out[13] = 1 if x[1] == x[1] or x[1] < x[1] else 0
    out[14] = (k >> np.uint64(60)) + (np.uint32(1) << np.uint32(4))
    out[15] = real(x[0] < x[2])
    out[16] = k // np.uint64(2**60) + k % np.uint64(2**62) // np.uint64(2**61)
    out[17] = 1 if -np.uint64(1) > np.uint64(2**63) else 0
    """,
        (-2.75, math.nan, 0.5),
        double,
        18,
    )
    third = dtype(1) / dtype(3)
    want = [third, dtype(np.float64(third) * 3.0), 2.5, 2.5, 2**64, 2**32, 2**64, -1, 0x3F800000]
    want += [-2, 2.75**2, -math.inf, 1, 0, 31, 1, 16, 1]
    assert out == [float(dtype(number)) for number in want]


def test_elementary_functions():
    names = ("sin", "cos", "exp", "log", "sqrt", "atan", "asin", "acos", "erf")
    lines = [f"    out[{i}] = math.{name}(x[0])" for i, name in enumerate(names)]
    lines += ["    out[9] = np.floor(x[1])", "    out[10] = np.sqrt(real(2))"]
    lines += ["    out[11] = math.pow(x[0], 3.0)"]
    want = [getattr(math, name)(0.25) for name in names] + [-2.0, math.sqrt(2), 0.25**3]
    assert np.allclose(floats("\n".join(lines), (0.25, -1.5), True, 12), want, 1e-15)
    lines = [line.replace("x[0]", "real(x[0])") for line in lines[:9]]
    assert np.allclose(floats("\n".join(lines), (0.25,), n=9), want[:9], 1e-6)


def test_loops_and_variables():
    out = np.zeros(4, np.int64)
    machine("""
        def run(out: Ints, n: Int):
            total = 0
            last = -1
            for i in range(n):
                for j in range(i, n, 2):
                    square = j * j
                    total += square
                    if j == 3:
                        last = i
            out[0], out[1] = total, last
            left = n
            while left > 10:
                left -= 3
            out[2] = left
            pass
            for _ in range(5, 5):
                out[3] = 1
            here: Any = left
            out[3] += here
    """)(out, 20)
    total = sum(j * j for i in range(20) for j in range(i, 20, 2))
    assert out.tolist() == [total, 3, 8, 8]


def test_constants_choose_branches_that_are_not_looked_at():
    text = """
    if FLAG:
        out[0] = 1
    else:
        out[0] = no_such_name
    out[1] = 2 if FLAG and i > 4 else 3
    out[2] = 2 if FLAG or no_such_name else 3
    """
    assert floats(text, n=3, head="FLAG = True") == [1, 2, 2]


def test_functions_that_are_called_stand_at_the_call():
    text = """
    out[0] = exp(real(x[0]))
    out[1], out[2] = cos_sin_turn(np.uint32(i))
    """
    head = "exp = arithmetic.exp_float32\nfrom ebm_samplers.philox import cos_sin_turn"
    assert np.allclose(floats(text, (1.5,), n=3, head=head), [math.exp(1.5), 1, 7.3e-9], 1e-2)


def several(x):
    if x > 0:
        return 1
    return x


@pytest.mark.parametrize(
    ("statement", "named"),
    (
        ("out[0] = b", "b has no value here"),
        ("out[0] = [1][0]", "[1]"),
        ("del out", "line 3: del out"),
        ("a // 3", "line 3"),
        ("out[0] = a // -3", "a // -3"),
        ("out[0] = a // b_argument", "a // b_argument"),
        ("out[0] = out", "int64* is no int64"),
        ("out[0] = out + 1", "do not meet"),
        ("out[0] = a[0]", "a[0]"),
        ("for i in range(0, 3, a): pass", "for i in range"),
        ("for i in range(0, 3, -1): pass", "for i in range"),
        ("for i in out: pass", "for i in out"),
        ("while a:\n        a = 0.5", "a is int64, and float64"),
        ("if a:\n        c = 1\n    out[0] = c", "c has no value here"),
        ("for i in range(3):\n        out[0] = d\n        d = i", "d has no value here"),
        ("for i in range(3):\n        pass\n    out[0] = i", "i has no value here"),
        ("out[0] = several(a)", "return"),
        ("out[0] = math.gamma(1.0)", "math.gamma(1.0)"),
        ("out[0] = math", "is not a number"),
        ("out[0] = 1 if 0 < a < 3 else 0", "0 < a < 3"),
        ("out[0] = ~0.5", "~0.5"),
        ("out[0] = 'text'", "text"),
        ("return", "return"),
    ),
)
def test_what_is_not_known_is_refused(statement, named):
    text = f"\ndef run(out: Ints, a: Int, b_argument: Int):\n    {statement}\n"
    assert named in refused(text, several=several)
