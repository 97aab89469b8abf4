"""What a training run gives back, and the records it keeps on the way."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from ebm_core import ConfigurationError
from ebm_utils.training.averaging import ParameterAverage

Stopped = Literal["finished", "callback", "interrupted", "diverged"]


@dataclass(frozen=True, eq=False)
class FitResult:
    """The outcome of `fit`.

    Attributes:
        step: Optimisation steps made, those before a resume included.
        steps: The steps, from 1, that ``history`` has values of.
        history: Values at those steps by name: ``loss``, ``learning_rate``, ``gradient_norm``
            (before clipping) and the metrics of the loss; NaN where a metric was absent. What
            `plot_training` takes.
        evaluation_steps: The steps after which the evaluation ran.
        evaluations: Its values at those steps by name, NaN where one was absent.
        average: The running average of the parameters; None if none was asked for.
        stopped: Why the run ended: ``"finished"``, or by the evaluation ``"callback"``;
            ``"interrupted"`` and ``"diverged"`` in the ``result`` of what was raised.
        loss: The loss that was trained.
    """

    step: int
    steps: list[int]
    history: dict[str, list[float]]
    evaluation_steps: list[int]
    evaluations: dict[str, list[float]]
    average: ParameterAverage | None
    stopped: Stopped
    loss: Any

    @cached_property
    def energy(self) -> Any:
        """The trained energy: ``loss.energy``, or with an average a copy of it that has it.

        Raises:
            ConfigurationError: If the loss has no module ``energy``.
        """
        energy = getattr(self.loss, "energy", None)
        if not isinstance(energy, nn.Module):
            raise ConfigurationError(
                f"the loss, a {type(self.loss).__name__}, has no module energy",
                "a loss with one, such as a BaseLoss",
                "take your own module, or result.average.copy_of(module)",
            )
        return energy if self.average is None else self.average.copy_of(energy)


class Record:
    """Series of numbers by name, of the same length, with the step of each entry.

    Example:
        >>> record = Record()
        >>> record.add(1, {"loss": 2.0})
        >>> record.add(2, {"loss": 1.0, "gap": 0.5})
        >>> record.steps, record.values
        ([1, 2], {'loss': [2.0, 1.0], 'gap': [nan, 0.5]})
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: dict[str, list[float]] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step."""
        for name in values:
            if name not in self.values:
                self.values[name] = [math.nan] * len(self.steps)
        self.steps.append(step)
        for name, series in self.values.items():
            series.append(float(values.get(name, math.nan)))

    def state_dict(self) -> dict[str, Any]:
        """Steps and values, as tensors."""
        return {
            "steps": torch.tensor(self.steps, dtype=torch.int64),
            "values": {k: torch.tensor(v, dtype=torch.float64) for k, v in self.values.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.steps = state_dict["steps"].tolist()
        self.values = {name: values.tolist() for name, values in state_dict["values"].items()}
