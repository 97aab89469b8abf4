"""How a long run shows itself: a bar on stderr, and calls of the user's ``callback``."""

import sys

from tqdm import tqdm

CALLS = 100
"""Calls of ``callback`` in a run, about."""

_DELAY = 2.0  # seconds without a bar


def progress_bar(total: int, progress: bool | None) -> "tqdm[None]":
    """A bar on stderr; None shows it only in a terminal and from the third second on."""
    return tqdm(
        total=total,
        disable=None if progress is None else not progress,
        delay=_DELAY if progress is None else 0.0,
        file=sys.stderr,
        unit="step",
        unit_scale=True,
        leave=False,
    )


def calls_due(n_draws: int, total: int) -> bool:
    """Whether ``callback`` is called after draw ``n_draws`` (from 1) of ``total``.

    It is after every max(1, total // 100)-th.

    Example:
        >>> [n for n in range(1, 301) if calls_due(n, 300)][:3]
        [3, 6, 9]
    """
    return n_draws % max(1, total // CALLS) == 0
