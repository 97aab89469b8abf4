"""Diagnostics chain by chain: what each one did, whatever the element of the state."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_core import ConfigurationError, NumericalError, SampleResult, ShapeError
from ebm_core.validation import check_number
from ebm_utils.arrays import TensorLike, to_tensor
from ebm_utils.draws import (
    MIN_DRAWS,
    array_stats,
    finite_chains,
    require_finite,
    require_trajectory,
)

_DISTANCES_AT_ONCE = 2**22


def bfmi(result: SampleResult) -> Tensor:
    """Bayesian fraction of missing information of each chain, from the Hamiltonian.

    Below 0.3 the fresh momenta move a chain too little between levels of energy to reach the tails
    in the time of the run: a heavier reparametrisation is called for, not a smaller step. Thinned
    draws, having more transitions between them, give larger values.

    Args:
        result: A result of Hamiltonian Monte Carlo or NUTS, with a trajectory.

    Returns:
        One number a chain, ``(chain,)``, float64; NaN for a chain whose energy never changes.

    Raises:
        ConfigurationError: If the result has no trajectory or no ``stats["energy"]``.
        ShapeError: If there are fewer than four draws.
        NumericalError: If an energy is NaN or infinite.

    Reference:
        Betancourt, "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo",
        arXiv:1604.00695.

    Example:
        >>> energy = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]])
        >>> x = torch.zeros(1, 5, 2)
        >>> f"{bfmi(SampleResult(x[:, -1], x, energy, {'energy': energy})).item():.2f}"
        '3.33'
    """
    require_trajectory(result)
    if "energy" not in result.stats:
        raise ConfigurationError(
            f"the result's statistics are {sorted(result.stats)}",
            "the Hamiltonian as 'energy'",
            "sample with HamiltonianMonteCarlo or NUTS",
        )
    energy = result.stats["energy"].detach().to("cpu", torch.float64)
    if energy.shape[1] < MIN_DRAWS:
        raise ShapeError(
            f"bfmi was given {energy.shape[1]} draws",
            f"at least {MIN_DRAWS}",
            "lower thin or raise n_steps",
        )
    if not energy.isfinite().all():
        raise NumericalError(
            f"the Hamiltonian of {int((~finite_chains(energy)).sum())} of {len(energy)} chains is "
            "NaN or infinite",
            "finite energies",
            "leave these chains out, and lower the sampler's step size",
        )
    varies = energy.amax(1) > energy.amin(1)
    numbers = torch.full((len(energy),), torch.nan, dtype=torch.float64)
    if varies.any():
        known = array_stats().bfmi(energy[varies].numpy())
        numbers[varies] = torch.as_tensor(known, dtype=torch.float64)
    return numbers


def stuck_chains(draws: SampleResult | TensorLike, fraction: float = 1.0) -> Tensor:
    """Which chains stood still.

    Args:
        draws: A result with a trajectory, or draws ``(chain, draw, *event)``. Of a result with
            moments, chains without variance are found (``fraction`` 1 only).
        fraction: How much of the run a chain must have spent at one place, on end: 1 for chains
            that never moved, greater than 0.

    Returns:
        True for chains that stood still, ``(chain,)``; count them with ``.sum()``.

    Raises:
        ConfigurationError: If the result holds final states only, or ``fraction`` is no such
            number.
        ShapeError: If there are fewer than two draws.

    Example:
        >>> draws = torch.arange(10.0).expand(3, 10).clone()
        >>> draws[1], draws[2, :6] = 7.0, 7.0
        >>> stuck_chains(draws).tolist(), stuck_chains(draws, 0.5).tolist()
        ([False, True, False], [False, True, True])
    """
    check_number("fraction", fraction, above=0, at_most=1)
    if isinstance(draws, SampleResult) and draws.trajectory is None and draws.moments is not None:
        if fraction < 1:
            raise ConfigurationError(
                f"fraction is {fraction} for a result with moments only",
                "a result with a trajectory",
                'sample with keep="trajectory", or ask for fraction=1',
            )
        moments = draws.moments
        _check_two(moments.count)
        mean = moments.mean if moments.mean.is_floating_point() else moments.mean.double()
        rounding = 4 * torch.finfo(mean.dtype).eps * mean.abs()
        return (moments.sum_of_squares <= moments.count * rounding.square()).flatten(1).all(1)
    return longest_stays(draws) >= fraction


def longest_stays(draws: SampleResult | TensorLike) -> Tensor:
    """The longest stretch of equal draws of each chain, as a fraction of the run: ``(chain,)``."""
    trajectory = require_trajectory(draws)
    n_draws = trajectory.shape[1]
    _check_two(n_draws)
    flat = trajectory.reshape(len(trajectory), n_draws, -1)
    moved = (flat[:, 1:] != flat[:, :-1]).any(2)
    places = torch.arange(1, n_draws, device=moved.device)
    arrived = torch.where(moved, places, 0).cummax(1).values
    return ((places - arrived).amax(1) + 1) / n_draws


@dataclass(frozen=True, eq=False)
class ModeOccupancy:
    """How chains spread over modes.

    Attributes:
        counts: Draws of each chain that are nearest to each mode, ``(chain, mode)``.
        switches: How often the mode changed from one draw to the next, ``(chain,)``.
        labels: The nearest mode of each draw, ``(chain, draw)``.
    """

    counts: Tensor
    switches: Tensor
    labels: Tensor

    @property
    def shares(self) -> Tensor:
        """The part of each chain's draws at each mode, ``(chain, mode)``, float64."""
        return self.counts.double() / self.labels.shape[1]

    @property
    def weights(self) -> Tensor:
        """The part of all draws at each mode, ``(mode,)``, float64."""
        return self.shares.mean(0)

    @property
    def standard_errors(self) -> Tensor:
        """Errors of `weights`, from how chains differ: ``(mode,)``; NaN for a single chain.

        Chains that never switch make it no larger than the scatter of their starts does: it holds
        if `switches` are many, or starts have the modes' weights.
        """
        return self.shares.std(0) / math.sqrt(len(self.shares))

    def __repr__(self) -> str:
        """Weights with errors, and switches."""
        errors = self.standard_errors if len(self.shares) > 1 else self.weights * torch.nan
        parts = (f"{w:.3f} ± {e:.3f}" for w, e in zip(self.weights, errors, strict=True))
        never = int((self.switches == 0).sum())
        return (
            f"ModeOccupancy(weights: {', '.join(parts)}; {int(self.switches.sum())} switches, "
            f"{never} of {len(self.switches)} chains never switched)"
        )


def mode_occupancy(
    draws: SampleResult | TensorLike, modes: TensorLike | list[float] | list[list[float]]
) -> ModeOccupancy:
    """Which mode each draw is nearest to, in counts and switches of each chain.

    Args:
        draws: A result, or draws ``(chain, draw, *event)``. Of a result without a trajectory the
            final states are taken: a draw a chain, no switches.
        modes: Two places of the state or more, ``(mode, *event)``; distances are Euclidean.

    Raises:
        ShapeError: If modes are no batch of states.
        NumericalError: If a draw is NaN or infinite.

    Example:
        >>> draws = torch.tensor([[-1.0, 1.2, 0.9], [-0.8, -1.1, -1.3]])
        >>> occupancy = mode_occupancy(draws, modes=[-1.0, 1.0])
        >>> occupancy.counts.tolist(), occupancy.switches.tolist()
        ([[1, 2], [3, 0]], [1, 0])
    """
    if isinstance(draws, SampleResult) and draws.trajectory is None:
        draws = draws.final[:, None]
    trajectory = require_trajectory(draws)
    require_finite(trajectory)
    n_chains, n_draws, *event = trajectory.shape
    places = to_tensor("modes", modes)
    if places.ndim < 1 or list(places.shape[1:]) != event or len(places) < 2:
        raise ShapeError(
            f"modes have shape {tuple(places.shape)}",
            f"(mode, {', '.join(map(str, event))}), two modes or more",
            "pass one state a mode",
        )
    centres = places.detach().to(trajectory.device, torch.float64).reshape(len(places), -1)
    flat = trajectory.reshape(n_chains * n_draws, -1)
    at_once = max(1, _DISTANCES_AT_ONCE // max(len(centres), flat.shape[1]))
    nearest = [torch.cdist(part.double(), centres).argmin(1) for part in torch.split(flat, at_once)]
    labels = torch.cat(nearest).reshape(n_chains, n_draws)
    counts = labels.new_zeros((n_chains, len(centres)))
    counts.scatter_add_(1, labels, torch.ones_like(labels))
    return ModeOccupancy(counts, (labels[:, 1:] != labels[:, :-1]).sum(1), labels)


def _check_two(n_draws: int) -> None:
    if n_draws < 2:
        raise ShapeError(f"there are {n_draws} draws", "at least 2", "lower thin or raise n_steps")
