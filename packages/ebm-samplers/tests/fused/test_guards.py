import math

from ebm_samplers.fused.graph import Pool, reachable
from ebm_samplers.fused.guards import unguarded

pool = Pool()
A, B, C = map(pool.row, range(3))
LARGEST = pool.balanced("max", [A, B, C])
EXPONENTIALS = [pool("exp", pool("sub", x, LARGEST)) for x in (A, B, C)]
TOTAL = pool.balanced("add", EXPONENTIALS)


def operations(*roots):
    return {node.op for node in reachable(unguarded(pool, list(roots)))}


def test_terms_that_show_by_themselves():
    energy = pool("add", pool("log", TOTAL), LARGEST)
    slope = pool("div", EXPONENTIALS[0], TOTAL)
    assert operations(energy, slope) == {"row", "above", "sub", "exp", "add", "log", "div"}
    least = pool("add", pool("min", A, pool.const(1.0)), A)
    assert operations(least) == {"row", "const", "below", "add"}


def test_terms_that_do_not():
    assert "max" in operations(LARGEST)
    assert "max" in operations(pool("add", LARGEST, pool("add", A, B)))
    assert "max" in operations(TOTAL, pool("add", LARGEST, A))  # one of two roots
    chosen = pool("where", pool("lt", A, B), A, B)
    assert "max" in operations(pool("add", pool("max", A, B), chosen))
    assert "max" in operations(pool("mul", pool("max", A, pool.const(0.0)), B))
    assert "max" in operations(pool("add", A, pool("max", A, pool.const(math.nan))))
    assert "max" in operations(pool("pow", A, pool("max", A, B)))
    nested = pool("add", pool("max", pool("max", A, B), C), pool("add", B, C))
    assert operations(nested) == {"row", "max", "add"}


def test_either_arm_shows():
    chosen = pool("where", pool("lt", B, C), pool("neg", A), pool("exp", A))
    assert "above" in operations(pool("add", chosen, pool("max", A, pool.const(1.0))))


def test_small_factors_come_together():
    two, half = pool.const(2.0), pool.const(-0.5)
    product = pool("mul", pool("mul", A, half), pool("mul", B, two))
    assert product is pool("neg", pool("mul", A, B))
    tiny = pool.const(2.0**-60)
    assert pool("mul", pool("mul", A, tiny), pool("mul", B, tiny)).args[0].op == "mul"
    assert pool("neg", pool("sub", A, B)) is pool("sub", B, A)
    ratio = pool("div", pool.const(-3.0), A)
    assert ratio.op == "neg"
    assert pool("div", pool.const(-math.inf), A).op == "neg"
