"""Tensors from whatever callers hold: tensors, NumPy arrays, nested lists of numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_core import ConfigurationError

TensorLike = Tensor | NDArray[Any]
"""What functions of draws and states take; nested lists of numbers work too."""


def to_tensor(
    name: str, value: TensorLike | Sequence[Any], dtype: torch.dtype | None = None
) -> Tensor:
    """Real numbers as a tensor, sharing their memory where that is possible.

    Args:
        name: The argument's name, for the message.
        value: A tensor, array or nested list of numbers.
        dtype: The wanted dtype; None for the value's own.

    Raises:
        ConfigurationError: If it is no tensor of real numbers.
    """
    try:
        if isinstance(value, np.ndarray):  # torch warns of read-only memory, refuses some strides
            value = np.require(value, requirements=["C_CONTIGUOUS", "WRITEABLE"])
        tensor = torch.as_tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"{name} is of type {type(value).__name__}: {str(value)[:80]}",
            "a tensor, array or nested list of numbers",
            f"pass {name} as a tensor",
        ) from error
    if tensor.is_complex():
        raise ConfigurationError(f"{name} is complex", "real numbers", f"pass {name}.real")
    return tensor
