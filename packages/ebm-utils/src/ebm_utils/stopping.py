"""`StopWhen`: a callback that ends a run once it is long enough."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebm_core import ConfigurationError, SampleResult, ShapeError
from ebm_core.validation import check_integer, check_number
from ebm_utils.diagnostics import (
    chain_moments,
    ess_bulk_of,
    ess_of_moments,
    ess_tail_of,
    of_square,
    rhat_of,
    rhat_of_moments,
)
from ebm_utils.draws import MIN_DRAWS, Array, Block, Estimate, each_element, require_finite

LEAST_GROWTH, MOST_GROWTH = 1.1, 1.5


@dataclass(frozen=True)
class Check:
    """What `StopWhen` saw at one time.

    Attributes:
        n_draws: Draws of each chain.
        ess: The smallest effective sample size of all elements; NaN if it was not asked for.
        rhat: The largest R-hat of all elements; NaN if it was not asked for.
    """

    n_draws: int
    ess: float
    rhat: float


class StopWhen:
    """Ends a run once its effective sample size is large, its R-hat small enough, or both.

    Pass it as the ``callback`` of ``sample`` with ``keep="trajectory"``, and an ``n_steps`` that is
    the most you would pay for. A sampler looks at its callback a hundred times in a run, so that a
    run can end at any hundredth. The effective sample size is the smallest of bulk and tail of x
    and bulk of x², over all elements. With ``keep="moments"`` it is that of means, from how chains
    differ (many chains are needed), and R-hat is neither split nor ranked. Elements that never vary
    keep the run going.

    A run that ends when an estimate says so ends a little early on average; ask for somewhat more
    than you need.

    Args:
        ess: Effective sample size to reach; None to ignore it.
        rhat: R-hat to be below, greater than 1; None to ignore it.
        every: Draws between two looks at them. None: when the effective sample size would be there
            at its present rate, or when draws are 1.1 to 1.5 times as many, so that all looks
            together cost about as much as a few of the last.
        min_draws: Draws of each chain before the first look, at least 4.

    Raises:
        ConfigurationError: If both targets are None, or a number makes no sense; from the run, if
            it keeps final states only.
        NumericalError: From the run, if a draw is NaN or infinite.
        ShapeError: From the run, if R-hat (or moments) are asked of a single chain.

    Attributes:
        checks: What it saw in the last run, a `Check` each time. A run is taken for a new one if it
            has another seed, or begins with no more draws than were seen; else give each run an
            object of its own.
        stopped: Whether it ended the last run.

    Example:
        >>> from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
        >>> sampler = ReferenceLangevin(QuadraticEnergy(torch.zeros(2)), step_size=0.3)
        >>> stop = StopWhen(ess=400, rhat=1.05)
        >>> result = sampler.sample(
        ...     n_samples=16, n_steps=5000, keep="trajectory", seed=0, callback=stop
        ... )
        >>> stop.stopped, result.n_draws < 1000
        (True, True)
    """

    def __init__(
        self,
        *,
        ess: float | None = None,
        rhat: float | None = None,
        every: int | None = None,
        min_draws: int = 50,
    ) -> None:
        if ess is None and rhat is None:
            raise ConfigurationError(
                "neither ess nor rhat is given", "a target", "pass ess=400, rhat=1.01 or both"
            )
        self.ess = None if ess is None else check_number("ess", ess, above=0)
        self.rhat = None if rhat is None else check_number("rhat", rhat, above=1)
        self.every = None if every is None else check_integer("every", every, at_least=1)
        self.min_draws = check_integer("min_draws", min_draws, at_least=MIN_DRAWS)
        self.checks: list[Check] = []
        self.stopped = False
        self._next = self.min_draws
        self._seen = 0
        self._seed: int | None = None

    def __call__(self, result: SampleResult) -> bool:
        """Whether to stop; ``result`` is the run so far."""
        n_draws = result.n_draws if result.moments is None else result.moments.count
        if self.stopped or n_draws <= self._seen or result.seed != self._seed:  # another run
            self.checks, self.stopped, self._next = [], False, self.min_draws
        self._seen, self._seed = n_draws, result.seed
        if n_draws < self._next and (result.trajectory is not None or result.moments is not None):
            return False
        check = Check(n_draws, *self._measure(result))
        self.checks.append(check)
        self.stopped = (self.ess is None or check.ess >= self.ess) and (
            self.rhat is None or check.rhat < self.rhat
        )
        growth = self.ess / check.ess if self.ess is not None and check.ess > 0 else MOST_GROWTH
        growth = min(max(growth, LEAST_GROWTH), MOST_GROWTH)
        self._next = n_draws + self.every if self.every else int(n_draws * growth)
        return self.stopped

    def __repr__(self) -> str:
        """The targets, and what was seen last."""
        targets = {"ess": self.ess, "rhat": self.rhat}
        wanted = ", ".join(f"{k}={v:g}" for k, v in targets.items() if v is not None)
        if not self.checks:
            return f"StopWhen({wanted}; no draws yet)"
        last = self.checks[-1]
        seen = {"ESS": f"{last.ess:.0f}", "R-hat": f"{last.rhat:.4f}"}
        numbers = ", ".join(f"{k} {v}" for k, v in seen.items() if v != "nan")
        return (
            f"StopWhen({wanted}; {'stopped' if self.stopped else 'went on'} at draw "
            f"{last.n_draws}: {numbers})"
        )

    def _measure(self, result: SampleResult) -> tuple[float, float]:
        n_chains = len(result.final)
        by_chains = result.trajectory is None
        if n_chains < 2 and (by_chains or self.rhat is not None):
            raise ShapeError(
                "StopWhen was given a single chain",
                'two chains or more for R-hat, and with keep="moments"',
                'run more chains, or ask for ess only with keep="trajectory"',
            )
        found = self._of_moments(result) if by_chains else self._of_draws(result)
        ess, rhat = found.get("ess"), found.get("rhat")
        return (
            math.nan if ess is None else ess.amin().item(),
            math.nan if rhat is None else rhat.amax().item(),
        )

    def _of_draws(self, result: SampleResult) -> dict[str, Tensor]:
        assert result.trajectory is not None
        require_finite(result.trajectory)
        estimates: dict[str, Estimate] = {}
        if self.ess is not None:
            estimates["ess"] = _least_ess_of
        if self.rhat is not None:
            estimates["rhat"] = rhat_of
        return each_element(result.trajectory.detach(), estimates)

    def _of_moments(self, result: SampleResult) -> dict[str, Tensor]:
        if result.moments is None:
            raise ConfigurationError(
                "StopWhen was given final states only",
                "draws or moments",
                'sample with keep="trajectory" or keep="moments"',
            )
        require_finite(result.moments.mean[:, None])
        mean, variance = chain_moments(result)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                "ess": ess_of_moments(mean, variance, result.moments.count),
                "rhat": rhat_of_moments(mean, variance, result.moments.count),
            }
        wanted = {"ess": self.ess, "rhat": self.rhat}
        return {k: torch.from_numpy(v) for k, v in found.items() if wanted[k] is not None}


def _least_ess_of(block: Block) -> Array:
    """The least of bulk and tail of x and bulk of x²; where x² never varies (spins), of x."""
    squares = of_square(ess_bulk_of, block)
    return np.fmin(np.minimum(ess_bulk_of(block), ess_tail_of(block)), squares)
