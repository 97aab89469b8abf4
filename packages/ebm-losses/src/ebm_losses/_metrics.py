"""Numbers that objectives report beside their value."""

import torch
from torch import Tensor


def root_mean_square(values: Tensor) -> Tensor:
    """Of all elements, a scalar without a graph."""
    rms: Tensor = torch.linalg.vector_norm(values.detach()) / values.numel() ** 0.5
    return rms
