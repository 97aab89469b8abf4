"""Activations by name, shared by all networks."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ebm_core import ConfigurationError
from ebm_core.validation import check_choice

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def make_activation(activation: Any) -> Activation:
    """An elementwise function from its name, or the function or module that was given.

    Raises:
        ConfigurationError: If it is none of these.
    """
    if callable(activation) and not isinstance(activation, type):
        function: Activation = activation
        return function
    if isinstance(activation, str):
        return _ACTIVATIONS[check_choice("activation", activation, tuple(_ACTIVATIONS))]()
    raise ConfigurationError(
        f"activation is {activation!r}",
        "the name of one, a function of a tensor, or an instance of a module",
        "pass 'silu', torch.sin or torch.nn.SiLU(), for example",
    )
