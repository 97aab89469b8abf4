# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: F403, F405 - the names of a generated module
"""Hamiltonian Monte Carlo; see `ebm_samplers.hamiltonian` for the step in torch."""

from ebm_samplers.fused.kernels.tile import *

# compiled ---------------------------------------------------------------------------------------

DELTA, VERDICT, CURRENT = FREE, FREE + 1, FREE + 2
CX, CG, CE = CURRENT, CURRENT + D, CURRENT + 2 * D  # the state that trajectories start from
P = CE + 1  # momentum
V = P + D  # velocity M⁻¹ p
KINETIC = V + D  # of each element at the start
LONG_REGISTERS = 1 if OPERATIONS > MANY_OPERATIONS else 0
NORMALS, ADJUSTED = MOMENTUM, 1
END = KINETIC + D


def set_velocity(w, mass):
    """V = M⁻¹ P; ``mass`` is M⁻¹, or its diagonal."""
    for i in range(D):
        if DENSE:
            clear(w, V + i, 1)
            for j in range(D):
                m = mass[i * D + j]
                for lane in range(L):
                    w[(V + i) * L + lane] += m * w[(P + j) * L + lane]
        else:
            m = mass[i]
            for lane in range(L):
                w[(V + i) * L + lane] = m * w[(P + i) * L + lane]


def drift(w, mass, h):
    """X += h M⁻¹ P, in as few operations that wait for another as can be."""
    for i in range(D):
        for j in range(0 if DENSE else i, D if DENSE else i + 1):
            m = h * mass[i * D + j if DENSE else i]
            for lane in range(L):
                w[(X + i) * L + lane] += m * w[(P + j) * L + lane]


def draw_momentum(w, root, z, first):
    """P = M^½ z; ``root`` is the lower Cholesky factor of M, or a diagonal."""
    for i in range(D):
        clear(w, P + i, 1)
        for j in range(0 if DENSE else i, i + 1):
            m = root[i * D + j if DENSE else i]
            at = (first + j & 3) * PLANE + (first + j >> 2) * L
            for lane in range(L):
                w[(P + i) * L + lane] += m * z[at + lane]


def transition(
    w, p, z, first, u, uniforms, now, h, s, length, mass, root, offset, *_
):  # fmt: skip
    """A trajectory of leapfrogs, accepted or not."""
    half = real(0.5) * h
    draw_momentum(w, root, z, first)
    set_velocity(w, mass)
    for i in range(D):
        for lane in range(L):
            w[(KINETIC + i) * L + lane] = w[(P + i) * L + lane] * w[(V + i) * L + lane]
            w[(X + i) * L + lane] = w[(CX + i) * L + lane]
            w[(P + i) * L + lane] -= (half * w[BETA * L + lane]) * w[(CG + i) * L + lane]
    for leap in range(length):
        kick = h if leap < length - 1 else half
        drift(w, mass, h)
        energy_and_gradient(w, p)
        for i in range(D):
            for lane in range(L):
                w[(P + i) * L + lane] -= (kick * w[BETA * L + lane]) * w[(G + i) * L + lane]
    set_velocity(w, mass)
    for lane in range(L):
        w[DELTA * L + lane] = w[BETA * L + lane] * (w[E * L + lane] - w[CE * L + lane])
        w[TOTAL * L + lane] = w[BETA * L + lane] * (w[CE * L + lane] + offset)
    for i in range(D):
        for lane in range(L):
            before = w[(KINETIC + i) * L + lane]
            after = w[(P + i) * L + lane] * w[(V + i) * L + lane]
            w[DELTA * L + lane] += real(0.5) * (after - before)
            w[TOTAL * L + lane] += real(0.5) * before
    judge(w, u, uniforms, DELTA, VERDICT, now < 0)
    watch(w, offset)


def settle(w, offset):
    """The Hamiltonian of the state that the chain is in."""
    for lane in range(L):
        taken = w[VERDICT * L + lane] != real(0)
        w[TOTAL * L + lane] += w[DELTA * L + lane] if taken else real(0)
