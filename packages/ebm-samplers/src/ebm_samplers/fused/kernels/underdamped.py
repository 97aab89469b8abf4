# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: F403, F405 - the names of a generated module
"""Underdamped Langevin; see `ebm_samplers.underdamped` for the step in torch."""

import math

import numpy as np

from ebm_samplers.fused.kernels.tile import *

# compiled ---------------------------------------------------------------------------------------

CURRENT = FREE
CX, CG, CE = CURRENT, CURRENT + D, CURRENT + 2 * D
P = CE + 1  # momentum
LONG_REGISTERS = 1 if OPERATIONS > MANY_OPERATIONS else 0
NORMALS, ADJUSTED = NOISE, 0
END = P + D


def transition(
    w, p, z, first, u, uniforms, now, h, s, length, mass, root, offset, *_
):  # fmt: skip
    """BAOAB with s = exp(-γh), the part of the momentum that a step keeps."""
    counted = real(1) if now >= 0 else real(0)
    half = real(0.5) * h
    kept = s if now >= 0 else real(1)
    noise = math.sqrt((real(1) - kept) * (real(1) + kept))
    for i in range(D):
        at = (first + i & 3) * PLANE + (first + i >> 2) * L
        for lane in range(L):
            kick = (half * w[BETA * L + lane]) * w[(CG + i) * L + lane]
            before = w[(P + i) * L + lane] - kick
            after = kept * before + noise * z[at + lane]
            w[(X + i) * L + lane] = w[(CX + i) * L + lane] + half * before + half * after
            w[(P + i) * L + lane] = after
    energy_and_gradient(w, p)
    for lane in range(L):
        w[CE * L + lane] = w[E * L + lane]
        w[TOTAL * L + lane] = w[E * L + lane]
    for i in range(D):
        for lane in range(L):
            w[(P + i) * L + lane] -= (half * w[BETA * L + lane]) * w[(G + i) * L + lane]
            w[(CX + i) * L + lane] = w[(X + i) * L + lane]
            w[(CG + i) * L + lane] = w[(G + i) * L + lane]
            w[TOTAL * L + lane] += w[(X + i) * L + lane]
    for lane in range(L):
        finite = abs(w[TOTAL * L + lane]) < real(np.inf)
        w[WILD * L + lane] += real(0) if finite else counted


def settle(w, offset):
    """The energy at the end of the slot."""
    watch(w, offset)
    clear(w, TOTAL, 1)
