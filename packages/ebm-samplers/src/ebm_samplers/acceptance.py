"""The Metropolis test, once for all samplers that accept or reject.

A proposal is accepted with probability min(1, exp(-Δ)), where Δ is the change of minus the log
density, proposal terms included (of the Hamiltonian, in HMC). A proposal whose Δ is not finite is
rejected, and flagged; finiteness is tested before anything is compared with Δ.
"""

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ebm_core import NumericalError
from ebm_samplers.states import State

S = TypeVar("S", bound=State)

DIVERGENCE = 1000.0
"""A rise of energy, in nats, that no accurate trajectory has."""

RESOLUTION = 0.02
"""The coarsest spacing of energies, in nats, that an accept test can stand."""


@dataclass(frozen=True)
class Verdict:
    """What became of proposals.

    Attributes:
        accepted: ``(chain,)``, bool.
        probability: Acceptance probabilities, ``(chain,)``.
        diverging: Δ above `DIVERGENCE`, or not finite, ``(chain,)``, bool.
    """

    accepted: Tensor
    probability: Tensor
    diverging: Tensor

    def choose(self, proposal: S, current: S) -> S:
        """The proposal's fields where it was accepted, else the current state's."""
        return dataclasses.replace(
            current,
            **{
                field.name: self.pick(getattr(proposal, field.name), getattr(current, field.name))
                for field in dataclasses.fields(current)
            },
        )

    def pick(self, proposed: Tensor, current: Tensor) -> Tensor:
        """One tensor ``(chain, …)``, row by row."""
        rows = (
            self.accepted.view(-1, *(1,) * (proposed.ndim - 1))
            if proposed.ndim > 1
            else self.accepted
        )
        return torch.where(rows, proposed, current)


def metropolis(delta: Tensor, uniforms: Tensor) -> Verdict:
    """Test proposals.

    Args:
        delta: Δ, ``(chain,)``.
        uniforms: In (0, 1), ``(chain,)``.
    """
    infinity = float("inf")
    delta = delta.nan_to_num(nan=infinity, posinf=infinity, neginf=infinity)
    probability = delta.neg().exp().clamp(max=1.0)
    return Verdict(uniforms < probability, probability, delta > DIVERGENCE)


def check_resolution(potential: Tensor) -> None:
    """Refuse energies so large that their rounding errors decide accept tests.

    Args:
        potential: beta·E, ``(chain,)``, of the largest magnitude that each chain met.

    Raises:
        NumericalError: If eps(dtype)·|beta·E| > 0.02 for any chain.
    """
    spacing = torch.finfo(potential.dtype).eps * potential.abs()
    coarse = int((spacing > RESOLUTION).sum())
    if coarse:
        raise NumericalError(
            f"{coarse} of {len(potential)} chains have energies up to "
            f"{potential.abs().max().item():.3g}, where {potential.dtype} resolves no better than "
            f"{spacing.max().item():.2g} nats",
            f"{RESOLUTION} nats or better, for the accept test",
            "if energies fall without bound, check the sign (E = -log p) and that exp(-E) can be "
            "normalised (base_scale of a network, for example); if they are right, use float64 for "
            "states and energy, or subtract an offset inside forward",
        )
