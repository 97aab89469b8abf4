"""What `ptx` makes of instructions, in corners that few kernels come to."""

import numpy as np
import pytest
from ptx import Program, translated

HEAD = """
.visible .entry chains(.param .u64 chains_param_0, .param .u64 chains_param_1) {
.reg .pred %p<4>; .reg .b16 %rs<4>; .reg .b32 %r<20>; .reg .b64 %rd<20>;
.reg .f32 %f<10>; .reg .f64 %fd<10>;
ld.param.u64 %rd1, [chains_param_0];
ld.param.u64 %rd2, [chains_param_1];
ld.global.u64 %rd3, [%rd2]; ld.global.u64 %rd4, [%rd2+8];
ld.global.f64 %fd1, [%rd2]; ld.global.f32 %f1, [%rd2];
"""


def result(body, *given, out=np.uint64):
    """What a kernel leaves at %rd1, given two numbers of eight bytes, in %rd3 and %rd4."""
    into, held = np.zeros(2, np.uint64), np.array([g.view(np.uint64) for g in given])
    addresses = np.array([into.ctypes.data, held.ctypes.data], np.uint64)
    params = addresses.ctypes.data + 8 * np.arange(2, dtype=np.uint64)
    Program(f"{HEAD}{body} ret; }}")(params.ctypes.data, 1, 1)
    return into.view(out)[0]


A, B = np.uint64(2**63 + 2**40 + 2**32 - 5), np.uint64(2**63 + 2**35 + 77)
HALVES = "mov.b64 {%r1, %r2}, %rd3; mov.b64 {%r3, %r4}, %rd4;"
JOIN = "mov.b64 %rd5, {%r5, %r6}; st.global.u64 [%rd1], %rd5;"
STORE = "st.global.u64 [%rd1], %rd5;"
TINY = float(np.float32(1e-39))
CASES = {
    "carries": (
        f"{HALVES} add.cc.u32 %r5, %r1, %r3; addc.u32 %r6, %r2, %r4; {JOIN}",
        (int(A) + int(B)) % 2**64,
    ),
    "borrows": (
        f"{HALVES} sub.cc.u32 %r5, %r3, %r1; subc.u32 %r6, %r4, %r2; {JOIN}",
        (int(B) - int(A)) % 2**64,
    ),
    "products with carries": (
        f"{HALVES} mad.lo.cc.u32 %r5, %r1, %r3, %r4; madc.hi.u32 %r6, %r1, %r3, 0; {JOIN}",
        (int(A) % 2**32 * (int(B) % 2**32) + (int(B) >> 32)) % 2**64,
    ),
    "high products": (
        f"mul.hi.u64 %rd5, %rd3, %rd4; {STORE}",
        int(A) * int(B) >> 64,
    ),
    "signed high products": (
        f"mul.hi.s64 %rd5, %rd3, 3; {STORE}",
        ((int(A) - 2**64) * 3 >> 64) % 2**64,
    ),
    "wide products": (
        f"{HALVES} mul.wide.s32 %rd5, %r1, %r3; {STORE}",
        (int(A) % 2**32 - 2**32) * (int(B) % 2**32) % 2**64,
    ),
    "shifts by more than the width": (f"shl.b64 %rd5, %rd3, 64; {STORE}", 0),
    "signed shifts by more": (f"shr.s64 %rd5, %rd3, 99; {STORE}", 2**64 - 1),
    "leading zeros": (
        f"shr.u64 %rd6, %rd3, 11; clz.b64 %r1, %rd6; cvt.u64.u32 %rd5, %r1; {STORE}",
        11,
    ),
    "sign of narrow numbers": (
        f"cvt.u16.u64 %rs1, %rd3; cvt.s64.s16 %rd5, %rs1; {STORE}",
        2**64 - 5,
    ),
    "guards": (
        (
            "mov.u64 %rd5, 1; setp.lt.s64 %p1, %rd3, 0; @%p1 mov.u64 %rd5, 2; "
            f"@!%p1 mov.u64 %rd5, 3; {STORE}"
        ),
        2,
    ),
    "comparisons without sign": (
        f"setp.gt.u64 %p1, %rd3, %rd4; selp.b64 %rd5, 7, 8, %p1; {STORE}",
        7,
    ),
    "loops": (
        (
            "mov.u64 %rd5, 0; $L1: add.s64 %rd5, %rd5, 3; setp.lt.s64 %p1, %rd5, 100; "
            f"@%p1 bra $L1; {STORE}"
        ),
        102,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_integers(name):
    body, want = CASES[name]
    assert int(result(body, A, B)) == want


NAN, INF = np.float64("nan"), np.float64("inf")


@pytest.mark.parametrize(
    ("operation", "given", "want"),
    (
        ("setp.lt.f64 %p1, %fd1, 0d3FF0000000000000; selp.b64 %rd5, 1, 0, %p1", NAN, 0),
        ("setp.geu.f64 %p1, %fd1, 0d3FF0000000000000; selp.b64 %rd5, 1, 0, %p1", NAN, 1),
        ("setp.num.f64 %p1, %fd1, %fd1; selp.b64 %rd5, 1, 0, %p1", NAN, 0),
        ("setp.ne.f64 %p1, %fd1, %fd1; selp.b64 %rd5, 1, 0, %p1", NAN, 0),
        ("setp.neu.f64 %p1, %fd1, %fd1; selp.b64 %rd5, 1, 0, %p1", NAN, 1),
        ("cvt.rni.s64.f64 %rd5, %fd1", np.float64(2.5), 2),
        ("cvt.rmi.s64.f64 %rd5, %fd1", np.float64(-2.5), 2**64 - 3),
        ("cvt.rzi.s64.f64 %rd5, %fd1", np.float64(1e30), 2**63 - 1),
        ("cvt.rzi.s64.f64 %rd5, %fd1", -INF, 2**63),
    ),
)
def test_numbers_that_end_as_integers(operation, given, want):
    assert int(result(f"{operation}; {STORE}", given, A)) == want


@pytest.mark.parametrize(
    ("operation", "given", "want"),
    (
        ("min.f64 %fd2, %fd1, 0d4000000000000000", NAN, 2.0),
        (
            "fma.rn.f64 %fd2, %fd1, %fd1, 0dBFF0000000000000",
            np.float64(1 + 2**-30),
            2**-29 + 2**-60,
        ),
        ("rcp.approx.ftz.f64 %fd2, %fd1", np.float64(4.0), 0.25),
        ("div.rn.f64 %fd2, 0d3FF0000000000000, %fd1", np.float64(0.0), INF),
        ("cvt.rn.f64.s64 %fd2, %rd3", np.int64(-9), -9.0),
        ("cvt.rn.f64.u64 %fd2, %rd3", np.uint64(2**63), 2.0**63),
    ),
)
def test_float64(operation, given, want):
    have = result(f"{operation}; st.global.f64 [%rd1], %fd2;", given, A, out=np.float64)
    assert have == want


@pytest.mark.parametrize(
    ("operation", "given", "want"),
    (
        ("mul.ftz.f32 %f2, %f1, 0f3F800000", TINY, 0.0),
        ("mul.f32 %f2, %f1, 0f3F800000", TINY, TINY),
        ("mul.ftz.f32 %f2, %f1, 0f00800000", 0.5, 0.0),
        ("neg.ftz.f32 %f2, %f1", TINY, -0.0),
        ("setp.gt.ftz.f32 %p1, %f1, 0f00000000; selp.f32 %f2, 0f3F800000, %f1, %p1", TINY, TINY),
        ("ex2.approx.ftz.f32 %f2, %f1", 3.0, 8.0),
        ("lg2.approx.ftz.f32 %f2, %f1", 8.0, 3.0),
        ("cvt.rmi.ftz.f32.f32 %f2, %f1", -1.25, -2.0),
        ("rsqrt.approx.ftz.f32 %f2, %f1", 4.0, 0.5),
    ),
)
def test_float32(operation, given, want):
    both = np.array([given, 0], np.float32).view(np.uint64)[0]
    have = result(f"{operation}; st.global.f32 [%rd1], %f2;", both, A, out=np.float32)
    assert have == want
    assert np.signbit(have) == np.signbit(want)


def test_what_the_emulator_does_not_know_is_an_error():
    with pytest.raises(NotImplementedError, match=r"bar\.sync"):
        translated(f"{HEAD} bar.sync 0; ret; }}")
