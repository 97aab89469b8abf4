# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: F403, F405 - the names of a generated module
"""Unadjusted Langevin; see `ebm_samplers.langevin.LangevinDynamics` for the step in torch.

As in torch, each step ends with energy and gradient of the new state, so that no state that is not
finite goes unseen. Energy and gradient share almost all of their work. A step of length 0 ends with
the new state alone, where a network makes that worth a branch: the last of a `sample_chain` on a
CPU. (On a GPU the branch takes registers.)
"""

import numpy as np

from ebm_samplers.fused.kernels.tile import *

# compiled ---------------------------------------------------------------------------------------

CURRENT = X
LONG_REGISTERS = 1 if OPERATIONS > MANY_OPERATIONS else 0
SPARES = LOOPED * (1 - COALESCED)
NORMALS, ADJUSTED = NOISE, 0
END = FREE


def transition(
    w, p, z, first, u, uniforms, now, h, s, length, mass, root, offset, *_
):  # fmt: skip
    """x' = x - h beta ∇E + s z, with s = sqrt(2h)·noise_scale."""
    counted = real(1) if now >= 0 else real(0)
    for i in range(D):
        at = (first + i & 3) * PLANE + (first + i >> 2) * L
        for lane in range(L):
            moved = w[(X + i) * L + lane] + s * z[at + lane]
            w[(X + i) * L + lane] = moved - (h * w[BETA * L + lane]) * w[(G + i) * L + lane]
    if SPARES:
        if length > 0:
            energy_and_gradient(w, p)
    else:
        energy_and_gradient(w, p)
    for lane in range(L):
        w[TOTAL * L + lane] = w[E * L + lane]
    for i in range(D):
        for lane in range(L):
            w[TOTAL * L + lane] += w[(X + i) * L + lane]
    for lane in range(L):
        finite = abs(w[TOTAL * L + lane]) < real(np.inf)
        w[WILD * L + lane] += real(0) if finite else counted


def settle(w, offset):
    """The energy at the end of the slot; there is no Hamiltonian."""
    watch(w, offset)
    clear(w, TOTAL, 1)
