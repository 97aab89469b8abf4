"""`DataJitter`: noise on the data of each call.

A density with noise added has no edges sharper than the noise, and no infinite slopes at
duplicated or quantised data: energies stay smooth and chains move. What is learned is the density
of the noisy data.
"""

import torch
from torch import Tensor, nn

from ebm_core.validation import check_positive
from ebm_losses._checks import check_floating


class DataJitter(nn.Module):
    """x + scale·ξ with ξ ~ N(0, I), drawn afresh at each call by torch's default generator.

    Args:
        scale: Standard deviation of the noise in units of the data, positive.

    Raises:
        ConfigurationError: If ``scale`` is not a positive number.

    Example:
        >>> DataJitter(0.03)(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = check_positive("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Noisy data of the shape of ``x``, ``(batch, *event)``; ``x`` stays as it is.

        Raises:
            ConfigurationError: If the data are not floating.
        """
        check_floating(x, type(self).__name__)
        return x + self.scale * torch.randn_like(x)

    def extra_repr(self) -> str:
        """The scale, for ``repr``."""
        return f"scale={self.scale}"
