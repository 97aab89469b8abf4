"""The state of chains between two transitions, and what a transition is given beside."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ebm_samplers.noise import Noise


@dataclass(frozen=True)
class State:
    """Positions with their energies and gradients. Never modified in place.

    A sampler whose chains carry more from step to step (a momentum) derives from this, and names
    the fields that cannot be computed from ``x`` in ``carried``, so that ``resume`` keeps them.

    Attributes:
        x: ``(chain, *event)``.
        energy: E(x), ``(chain,)``; beta is not in it.
        gradient: ∇E(x), ``(chain, *event)``.
    """

    x: Tensor
    energy: Tensor
    gradient: Tensor

    carried: ClassVar[tuple[str, ...]] = ()


Statistics = Mapping[str, Tensor | int]
"""What a transition reports: tensors ``(chain,)``, or an int where all chains have the same."""


class Context:
    """What a transition needs beside the state: settings of this step, randomness, beta.

    Attributes:
        step_size: h of this step: a float, or a scalar tensor while it adapts.
        settings: The values at this step of further scheduled settings, by name.
        beta: Inverse temperatures, ``(chain,)``, a number, or None for 1.
        prepared: What ``prepare`` has made, by name (a mass fitted to the kind of states): on the
            context, since runs of one sampler may be nested.
        reports: Whether statistics other than ``acceptance_rate`` will be looked at.
    """

    def __init__(self, noise: Noise, beta: float | Tensor | None) -> None:
        self.beta = beta
        self.step_size: float | Tensor = 0.0
        self.settings: dict[str, float] = {}
        self.prepared: dict[str, Any] = {}
        self.reports = True
        self._noise = noise
        self._step = 0

    def move(self, step: int, step_size: float | Tensor, settings: dict[str, float]) -> None:
        """Go on to another step of the random streams."""
        self._step, self.step_size, self.settings = step, step_size, settings

    def normals(self, stream: int) -> Tensor:
        """Standard normals of this step, ``(chain, *event)``; the same ones when asked again."""
        return self._noise.normals(stream, self._step)

    def uniforms(self, stream: int) -> Tensor:
        """Uniforms in (0, 1) of this step, ``(chain,)``."""
        return self._noise.uniforms(stream, self._step)

    def uniforms_of(self, stream: int, per_step: int, first: int, n: int) -> Tensor:
        """Uniforms where a step has several.

        Args:
            stream: Which.
            per_step: How many a step has in this stream.
            first: Number of the first wanted one.
            n: How many are wanted.

        Returns:
            ``(chain, n)``.
        """
        return self._noise.uniforms_of(stream, per_step, self._step, first, n)

    def uniforms_all(self, stream: int, per_step: int) -> Tensor:
        """All uniforms of a step that has several in this stream, ``(chain, per_step)``."""
        return self._noise.uniforms_all(stream, per_step, self._step)

    def shared_uniform(self, stream: int) -> float:
        """One uniform in (0, 1) of this step for all chains, and for all numbers of chains."""
        return self._noise.shared_uniform(stream, self._step)

    def moved(
        self,
        x: Tensor,
        velocity: Tensor,
        h: float | Tensor,
        spread: float | Tensor,
        stream: int,
    ) -> Tensor:
        """x - h·velocity + spread·ξ with the normals ξ of this step: diffusion with a drift.

        Args:
            x: ``(chain, *event)``.
            velocity: ``(chain, *event)``.
            h: A number, or scalar.
            spread: Likewise.
            stream: Of the normals.
        """
        return x - h * velocity + spread * self.normals(stream)

    def temper(self, values: Tensor) -> Tensor:
        """beta · values for energies ``(chain,)`` or gradients ``(chain, *event)``."""
        if self.beta is None:
            return values
        if isinstance(self.beta, Tensor) and values.ndim > 1:
            return self.beta.view(-1, *(1,) * (values.ndim - 1)) * values
        return self.beta * values


def combined(total: Statistics, new: Statistics) -> Statistics:
    """Statistics of an interval from those of its parts, which may be single transitions."""
    return {
        name: _combined(name, total[name], value) if name in total else value
        for name, value in new.items()
    }


def _combined(name: str, total: Tensor | int, value: Tensor | int) -> Tensor | int:
    """Sums where the mean is wanted, and of steps; of unknown names, the last value."""
    match name:
        case "acceptance_rate":
            return torch.as_tensor(total).double() + value
        case "n_steps":
            return total + value
        case "diverging":
            return total | value
        case "tree_depth":
            return torch.maximum(torch.as_tensor(total), torch.as_tensor(value))
        case _:
            return value


def per_chain(values: Tensor) -> Tensor:
    """Sums over the event axes: ``(chain, *event) -> (chain,)``."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def not_finite(state: State) -> Tensor:
    """Chains with NaN or infinity in x or E, ``(chain,)``: v - v is 0 for finite v alone."""
    total = state.energy + per_chain(state.x)
    return total - total != 0
