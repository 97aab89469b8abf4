"""Convergence diagnostics, element by element of the event, with arviz-stats' numbers.

Each function takes a `SampleResult` that kept its trajectory, or draws ``(chain, draw, *event)`` as
a tensor or array, and gives one float64 number for each element of the event, on the CPU. To
diagnose a function of the state, pass its values: ``ess(result.trajectory.square())``.

What cannot be computed is refused: draws that are not finite, too few of them, no trajectory. An
element that is the same in every draw of every chain has no diagnostics; its entry is NaN, which
fails every comparison (``rhat < 1.01``, ``ess > 400``). arviz-stats is imported at the first call,
since that takes a second.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_core import ConfigurationError, NumericalError, SampleResult, ShapeError
from ebm_core.validation import check_choice
from ebm_utils.arrays import TensorLike, to_tensor

MIN_DRAWS = 4
TAIL = (0.05, 0.95)


def rhat(draws: SampleResult | TensorLike) -> Tensor:
    """Rank-normalised split R-hat, the larger of its bulk and folded (tail) form.

    Values above 1.01 say that the chains have not mixed. It grows without bound where each chain
    stands still at its own place.

    Args:
        draws: A result with a trajectory, or draws ``(chain, draw, *event)``, from two chains or
            more.

    Returns:
        R-hat of each element, of the event's shape.

    Raises:
        ConfigurationError: If the result holds no trajectory.
        ShapeError: If there are fewer than two chains or four draws.
        NumericalError: If a draw is NaN or infinite.

    Reference:
        Vehtari, Gelman, Simpson, Carpenter & Bürkner, "Rank-normalization, folding, and
        localization: an improved R-hat", Bayesian Analysis 2021, section 4.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> bool((rhat(torch.randn(4, 500, 3, generator=generator)) < 1.01).all())
        True
    """
    return _diagnose("rhat", draws, method="rank", min_chains=2)


def ess(draws: SampleResult | TensorLike, kind: Literal["bulk", "tail"] = "bulk") -> Tensor:
    """Effective sample size over all chains together.

    Args:
        draws: A result with a trajectory, or draws ``(chain, draw, *event)``.
        kind: "bulk" for the rank-normalised draws (how well centres are known); "tail" for the
            smaller of those of the 5 % and 95 % quantiles, as in the reference. (arviz-stats' own
            default takes the ends of the interval of its setting ``stats.ci_prob`` instead; its
            ``prob=(0.05, 0.95)`` gives this number.)

    Returns:
        The number of independent draws worth as much, for each element, of the event's shape; above
        the number of draws where they are anticorrelated.

    Raises:
        ConfigurationError: If the result holds no trajectory, or ``kind`` is another word.
        ShapeError: If there are fewer than four draws.
        NumericalError: If a draw is NaN or infinite.

    Reference:
        Vehtari et al. 2021 (see `rhat`), sections 3 and 4.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> ess(torch.randn(4, 500, generator=generator)).shape
        torch.Size([])
    """
    check_choice("kind", kind, ("bulk", "tail"))
    prob = TAIL if kind == "tail" else None
    return _diagnose("ess", draws, method=kind, prob=prob)


def mcse(draws: SampleResult | TensorLike, kind: Literal["mean", "sd"] = "mean") -> Tensor:
    """Monte Carlo standard error of the mean, or of the standard deviation, of all draws.

    Args:
        draws: A result with a trajectory, or draws ``(chain, draw, *event)``.
        kind: The estimate whose error is asked for.

    Returns:
        The standard error for each element, of the event's shape, in the units of the state.

    Raises:
        ConfigurationError: If the result holds no trajectory, or ``kind`` is another word.
        ShapeError: If there are fewer than four draws.
        NumericalError: If a draw is NaN or infinite.

    Reference:
        Vehtari et al. 2021 (see `rhat`), section 4.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> error = mcse(torch.randn(4, 2500, generator=generator))
        >>> f"{error:.2f}"
        '0.01'
    """
    check_choice("kind", kind, ("mean", "sd"))
    return _diagnose("mcse", draws, method=kind)


def require_trajectory(draws: SampleResult | TensorLike) -> Tensor:
    """The draws ``(chain, draw, *event)`` of a result, or draws as they are.

    Raises:
        ConfigurationError: If the result holds no trajectory, or draws are no numbers.
        ShapeError: If there is no chain and draw axis.
    """
    if isinstance(draws, SampleResult):
        if draws.trajectory is None:
            raise ConfigurationError(
                "the result holds final states only",
                "a result with a trajectory",
                'sample with keep="trajectory"',
            )
        draws = draws.trajectory
    draws = to_tensor("draws", draws)
    if draws.ndim < 2:
        raise ShapeError(
            f"draws have shape {tuple(draws.shape)}",
            "(chain, draw, *event)",
            "add the axis of a single chain with draws[None]",
        )
    return draws.detach()


def _diagnose(
    name: str, draws: SampleResult | TensorLike, *, min_chains: int = 1, **options: Any
) -> Tensor:
    """``array_stats.<name>`` of each element that varies; NaN for those that do not."""
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    trajectory = require_trajectory(draws)
    n_chains, n_draws, *event = trajectory.shape
    if n_chains < min_chains or n_draws < MIN_DRAWS:
        raise ShapeError(
            f"{name} was given {n_chains} chains of {n_draws} draws",
            f"at least {min_chains} chain(s) of {MIN_DRAWS} draws",
            "run more chains, or lower thin or raise n_steps",
        )
    values: NDArray[np.float64] = (
        trajectory.to("cpu", torch.float64).reshape(n_chains, n_draws, -1).numpy()
    )
    finite = np.isfinite(values).all(axis=(1, 2))
    if not finite.all():
        raise NumericalError(
            f"draws of {int((~finite).sum())} of {n_chains} chains are NaN or infinite, "
            f"first those of chain {int((~finite).argmax())}",
            "finite draws",
            "leave these chains out, and lower the sampler's step size",
        )
    numbers = np.full(values.shape[2], np.nan)
    varies = values.max(axis=(0, 1)) > values.min(axis=(0, 1))
    if varies.any():
        with np.errstate(
            divide="ignore"
        ):  # chains that stand still, each at its own place: infinity
            numbers[varies] = getattr(array_stats, name)(
                values[:, :, varies], chain_axis=0, draw_axis=1, **options
            )
    return torch.from_numpy(numbers).reshape(event)
