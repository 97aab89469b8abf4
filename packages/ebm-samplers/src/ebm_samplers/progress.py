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


def draws_between_calls(total: int) -> int:
    """How many draws of ``total`` lie between two calls of ``callback``, one included.

    Example:
        >>> draws_between_calls(300), draws_between_calls(7)
        (3, 1)
    """
    return max(1, total // CALLS)
