"""Terms that can be added to a contrastive objective. None is added unless it is asked for.

A term is any callable that takes a `ContrastiveBatch` (what the objective has at hand: states and
their energies) and gives a scalar tensor or a number, its weight included. Terms add up:
``regularizers=[EnergyMagnitude(0.01), my_term]``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_core import EnergyFunction
from ebm_core.validation import check_choice, check_number, check_positive
from ebm_losses._checks import check_floating


@dataclass(frozen=True, eq=False)
class ContrastiveBatch:
    """What a regulariser sees of one call of a contrastive objective.

    Attributes:
        energy: The energy that is trained.
        x: Data, ``(batch, *event)``.
        negatives: Negatives, ``(n, *event)``, constants.
        data_energy: E(x), ``(batch,)``, with its graph.
        negative_energy: E(negatives), ``(n,)``, with its graph.
    """

    energy: EnergyFunction
    x: Tensor
    negatives: Tensor
    data_energy: Tensor
    negative_energy: Tensor


Regularizer = Callable[[ContrastiveBatch], Tensor | float]
"""A term of a contrastive objective: a scalar, to be minimised with it."""


class EnergyMagnitude:
    """weight · (mean E(x)² + mean E(negatives)²): keeps energies near 0.

    From Du & Mordatch 2019, arXiv:1903.08689. It biases the learned density: the optimum is no
    longer the data's.

    Args:
        weight: The coefficient, positive.

    Example:
        >>> EnergyMagnitude(0.1)
        EnergyMagnitude(weight=0.1)
    """

    def __init__(self, weight: float) -> None:
        self.weight = check_positive("weight", weight)

    def __call__(self, batch: ContrastiveBatch) -> Tensor:
        """The term's value, a scalar."""
        magnitude = batch.data_energy.square().mean() + batch.negative_energy.square().mean()
        return self.weight * magnitude

    def __repr__(self) -> str:
        """The constructor's call."""
        return f"EnergyMagnitude(weight={self.weight})"


class GradientPenalty:
    """weight · mean (|∇E| - target)², |·| the Euclidean norm over the event: keeps slopes moderate.

    With target 0 on data and negatives alike it is the zero-centred penalty of Mescheder, Geiger &
    Nowozin 2018, arXiv:1801.04406 (R1 on data, R2 on negatives; their γ is twice the weight); with
    target 1 between them that of Gulrajani et al. 2017, arXiv:1704.00028. It biases the learned
    density, whose own score is no more 0 than 1, and takes a second derivative through the energy.

    Args:
        weight: The coefficient, positive.
        target: The norm that is wanted, in nats per unit of the data, at least 0.
        at: The states where it is wanted: ``"data"``, ``"negatives"``, ``"both"`` (the mean of the
            two) or ``"between"`` (a random point between each datum and a negative; those of the
            larger batch that have no partner are left out).

    Raises:
        ConfigurationError: If a number is out of range, or ``at`` is none of these words; when
            called, if there is no state between data, as they are integers.

    Example:
        >>> GradientPenalty(0.1)
        GradientPenalty(weight=0.1, target=0.0, at='data')
    """

    def __init__(self, weight: float, target: float = 0.0, at: str = "data") -> None:
        self.weight = check_positive("weight", weight)
        self.target = check_number("target", target, at_least=0)
        self.at = check_choice("at", at, ("data", "negatives", "both", "between"))

    def __call__(self, batch: ContrastiveBatch) -> Tensor:
        """The term's value, a scalar."""
        means = [self._mean(batch.energy, states) for states in self._states(batch)]
        return self.weight * torch.stack(means).mean()

    def __repr__(self) -> str:
        """The constructor's call."""
        return f"GradientPenalty(weight={self.weight}, target={self.target}, at={self.at!r})"

    def _states(self, batch: ContrastiveBatch) -> tuple[Tensor, ...]:
        x, negatives = batch.x.detach(), batch.negatives
        if self.at != "between":
            states = {"data": (x,), "negatives": (negatives,), "both": (x, negatives)}
            return states[self.at]
        check_floating(x, type(self).__name__)
        n = min(len(x), len(negatives))
        shape = (n, *[1] * (x.ndim - 1))
        return (torch.lerp(x[:n], negatives[:n], torch.rand(shape, device=x.device).to(x.dtype)),)

    def _mean(self, energy: EnergyFunction, states: Tensor) -> Tensor:
        gradient = energy.gradient(states, create_graph=True).reshape(len(states), -1)
        if self.target == 0.0:
            return gradient.square().sum(1).mean()
        # The norm's own derivative at 0 is taken as 0.
        norms: Tensor = torch.linalg.vector_norm(gradient, dim=1)
        return (norms - self.target).square().mean()
