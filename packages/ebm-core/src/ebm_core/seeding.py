"""Random keys and generators that never touch the caller's random state by accident.

An explicit seed makes a private generator; ``seed=None`` draws the key from torch's default
generator, so that ``torch.manual_seed`` governs everything left unseeded.
"""

import numbers

import torch

from ebm_core.errors import ConfigurationError


def draw_key(seed: int | None) -> int:
    """A 64-bit key: the seed itself, or 63 bits of torch's default generator.

    Args:
        seed: An integer from 0 to 2**64 - 1, or None.

    Raises:
        ConfigurationError: If the seed is not an integer in that range.

    Example:
        >>> draw_key(7)
        7
    """
    if seed is None:
        return int(torch.randint(2**63 - 1, (), dtype=torch.int64))
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**64:
        raise ConfigurationError(
            f"seed is {seed!r}",
            "an integer from 0 to 2**64 - 1, or None",
            "pass such an integer, or None to follow torch.manual_seed",
        )
    return int(seed)


def make_generator(seed: int | None, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own on ``device``, seeded with ``draw_key(seed)``.

    Example:
        >>> first, second = (torch.rand(3, generator=make_generator(0)) for _ in range(2))
        >>> torch.equal(first, second)
        True
    """
    return torch.Generator(device=device).manual_seed(folded_key(seed))


def folded_key(seed: int | None) -> int:
    """``draw_key(seed)`` as ``manual_seed`` takes it, and such that all of its bits count."""
    key = draw_key(seed)
    key ^= key >> 32  # torch's CPU generator reads the low 32 bits only: fold the high ones in
    return key - 2**64 if key >= 2**63 else key  # manual_seed takes signed 64-bit integers
