"""Terms that can be added to a contrastive objective. None is added unless it is asked for.

A term is any callable that takes a `ContrastiveBatch` (what the objective has at hand: states and
their energies) and gives a scalar tensor or a number, its weight included. Terms add up:
``regularizers=[EnergyMagnitude(0.01), my_term]``.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ebm_core import EnergyFunction
from ebm_core.validation import check_positive


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
