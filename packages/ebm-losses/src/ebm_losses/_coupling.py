"""Optimal transport between two batches, by POT (module ``ot``), which is imported when used."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, NumericalError

_MAX_PIVOTS = 10_000_000  # of the network simplex; thousands of states need fewer


def import_pot(user: str) -> Any:
    """The module ``ot``.

    Raises:
        ConfigurationError: If POT is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Not ours to mend: its docstrings hold escapes that compiling warns of.
            warnings.simplefilter("ignore")
            import ot
    except ImportError as error:
        raise ConfigurationError(
            f"{user} pairs noise with data by POT, which is not installed",
            "the distribution POT (module ot)",
            "install it, with pip install 'ebm-losses[ot]' or pip install POT",
        ) from error
    return ot


def optimal_pairs(x: Tensor, y: Tensor, ot: Any) -> Tensor:
    """The permutation π that minimises Σ_i |x_i - y_π(i)|², an exact optimal-transport plan.

    Between two batches of equal size and weights the plan of least cost is a permutation. The
    squared distances are compared on the CPU in float64; the simplex takes about n³ operations.

    Args:
        x: States, ``(n, *event)``.
        y: As many, of the same shape.
        ot: The module POT.

    Returns:
        Indices into ``y``, ``(n,)``, on the device of ``x``.

    Raises:
        NumericalError: If a distance is not finite.
    """
    first, second = (v.detach().reshape(len(v), -1).double() for v in (x, y))
    cost = torch.cdist(first, second).square().cpu()
    if not torch.isfinite(cost).all():
        raise NumericalError(
            "distances between data and noise are not finite",
            "finite data of moderate size",
            "check the data for NaN and infinity, and scale them to about unit variance",
        )
    plan = ot.emd([], [], cost.numpy(), numItermax=_MAX_PIVOTS)
    return torch.as_tensor(plan.argmax(1), device=x.device)
