"""An exponential moving average of parameters, beside the ones that are trained."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ebm_core import ConfigurationError
from ebm_core.validation import check_integer, check_number

Module = TypeVar("Module", bound=nn.Module)


class ParameterAverage:
    """Exponential moving average (EMA) of parameters: a ← d_t a + (1 - d_t) θ after each step.

    The average begins as a copy of the parameters. Its decay grows to the value asked for, d_t =
    min(decay, (1 + t) / (10 + t)) at the t-th update (t = 0, 1, …), so that where training began is
    soon forgotten. Buffers are not averaged. Unlike ``torch.optim.swa_utils.AveragedModel`` it
    copies no module, and so no sampler or buffer of chains.

    Args:
        parameters: What is averaged.
        decay: d, at least 0 and less than 1: 0.999 averages over some thousand steps.

    Attributes:
        values: The averages, in the order of the parameters.
        n_updates: How often `update` was called.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> average = ParameterAverage([weight], decay=0.9)
        >>> with torch.no_grad():
        ...     weight += 1.0
        >>> average.update()
        >>> average.values[0]
        tensor([0.9000, 0.9000])
        >>> with average.swapped():
        ...     print(weight.data)
        tensor([0.9000, 0.9000])
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.999) -> None:
        self.parameters = list(parameters)
        self.decay = check_number("ema_decay", decay, at_least=0.0, below=1.0)
        self.values: list[Tensor] = [p.detach().clone() for p in self.parameters]
        self.n_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        for average, parameter in zip(self.values, self.parameters, strict=True):
            average.lerp_(parameter.to(average.device), 1 - decay)
        self.n_updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Parameters hold their averages within, and what they held before afterwards."""
        kept = [p.detach().clone() for p in self.parameters]
        self.copy_to_parameters()
        try:
            yield
        finally:
            self._assign(kept)

    def copy_to_parameters(self) -> None:
        """Overwrite the parameters with their averages, for good."""
        self._assign(self.values)

    def copy_of(self, module: Module) -> Module:
        """A deep copy of a module whose averaged parameters hold their averages."""
        with self.swapped():
            return copy.deepcopy(module)

    def state_dict(self) -> dict[str, Any]:
        """Averages and number of updates."""
        return {"values": self.values, "n_updates": self.n_updates}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ConfigurationError: If it is of other parameters.
        """
        saved = state_dict["values"]
        if [v.shape for v in saved] != [v.shape for v in self.values]:
            raise ConfigurationError(
                "the saved averages have the shapes "
                f"{', '.join(str(tuple(v.shape)) for v in saved)}",
                f"those of the {len(self.values)} trained parameters",
                "resume with the model that was saved",
            )
        for value, other in zip(self.values, saved, strict=True):
            value.copy_(other)
        self.n_updates = check_integer("n_updates", state_dict["n_updates"])

    @torch.no_grad()
    def _assign(self, values: Iterable[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
