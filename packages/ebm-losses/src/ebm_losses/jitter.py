"""Noise on data: for data on a grid or a thin surface, which no smooth density can follow."""

from typing import Literal

import torch
from torch import Tensor, nn

from ebm_core.validation import check_choice, check_positive
from ebm_losses._checks import check_floating


class DataJitter(nn.Module):
    """Data with noise added, afresh at each call, by torch's default generator.

    An energy trained on it learns the density of data plus noise. It removes structure that is
    finer than the chains' own noise, on which they and the energy chase each other (Nijkamp et al.
    2020, arXiv:1903.12370); JEM (Grathwohl et al. 2020, arXiv:1912.03263) adds a standard deviation
    of 0.03 to images in [-1, 1]. Uniform noise over one step of a grid is dequantisation (Theis,
    van den Oord & Bethge 2016, arXiv:1511.01844).

    Args:
        scale: In units of the data, positive: the standard deviation of Gaussian noise, or the
            width of uniform noise.
        law: ``"gaussian"``, N(0, scale²), or ``"uniform"`` on [0, scale), which fills the cell
            above each value of a grid of that step.

    Raises:
        ConfigurationError: If ``scale`` is not a positive number, or ``law`` is neither word.

    Example:
        >>> jitter = DataJitter(0.03)
        >>> jitter(torch.zeros(1000, 2)).abs().max() < 0.3
        tensor(True)
    """

    def __init__(self, scale: float, law: Literal["gaussian", "uniform"] = "gaussian") -> None:
        super().__init__()
        self.scale = check_positive("scale", scale)
        self.law = check_choice("law", law, ("gaussian", "uniform"))

    def forward(self, x: Tensor) -> Tensor:
        """Data ``(batch, *event)`` of the same shape, dtype and device, with noise.

        Raises:
            ConfigurationError: If the data are not floating.
        """
        check_floating(x, type(self).__name__)
        noise = torch.randn_like(x) if self.law == "gaussian" else torch.rand_like(x)
        return x + self.scale * noise

    def extra_repr(self) -> str:
        """Scale and law, for ``repr``."""
        return f"scale={self.scale}, law={self.law!r}"
