"""How probable a discrepancy is by chance: permutations of two sets, signs of a Stein kernel."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_core import EnergyLike, NumericalError, ShapeError, make_generator
from ebm_core.validation import check_integer
from ebm_utils.discrepancies import States, SteinKernel, energy_distance, triangle
from ebm_utils.draws import require_states


@dataclass(frozen=True, eq=False)
class Significance:
    """A discrepancy beside those that chance makes.

    Attributes:
        value: The discrepancy.
        p_value: The part of ``null`` (and of the value itself) that is as large or larger.
        null: What it would be by chance, ``(n,)``.
    """

    value: float
    p_value: float
    null: Tensor

    def __repr__(self) -> str:
        """Value and p-value."""
        return f"Significance(value={self.value:.4g}, p_value={self.p_value:.3g})"


def permutation_test(
    x: States,
    y: States,
    statistic: Callable[[Tensor, Tensor], Tensor] = energy_distance,
    *,
    n_permutations: int = 200,
    seed: int | None = None,
) -> Significance:
    """Whether two sets of draws have the same law.

    Exact if the draws of both sets are independent: take the final states of chains, or draws that
    are several autocorrelation times apart.

    Args:
        x: Draws ``(n, *event)``.
        y: Draws ``(m, *event)``.
        statistic: Grows with the difference of two sets: `energy_distance`, `mmd`,
            `sliced_wasserstein` with a ``seed``, or your own.
        n_permutations: How often the draws are dealt anew; the least p-value is
            1 / (1 + n_permutations).
        seed: Key of the permutations; None to draw one from torch's default generator.

    Raises:
        ShapeError: If events differ.
        ConfigurationError: If ``n_permutations`` is no positive integer.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> permutation_test(x[:50], x[50:] + 1.0, seed=0).p_value
        0.00497...
    """
    n = check_integer("n_permutations", n_permutations, at_least=1)
    states, others = require_states("x", x), require_states("y", y)
    if states.shape[1:] != others.shape[1:]:
        raise ShapeError(
            f"x has states of shape {tuple(states.shape[1:])}, y of {tuple(others.shape[1:])}",
            "the same event shape",
            "compare draws of the same space",
        )
    pooled = torch.cat((states, others.to(states.device)))
    generator = make_generator(seed)
    null = torch.empty(n, dtype=torch.float64)
    for i in range(n):
        dealt = pooled[torch.randperm(len(pooled), generator=generator).to(pooled.device)]
        null[i] = statistic(dealt[: len(states)], dealt[len(states) :])
    value = statistic(states, others.to(states.device))
    eps = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    return _judged(value.item(), null, eps)


def stein_test(
    x: States,
    energy: EnergyLike,
    *,
    scale: float | None = None,
    exponent: float = -0.5,
    n_resamples: int = 500,
    seed: int | None = None,
) -> Significance:
    """Whether draws are from exp(-E), by their kernel Stein discrepancy.

    Its law by chance comes from random signs of the draws, which must be independent: take the
    final states of chains, or draws that are several autocorrelation times apart.

    Args:
        x: Draws ``(n, *event)``.
        energy: See `kernel_stein_discrepancy`.
        scale: See `kernel_stein_discrepancy`.
        exponent: See `kernel_stein_discrepancy`.
        n_resamples: How many sets of signs; the least p-value is 1 / (1 + n_resamples).
        seed: Key of the signs; None to draw one from torch's default generator.

    Raises:
        EBMError: As `kernel_stein_discrepancy`.

    Reference:
        Chwialkowski, Strathmann & Gretton, "A kernel test of goodness of fit", ICML 2016, for
        independent draws.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> stein_test(1.5 * x, lambda x: x.square().sum(1) / 2, seed=0).p_value
        0.00199...
    """
    n_resamples = check_integer("n_resamples", n_resamples, at_least=1)
    stein = SteinKernel.of(x, energy, scale, exponent)
    n = len(stein.x)
    signs = torch.randint(2, (n, n_resamples), generator=make_generator(seed)).double() * 2 - 1
    signs = torch.cat((torch.ones(n, 1, dtype=torch.float64), signs), dim=1).to(stein.x.device)
    totals = signs.new_zeros(n_resamples + 1)
    for rows, columns in triangle(n):
        block = stein.block(rows, columns)
        if rows == columns:
            block.diagonal().zero_()
        counts = 1 if rows == columns else 2
        totals += counts * (signs[rows] * (block @ signs[columns])).sum(0)
    value, *null = (totals / (n * (n - 1))).tolist()
    return _judged(value, torch.tensor(null, dtype=torch.float64))


def _judged(value: float, null: Tensor, eps: float = 2.0**-52) -> Significance:
    """The p-value; statistics that differ by rounding alone, as of discrete states, are equal."""
    if not (math.isfinite(value) and null.isfinite().all()):
        raise NumericalError(
            "the statistic is not finite for some of the samples",
            "finite numbers",
            "check the draws, and that the statistic exists for any split of them",
        )
    tolerance = eps ** (2 / 3) * max(abs(value), null.abs().max().item())
    return Significance(value, (1 + int((null >= value - tolerance).sum())) / (1 + len(null)), null)
