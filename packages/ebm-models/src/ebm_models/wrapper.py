"""`ModuleEnergy`: any network with one output a state as an energy."""

from typing import Any

from torch import Tensor, nn

from ebm_core import ConfigurationError
from ebm_models.base import BaseModel
from ebm_models.saving import register


@register
class ModuleEnergy(BaseModel):
    """E(x) = module(x) + |x|² / (2 base_scale²).

    Args:
        module: A network that takes ``(batch, *event)`` and gives ``(batch,)`` or ``(batch, 1)``.
        event_shape: The shape of one state; None if the network takes any.
        base_scale: Standard deviation of the Gaussian base term; None for none. See `BaseModel`.

    Attributes:
        module: The network.

    Raises:
        ConfigurationError: If ``module`` is no instance of ``torch.nn.Module``, or a number is out
            of range.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
        >>> ModuleEnergy(network, event_shape=(1, 8, 8))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        module: nn.Module,
        event_shape: int | tuple[int, ...] | None = None,
        base_scale: float | None = None,
    ) -> None:
        super().__init__(event_shape, base_scale)
        self.module = check_module(module)

    def network_energy(self, x: Tensor) -> Tensor:
        """The network's output at ``x``."""
        energy: Tensor = self.module(x)
        return energy


def check_module(module: Any) -> nn.Module:
    """The module, if it is one.

    Raises:
        ConfigurationError: If not.
    """
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"module is {module!r}",
            "an instance of torch.nn.Module",
            "pass an instance, or wrap a function with ebm_core.as_energy",
        )
    return module
