"""The random streams of a chain, one number each. Seeds are public, so these numbers never change.

A stream is the last word of Philox's counter: chains draw from independent sequences for
independent purposes. A sampler outside this package that needs a stream of its own takes a number
from 1024 on.
"""

from enum import IntEnum


class Stream(IntEnum):
    """What a chain's random numbers are for."""

    START = 0
    """Normals of start states."""
    NOISE = 1
    """Normals of Langevin steps."""
    MOMENTUM = 2
    """Normals of refreshed momenta."""
    ACCEPT = 3
    """Uniforms of Metropolis tests."""
    LENGTH = 4
    """Uniforms of random trajectory lengths; chain word 0, shared by all chains."""
    DIRECTION = 5
    """Uniforms of the directions in which trees grow."""
    SWAP = 6
    """Uniforms of exchanges between replicas."""
    PROPOSAL = 7
    """Uniforms that choose among discrete proposals."""
    LEAF = 8
    """Uniforms that choose among the leaves of a tree, 2¹⁶ a transition."""
    UNITS = 9
    """Uniforms that units of discrete states are drawn with, block by block."""
