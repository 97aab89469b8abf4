"""Convergence diagnostics, element by element of the event, with arviz-stats' numbers.

Each function takes a `SampleResult` that kept its trajectory, or draws ``(chain, draw, *event)`` as
a tensor or array, and gives one float64 number for each element of the event, on the CPU. To
diagnose a function of the state, pass its values: ``ess(result.trajectory.square())``. `summary`
puts them all into one table.

What cannot be computed is refused: draws that are not finite, too few of them, no trajectory. An
element that is the same in every draw of every chain has no diagnostics; its entry is NaN, which
fails every comparison (``rhat < 1.01``, ``ess > 400``).
"""

import math
import numbers
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ebm_core import ConfigurationError, SampleResult, ShapeError
from ebm_core.validation import check_choice, check_integer
from ebm_utils.arrays import TensorLike, to_tensor
from ebm_utils.draws import (
    MIN_DRAWS,
    TAIL,
    Array,
    Block,
    Estimate,
    array_stats,
    each_element,
    normal_scores,
    require_finite,
    require_trajectory,
)


def rhat(draws: SampleResult | TensorLike) -> Tensor:
    """Rank-normalised split R-hat, the larger of its bulk and folded (tail) form.

    Values above 1.01 say that the chains have not mixed. It grows without bound where each chain
    stands still at its own place. Of chains shorter than their memory it is large even where all
    chains together are in equilibrium: see `nested_rhat`.

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
    return _diagnose("rhat", draws, rhat_of, min_chains=2)


def nested_rhat(
    draws: SampleResult | TensorLike, superchains: int | Sequence[int] | TensorLike
) -> Tensor:
    """Nested R-hat: whether many short chains have forgotten their common starts.

    Chains that start from the same point are a superchain. Where chains have forgotten their
    starts, the means of superchains differ by no more than the chains within them explain. Each
    chain may be as short as one draw. In equilibrium it is about sqrt(1 + 1/M) for M chains a
    superchain of one draw each, nearer to 1 the longer they are; as many superchains as can be had,
    and M of 16 or so, make it sharp.

    Args:
        draws: A result, or draws ``(chain, draw, *event)``. Of a result without a trajectory, its
            moments are taken, as they are, or else its final states.
        superchains: Which superchain each chain belongs to, ``(chain,)``, as many chains in each;
            or the number of superchains, which are consecutive chains then, as from
            ``starts.repeat_interleave(16, dim=0)``.

    Returns:
        Nested R-hat of each element, of the event's shape: of rank-normalised draws, the larger of
        the bulk and folded form, chains of four draws or more split (arviz-stats' numbers).

    Raises:
        ConfigurationError: If superchains are no integers, or not as many chains each.
        ShapeError: If there are fewer than two superchains, or not one number a chain.
        NumericalError: If a draw is NaN or infinite.

    Reference:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman, "Nested R-hat", Bayesian
        Analysis 2024 (arXiv:2110.13017), equations 4 to 8.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> forgotten = torch.randn(512, 1, generator=generator)
        >>> starts = torch.randn(32, 1, generator=generator).repeat_interleave(16, dim=0)
        >>> [f"{nested_rhat(x, superchains=32):.2f}" for x in (forgotten, forgotten + starts)]
        ['1.04', '1.52']
    """
    if isinstance(draws, SampleResult) and draws.trajectory is None:
        if draws.moments is not None:
            mean, variance = chain_moments(draws)
            nested = nested_of_moments(
                mean, variance, superchain_ids(superchains, len(draws.final))
            )
            return torch.from_numpy(nested).reshape(draws.final.shape[1:])
        draws = draws.final[:, None]
    trajectory = require_trajectory(draws)
    require_finite(trajectory)
    ids = superchain_ids(superchains, len(trajectory))
    estimates = {"nested_rhat": lambda block: nested_rhat_of(block, ids)}
    return each_element(trajectory, estimates)["nested_rhat"]


def ess(draws: SampleResult | TensorLike, kind: Literal["bulk", "tail", "mean"] = "bulk") -> Tensor:
    """Effective sample size over all chains together.

    Args:
        draws: A result with a trajectory, or draws ``(chain, draw, *event)``.
        kind: "bulk" for the rank-normalised draws (how well centres are known); "tail" for the
            smaller of those of the 5 % and 95 % quantiles, as in the reference; "mean" for the
            draws as they are, on which `mcse` rests. (arviz-stats' own default of the tail takes
            the ends of the interval of its setting ``stats.ci_prob`` instead; its ``prob=(0.05,
            0.95)`` gives this number.)

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
    check_choice("kind", kind, ("bulk", "tail", "mean"))
    estimates = {"bulk": ess_bulk_of, "tail": ess_tail_of, "mean": ess_mean_of}
    return _diagnose("ess", draws, estimates[kind])


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
    return _diagnose("mcse", draws, mcse_mean_of if kind == "mean" else mcse_sd_of)


def autocorrelation_time(draws: SampleResult | TensorLike) -> Tensor:
    """Integrated autocorrelation time: how many draws are worth one that is independent.

    τ = 1 + 2 Σ ρ(t), over lags from 1, estimated as the number of draws over the ESS of their mean;
    below 1 where draws are anticorrelated. Its unit is one draw: with ``thin``, that many
    transitions.

    Args:
        draws: A result with a trajectory, or draws ``(chain, draw, *event)``.

    Returns:
        τ of each element, of the event's shape.

    Raises:
        ConfigurationError: If the result holds no trajectory.
        ShapeError: If there are fewer than four draws.
        NumericalError: If a draw is NaN or infinite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> noise = torch.randn(64, 1001, generator=generator)
        >>> f"{autocorrelation_time(noise[:, 1:] + noise[:, :-1]):.1f}"  # ρ(1) = 1/2
        '2.0'
    """
    return _diagnose("autocorrelation_time", draws, tau_of)


def rhat_of(block: Block) -> Array:
    """`rhat` of a block."""
    scores = (block.ranked, block.ranked_distances)
    bulk, tail = (rhat_of_moments(z.mean(2), z.var(2, ddof=1), z.shape[2]) for z in scores)
    return np.fmax(bulk, tail)  # spins: all distances to the median may be equal


def rhat_of_moments(mean: Array, variance: Array, n_draws: int) -> Array:
    """R-hat, neither split nor ranked, from each chain's moments ``(element, chain)``."""
    between = mean.var(axis=1, ddof=1) / variance.mean(axis=1)
    return np.asarray(np.sqrt(between + (n_draws - 1) / n_draws))


def nested_rhat_of(block: Block, ids: Array) -> Array:
    """`nested_rhat` of a block; ``ids (chain,)`` as `superchain_ids` gives them."""
    n_draws = block.values.shape[2]
    if n_draws >= MIN_DRAWS:
        scores, ids = (block.ranked, block.ranked_distances), np.concatenate((ids, ids))
    else:
        centre = np.median(block.values, axis=(1, 2), keepdims=True)
        distances = np.abs(block.values - centre)
        scores = (normal_scores(block.values), normal_scores(distances))
    bulk, tail = (
        nested_of_moments(
            z.mean(2), z.var(2, ddof=1) if n_draws > 1 else np.zeros(z.shape[:2]), ids
        )
        for z in scores
    )
    return np.fmax(bulk, tail)


def ess_bulk_of(block: Block) -> Array:
    """`ess` of kind "bulk" of a block."""
    if block.split.shape[2] >= MIN_DRAWS:
        return _by_arviz("ess", block.ranked, method="identity")
    return _by_arviz("ess", block.values, method="bulk")


def ess_tail_of(block: Block) -> Array:
    """`ess` of kind "tail" of a block."""
    return _by_arviz("ess", block.values, method="tail", prob=TAIL)


def ess_mean_of(block: Block) -> Array:
    """`ess` of kind "mean" of a block."""
    return block.once("ess_mean", lambda: _by_arviz("ess", block.values, method="mean"))


def mcse_mean_of(block: Block) -> Array:
    """`mcse` of the mean of a block."""
    return np.asarray(block.values.std(axis=(1, 2), ddof=1) / np.sqrt(ess_mean_of(block)))


def mcse_sd_of(block: Block) -> Array:
    """`mcse` of the standard deviation of a block."""
    return _by_arviz("mcse", block.values, method="sd")


def tau_of(block: Block) -> Array:
    """`autocorrelation_time` of a block."""
    return np.asarray(block.values[0].size / ess_mean_of(block))


def of_square(estimate: Estimate, block: Block) -> Array:
    """An estimate of the squares of a block's elements; NaN where these never vary."""
    square = block.squared
    return square.full(estimate(square) if len(square.values) else np.empty(0))


def chain_moments(result: SampleResult) -> tuple[Array, Array]:
    """Means and unbiased variances of each chain's draws, ``(element, chain)``, of its moments."""
    moments = result.moments
    assert moments is not None
    mean, squares = (
        value.detach().to("cpu", torch.float64).flatten(1).T.numpy()
        for value in (moments.mean, moments.sum_of_squares)
    )
    return mean, squares / max(1, moments.count - 1)


def sd_of_moments(mean: Array, variance: Array, n_draws: int) -> Array:
    """The standard deviation of all draws from each chain's moments ``(element, chain)``."""
    between = n_draws * np.square(mean - mean.mean(axis=1, keepdims=True)).sum(axis=1)
    total = (n_draws - 1) * variance.sum(axis=1) + between
    return np.asarray(np.sqrt(total / max(1, n_draws * mean.shape[1] - 1)))


def mcse_of_moments(mean: Array) -> Array:
    """The standard error of the mean, from how chains' means ``(element, chain)`` differ."""
    return np.asarray(mean.std(axis=1, ddof=1) / math.sqrt(mean.shape[1]))


def ess_of_moments(mean: Array, variance: Array, n_draws: int) -> Array:
    """The effective size of means, from how chains differ; NaN for elements that never vary."""
    return np.square(sd_of_moments(mean, variance, n_draws) / mcse_of_moments(mean))


def superchain_ids(superchains: int | Sequence[int] | TensorLike, n_chains: int) -> Array:
    """The superchain of each chain, numbered from 0: ``(chain,)``, int64.

    Raises:
        ConfigurationError: If superchains are no integers, or not as many chains each.
        ShapeError: If there are fewer than two superchains, or not one number a chain.
    """
    if isinstance(superchains, int | numbers.Integral):
        n = check_integer("superchains", superchains, at_least=1)
        ids = torch.arange(n_chains) * n // n_chains
    else:
        ids = to_tensor("superchains", superchains)
        if ids.shape != (n_chains,):
            raise ShapeError(
                f"superchains have shape {tuple(ids.shape)}",
                f"one number a chain, ({n_chains},)",
                "name each chain's superchain",
            )
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ConfigurationError(
                f"superchains are of {ids.dtype}", "integers", "number the superchains"
            )
    _, numbered, counts = np.unique(ids.cpu().numpy(), return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise ShapeError(
            f"{n_chains} chains are in {len(counts)} superchain",
            "two superchains or more",
            "start chains from several points",
        )
    if counts.min() != counts.max():
        raise ConfigurationError(
            f"superchains are of {counts.min()} to {counts.max()} chains",
            "as many chains in each",
            "start as many chains from each point",
        )
    return np.asarray(numbered)


def nested_of_moments(mean: Array, variance: Array, ids: Array) -> Array:
    """Equations 4 to 8 of Margossian et al., from chains' moments ``(element, chain)``."""
    n_superchains = int(ids.max()) + 1
    order = np.argsort(ids, kind="stable")
    grouped = mean[:, order].reshape(len(mean), n_superchains, -1)
    chains = grouped.var(axis=2, ddof=1) if grouped.shape[2] > 1 else np.zeros(grouped.shape[:2])
    within = variance.mean(axis=1) + chains.mean(axis=1)
    between = grouped.mean(axis=2).var(axis=1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(1 + between / within))


def _by_arviz(function: str, values: Array, **options: object) -> Array:
    numbers = getattr(array_stats(), function)(values, chain_axis=1, draw_axis=2, **options)
    return np.asarray(numbers, dtype=np.float64)


def _diagnose(
    name: str, draws: SampleResult | TensorLike, estimate: Estimate, *, min_chains: int = 1
) -> Tensor:
    trajectory = require_trajectory(draws)
    n_chains, n_draws = trajectory.shape[:2]
    if n_chains < min_chains or n_draws < MIN_DRAWS:
        raise ShapeError(
            f"{name} was given {n_chains} chains of {n_draws} draws",
            f"at least {min_chains} chain(s) of {MIN_DRAWS} draws",
            "run more chains, or lower thin or raise n_steps",
        )
    require_finite(trajectory)
    return each_element(trajectory, {name: estimate})[name]
