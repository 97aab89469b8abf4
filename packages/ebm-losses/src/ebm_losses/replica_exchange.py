"""Replica exchange: ladders of inverse temperatures, and swaps of states between neighbours.

Replica i of a ladder 1 = beta_0 > beta_1 > … targets exp(-beta_i E). Hot replicas cross barriers;
swaps bring what they find down to the first.
"""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_core.validation import check_integer, check_number, check_tensor

MIN_REJECTION = 1e-3


def geometric_ladder(n_replicas: int = 8, lowest: float = 0.1) -> Tensor:
    """Inverse temperatures from 1 down to ``lowest``, each the same fraction of the last.

    Args:
        n_replicas: Number of replicas, at least 2.
        lowest: The last inverse temperature, in (0, 1).

    Returns:
        ``(n_replicas,)``, float64.

    Raises:
        ConfigurationError: If a number is out of range.

    Example:
        >>> geometric_ladder(3, 0.25).tolist()
        [1.0, 0.5, 0.25]
    """
    n = check_integer("n_replicas", n_replicas, at_least=2)
    lowest = check_number("lowest", lowest, above=0.0, below=1.0)
    return lowest ** (torch.arange(n, dtype=torch.float64) / (n - 1))


def check_ladder(betas: Any) -> Tensor:
    """Inverse temperatures ``(replica,)``, after a check that they fall from 1 to above 0.

    Raises:
        ShapeError: If they are no list of numbers.
        ConfigurationError: If they do not begin with 1, do not fall, or are fewer than two.
    """
    if isinstance(betas, Sequence) and all(isinstance(beta, Real) for beta in betas):
        betas = torch.tensor(betas, dtype=torch.float64)  # with all the digits
    ladder = check_tensor("betas", betas, (None,)).detach()
    falls = len(ladder) >= 2 and ladder[0] == 1.0 and ladder[-1] > 0.0
    if not falls or not (ladder[1:] < ladder[:-1]).all():
        raise ConfigurationError(
            f"betas are {[round(beta, 6) for beta in ladder.tolist()]}",
            "two numbers or more that begin with 1 and fall, all above 0",
            "pass geometric_ladder(8, 0.1), for example",
        )
    return ladder


def swap_probabilities(energies: Tensor, betas: Tensor) -> Tensor:
    """min(1, exp((beta_i - beta_j) (E_i - E_j))) for neighbours i, j = i + 1.

    With these probabilities a swap leaves the joint law ∏ exp(-beta_i E(x_i)) as it is.

    Args:
        energies: E of each replica's state, ``(slot, replica)``.
        betas: ``(replica,)``.

    Returns:
        ``(slot, replica - 1)``.

    Example:
        >>> swap_probabilities(torch.tensor([[1.0, 3.0]]), torch.tensor([1.0, 0.5]))
        tensor([[0.3679]])
    """
    log_ratio = (betas[:-1] - betas[1:]) * (energies[:, :-1] - energies[:, 1:])
    return log_ratio.clamp(max=0.0).exp()


def swapped_order(probabilities: Tensor, parity: Tensor, uniforms: Tensor) -> Tensor:
    """Which state each replica has after one round of the deterministic even-odd scheme.

    Slots of parity 0 try the pairs (0, 1), (2, 3), …, those of parity 1 the pairs (1, 2), (3, 4),
    …. Taking turns makes a state's way along the ladder non-reversible, hence quick (Okabe et al.
    2001; Syed et al. 2022, arXiv:1905.02939, section 2.3).

    Args:
        probabilities: Of `swap_probabilities`, ``(slot, replica - 1)``.
        parity: 0 or 1 for each slot, ``(slot,)``.
        uniforms: Uniform on [0, 1), ``(slot, replica - 1)``.

    Returns:
        ``(slot, replica)``: replica i takes the state that replica ``order[:, i]`` had.

    Example:
        >>> ones, parity = torch.ones(2, 3), torch.tensor([0, 1])
        >>> swapped_order(ones, parity, torch.zeros(2, 3)).tolist()
        [[1, 0, 3, 2], [0, 2, 1, 3]]
    """
    pairs = torch.arange(probabilities.shape[1], device=probabilities.device)
    tried = (pairs + parity[:, None]) % 2 == 0
    swaps = (tried & (uniforms < probabilities)).long()
    none = swaps.new_zeros(len(swaps), 1)
    replicas = torch.arange(len(pairs) + 1, device=swaps.device)
    return replicas + torch.cat([swaps, none], 1) - torch.cat([none, swaps], 1)


def equalized_ladder(betas: Tensor, swap_rates: Tensor) -> Tensor:
    """A ladder whose pairs are to reject equally often.

    The sum of the rejection rates from 1 down to beta estimates the communication barrier Λ(beta),
    whatever the ladder; rungs at equal steps of Λ have equal rejection rates, and the most round
    trips for their number (Syed et al. 2022, arXiv:1905.02939, section 5.3). Λ is interpolated
    linearly between the rungs at hand. The ends stay.

    Args:
        betas: The ladder at hand, ``(replica,)``.
        swap_rates: Acceptance rate of swaps of each pair, ``(replica - 1,)``, from 0 to 1. Pairs
            that reject less than one swap in a thousand count with that, so that no rungs meet.

    Returns:
        ``(replica,)``; the ladder at hand if its pairs reject equally.

    Example:
        >>> equalized_ladder(torch.tensor([1.0, 0.9, 0.1]), torch.tensor([0.9, 0.5])).tolist()
        [1.0, 0.5..., 0.1...]
    """
    rejections = (1.0 - swap_rates.to(betas)).clamp(min=MIN_REJECTION)
    barrier = torch.cat([rejections.new_zeros(1), rejections.cumsum(0)])
    n_pairs = len(rejections)
    wanted = barrier[-1] * torch.arange(1, n_pairs, device=betas.device) / n_pairs
    pair = (torch.searchsorted(barrier, wanted, right=True) - 1).clamp(0, n_pairs - 1)
    part = (wanted - barrier[pair]) / rejections[pair]
    inner = betas[pair] + part * (betas[pair + 1] - betas[pair])
    return torch.cat([betas[:1], inner, betas[-1:]])
