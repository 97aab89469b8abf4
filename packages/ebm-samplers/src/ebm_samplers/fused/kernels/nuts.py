# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: F403, F405 - the names of a generated module
"""NUTS; see `ebm_samplers.trees` for the trees in torch.

Lanes would wait for the longest tree, so a tile has one chain, and all that is random is drawn when
a tree wants it. The end at which the tree grows lies where the energy is computed (``X``, ``G``),
with momentum ``P`` and velocity ``V``; the other end in ``OX`` … ``OV``. ``CX``, ``CG``, ``CE`` is
the leaf that has been drawn from the tree so far, ``SX``, ``SG``, ``SE`` that of the subtree under
way.

Weights are exp(H₀ - H - shift), with a shift of 0 unless H falls by more than can be written so:
then those before count anew. Uniforms stand in a plane by kind: of each step of a chunk the first
block of directions, of choices between subtrees, and the first two of leaves; behind these what
deeper trees want, made on demand.
"""

import numpy as np

from ebm_samplers.fused.kernels.tile import *

# compiled ---------------------------------------------------------------------------------------

LEAPS, LEAPS_ABOVE, DEPTH, CURRENT = FREE, FREE + 1, FREE + 2, FREE + 3
STATISTICS = DEPTH + 1 - POTENTIAL
CX, CG, CE = CURRENT, CURRENT + D, CURRENT + 2 * D
P = CE + 1
V = P + D
KINETIC = V + D  # of each element at the start
OX = KINETIC + D
OG, OP, OV = OX + D, OX + 2 * D, OX + 3 * D
WHOLE = OV + D  # sum of the momenta of the tree
PART = WHOLE + D  # and of the subtree
SX = PART + D
SG, SE = SX + D, SX + 2 * D
END = SE + 1
LEVEL = 3 * D  # of the stack: a first momentum, its velocity, the sum of momenta up to it
STACK = 15 * LEVEL
LONG_REGISTERS = 1 if OPERATIONS > MANY_OPERATIONS else 0
NORMALS, ADJUSTED, TREES = MOMENTUM, 0, 1
LEAF_AT = 2 * CHUNK
DEEP_LEAF_AT = 4 * CHUNK
DEEP_AT = DEEP_LEAF_AT + 16
UNIFORM_PLANE = DEEP_AT + 2
MANY = 1048576  # leapfrogs that a number of 32 bits counts with ease


def fill_trees(u, words, chain, step, count, key):
    """The uniforms that the next ``count`` transitions are likely to want."""
    fill(u, words, UNIFORM_PLANE, 0, 0, chain, 4 * step, 2, count, DIRECTION, key, 1)
    fill(u, words, UNIFORM_PLANE, CHUNK, 0, chain, 4 * step, 2, count, ACCEPT, key, 1)
    for i in range(2):
        at = LEAF_AT + i * CHUNK
        fill(u, words, UNIFORM_PLANE, at, 0, chain, 16384 * step + i, 14, count, LEAF, key, 1)


def set_velocity(w, mass):
    """V = M⁻¹ P; ``mass`` is M⁻¹, or its diagonal."""
    for i in range(D):
        if DENSE:
            total = real(0)
            for j in range(D):
                total += mass[i * D + j] * w[P + j]
            w[V + i] = total
        else:
            w[V + i] = mass[i] * w[P + i]


def draw_momentum(w, root, z, first):
    """P = M^½ z; ``root`` is the lower Cholesky factor of M, or a diagonal."""
    for i in range(D):
        if DENSE:
            total = real(0)
            for j in range(i + 1):
                total += root[i * D + j] * z[(first + j & 3) * PLANE + (first + j >> 2)]
            w[P + i] = total
        else:
            w[P + i] = root[i] * z[(first + i & 3) * PLANE + (first + i >> 2)]


def begin(w, root, mass, z, first):
    """A fresh momentum, and a tree of one leaf."""
    draw_momentum(w, root, z, first)
    set_velocity(w, mass)
    for i in range(D):
        w[KINETIC + i] = w[P + i] * w[V + i]
        w[WHOLE + i] = w[P + i]
        w[X + i] = w[CX + i]
        w[G + i] = w[CG + i]
        w[OX + i] = w[CX + i]
        w[OG + i] = w[CG + i]
        w[OP + i] = w[P + i]
        w[OV + i] = w[V + i]


def exchange(w, turns):
    """The other end becomes the one at which the tree grows, if this is true."""
    for i in range(D):
        x, other = w[X + i], w[OX + i]
        w[X + i] = other if turns else x
        w[OX + i] = x if turns else other
        g, other_g = w[G + i], w[OG + i]
        w[G + i] = other_g if turns else g
        w[OG + i] = g if turns else other_g
        m, other_m = w[P + i], w[OP + i]
        w[P + i] = other_m if turns else m
        w[OP + i] = m if turns else other_m
        v, other_v = w[V + i], w[OV + i]
        w[V + i] = other_v if turns else v
        w[OV + i] = v if turns else other_v


def leapfrog(w, p, mass, h, kick):
    """A step of size h, with kicks of size h/2 · beta."""
    for i in range(D):
        w[P + i] -= kick * w[G + i]
    set_velocity(w, mass)
    for i in range(D):
        w[X + i] += h * w[V + i]
    energy_and_gradient(w, p)
    for i in range(D):
        w[P + i] -= kick * w[G + i]
    set_velocity(w, mass)
    for i in range(D):
        w[PART + i] += w[P + i]


def transition(
    w, p, z, first, u, uniforms, now, h, s, length, mass, root, offset,
    place, step, chain, key, words, stack,
):  # fmt: skip
    """A draw from a trajectory that doubles until it turns back, ``length`` times at most."""
    bonus = real(1) if now < 0 else real(0)  # a fresh chain takes its first leaf
    beta = w[BETA]
    begin(w, root, mass, z, first)
    start = w[CE]
    kinetic = real(0)
    for i in range(D):
        kinetic += w[KINETIC + i]
    w[TOTAL] = beta * (start + offset) + real(0.5) * kinetic
    drawn = real(0)  # H - H₀ of the leaf that is drawn
    weight = real(1)
    shift = real(0)
    chance = real(0)
    wild = 0
    leaves = 0
    depth = 0
    side = real(0)
    grows = 1
    while grows != 0:
        at = place if depth < 4 else DEEP_AT
        choice = place + CHUNK if depth < 4 else DEEP_AT + 1
        if depth > 3:
            if depth & 3 == 0:
                block = 4 * step + (depth >> 2)
                fill(u, words, UNIFORM_PLANE, DEEP_AT, 0, chain, block, 0, 1, DIRECTION, key, 1)
                fill(u, words, UNIFORM_PLANE, DEEP_AT + 1, 0, chain, block, 0, 1, ACCEPT, key, 1)
        at += (depth & 3) * UNIFORM_PLANE
        choice += (depth & 3) * UNIFORM_PLANE
        new_side = u[at] - real(0.5)
        exchange(w, new_side * side < real(0))
        side = new_side
        step_size = h if side > real(0) else -h
        kick = real(0.5) * step_size * beta
        for i in range(D):
            w[PART + i] = real(0)
        part = real(0)
        rise_of_part = real(0)
        whole = 1
        ones = 0  # bits in the number of the leaf
        leaf = 0
        last_leaf = (1 << depth) - 1
        more = 1
        while more != 0:
            leapfrog(w, p, mass, step_size, kick)
            leaves += 1
            difference = real(0)
            for i in range(D):
                difference += w[P + i] * w[V + i] - w[KINETIC + i]
            rise = beta * (w[E] - start) + real(0.5) * difference
            rise = rise if abs(rise) < real(np.inf) else real(1e30)
            height = -rise - shift
            if height > real(60):
                lower = exp(-height)
                weight *= lower
                part *= lower
                shift = -rise
                height = real(0)
            new = exp(height)
            part += new
            share = new if new < real(1) else real(1)
            if shift > real(0):
                share = exp(-(rise if rise > real(0) else real(0)))
            chance += share
            if depth > 2:
                if leaf & 63 == 0:
                    block = 16384 * step + ((1 << depth) + leaf >> 2)
                    blocks = 16 if depth > 5 else 1 << depth - 2
                    fill(
                        u, words, UNIFORM_PLANE, DEEP_LEAF_AT, 0, chain, block, 0, blocks,
                        LEAF, key, 1,
                    )  # fmt: skip
            near = LEAF_AT + ((1 << depth) + leaf >> 2) * CHUNK + place
            at = near if depth < 3 else DEEP_LEAF_AT + ((leaf & 63) >> 2)
            at += ((1 << depth) + leaf & 3) * UNIFORM_PLANE
            leaf_taken = u[at] * part < new + bonus
            for i in range(D):
                w[SX + i] = w[X + i] if leaf_taken else w[SX + i]
                w[SG + i] = w[G + i] if leaf_taken else w[SG + i]
            w[SE] = w[E] if leaf_taken else w[SE]
            rise_of_part = rise if leaf_taken else rise_of_part
            if rise > real(1000):
                wild = 1
                whole = 0
            if leaf & 1 == 0:
                level = ones * LEVEL
                for i in range(D):
                    stack[level + i] = w[P + i]
                    stack[level + D + i] = w[V + i]
                    stack[level + 2 * D + i] = w[PART + i]
                ones += 1
            else:
                rest = leaf
                while rest & 1 != 0:
                    ones -= 1
                    level = ones * LEVEL
                    at_first = real(0)
                    at_last = real(0)
                    for i in range(D):
                        middle = real(0.5) * (stack[level + i] - w[P + i])
                        along = w[PART + i] - stack[level + 2 * D + i] + middle
                        at_first += stack[level + D + i] * along
                        at_last += w[V + i] * along
                    if at_first <= real(0) or at_last <= real(0):
                        whole = 0
                    rest = rest >> 1
                ones += 1
            more = whole if leaf < last_leaf else 0
            leaf += 1
        taken = u[choice] * weight < (part if whole != 0 else real(0)) + bonus
        for i in range(2 * D + 1):
            w[CURRENT + i] = w[SX + i] if taken else w[CURRENT + i]
        drawn = rise_of_part if taken else drawn
        weight += part
        depth += whole
        at_first = real(0)
        at_last = real(0)
        for i in range(D):
            w[WHOLE + i] += w[PART + i]
            along = w[WHOLE + i] - real(0.5) * (w[OP + i] + w[P + i])
            at_first += w[OV + i] * along
            at_last += w[V + i] * along
        grows = whole if depth < length else 0
        if at_first <= real(0) or at_last <= real(0):
            grows = 0
    w[TOTAL] += drawn
    if now >= 0:
        w[CHANCE] += chance / real(leaves)
        w[WILD] += real(wild)
        w[DEPTH] = real(depth) if real(depth) > w[DEPTH] else w[DEPTH]
        w[LEAPS] += real(leaves)
        if w[LEAPS] >= real(MANY):
            w[LEAPS] -= real(MANY)
            w[LEAPS_ABOVE] += real(1)
    watch(w, offset)


def settle(w, offset):
    """All is there already."""
