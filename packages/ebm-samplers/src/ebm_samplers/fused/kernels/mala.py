# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: F403, F405 - the names of a generated module
"""Metropolis-adjusted Langevin; see `ebm_samplers.langevin.MALA` for the step in torch."""

from ebm_samplers.fused.kernels.tile import *

# compiled ---------------------------------------------------------------------------------------

DELTA, VERDICT, CURRENT = FREE, FREE + 1, FREE + 2
CX, CG, CE = CURRENT, CURRENT + D, CURRENT + 2 * D  # the state that proposals start from
LONG_REGISTERS = 1
NORMALS, ADJUSTED = NOISE, 1
END = CE + 1


def transition(
    w, p, z, first, u, uniforms, now, h, s, length, mass, root, offset, *_
):  # fmt: skip
    """Propose x' = x - h beta ∇E + s z with s = sqrt(2h), and accept or not."""
    r = real(0.5) * s
    for i in range(D):
        at = (first + i & 3) * PLANE + (first + i >> 2) * L
        for lane in range(L):
            moved = w[(CX + i) * L + lane] + s * z[at + lane]
            w[(X + i) * L + lane] = moved - (h * w[BETA * L + lane]) * w[(CG + i) * L + lane]
    energy_and_gradient(w, p)
    for lane in range(L):
        w[DELTA * L + lane] = w[BETA * L + lane] * (w[E * L + lane] - w[CE * L + lane])
    for i in range(D):
        at = (first + i & 3) * PLANE + (first + i >> 2) * L
        for lane in range(L):
            a = (r * w[BETA * L + lane]) * (w[(CG + i) * L + lane] + w[(G + i) * L + lane])
            w[DELTA * L + lane] += a * (real(0.5) * a - z[at + lane])
    judge(w, u, uniforms, DELTA, VERDICT, now < 0)
    watch(w, offset)


def settle(w, offset):
    """All is there already; there is no Hamiltonian."""
