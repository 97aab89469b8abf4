"""What a sampling run gives: draws in ArviZ's axis order, statistics, and a way to go on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Running moments of draws that were not kept, for each chain and element.

    Attributes:
        count: Number of draws of each chain.
        mean: ``(chain, *event)``.
        sum_of_squares: Σ (x - mean)², ``(chain, *event)``.
    """

    count: int
    mean: Tensor
    sum_of_squares: Tensor

    @classmethod
    def of(cls, draw: Tensor) -> "Moments":
        """The moments of a single draw, ``(chain, *event)``."""
        return cls(1, draw.clone(), torch.zeros_like(draw))

    @property
    def variance(self) -> Tensor:
        """The unbiased variance, ``(chain, *event)``; NaN while ``count`` is 1."""
        return self.sum_of_squares / (self.count - 1 if self.count > 1 else float("nan"))

    @property
    def second_moment(self) -> Tensor:
        """The mean of x², ``(chain, *event)``."""
        return self.mean.square() + self.sum_of_squares / self.count

    def merged(self, later: "Moments") -> "Moments":
        """The moments of both sets of draws together (Chan, Golub & LeVeque 1983).

        Example:
            >>> a, b = Moments.of(torch.zeros(1, 1)), Moments.of(torch.ones(1, 1))
            >>> a.merged(b).mean.item(), a.merged(b).variance.item()
            (0.5, 0.5)
        """
        count = self.count + later.count
        delta = later.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (later.count / count),
            self.sum_of_squares
            + later.sum_of_squares
            + delta.square() * (self.count * later.count / count),
        )


@dataclass(frozen=True, eq=False)
class SampleResult:
    """The outcome of ``sampler.sample(...)``.

    Attributes:
        final: The last states, ``(chain, *event)``.
        trajectory: The draws, ``(chain, draw, *event)`` (ArviZ's axis order), with
            ``keep="trajectory"``; else None.
        potential: E(x) of each draw in nats, ``(chain, draw)``; ``(chain, 1)``, of the final
            states, without a trajectory.
        stats: Statistics under ArviZ's names, ``(chain, draw)`` each (``(chain, 1)``, over the
            whole run, without a trajectory): ``acceptance_rate`` (mean over the draw's
            transitions), ``diverging`` (any), ``n_steps`` (gradient steps, sum), ``energy`` (the
            Hamiltonian at the last transition; HMC and NUTS only), ``tree_depth`` (NUTS only); and
            ``step_size (chain,)``.
        moments: Running `Moments` of the draws, with ``keep="moments"``; else None.
        seed: The 64-bit key of the random stream.
        resume: Tensors and numbers from which ``sample(resume=...)`` goes on as if the run had not
            been cut; loadable by ``torch.load(..., weights_only=True)``.
        warnings: What is known to be wrong with the draws, a sentence each; from samplers that
            check themselves.
        report: How the draws were made, by samplers that choose their own settings: numbers,
            words and tensors.
    """

    final: Tensor
    trajectory: Tensor | None
    potential: Tensor
    stats: Mapping[str, Tensor]
    moments: Moments | None = None
    seed: int | None = None
    resume: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_chains(self) -> int:
        """Number of chains."""
        return self.final.shape[0]

    @property
    def n_draws(self) -> int:
        """Number of draws a chain that are kept in ``trajectory`` (0 without one)."""
        return 0 if self.trajectory is None else self.trajectory.shape[1]

    def __repr__(self) -> str:
        """Shapes, the summary of the statistics, and a line for each warning; not the numbers."""
        parts = [f"final={tuple(self.final.shape)}"]
        if self.trajectory is not None:
            parts.append(f"trajectory={tuple(self.trajectory.shape)}")
        if self.moments is not None:
            parts.append(f"moments of {self.moments.count} draws")
        if "acceptance_rate" in self.stats:
            parts.append(f"acceptance_rate={self.stats['acceptance_rate'].mean().item():.3f}")
        if "diverging" in self.stats:
            parts.append(f"diverging={int(self.stats['diverging'].sum())}")
        lines = (f"SampleResult({', '.join(parts)}, seed={self.seed})", *self.warnings)
        return "\n  warning: ".join(lines)
