"""`FourierFeatures`: sines and cosines of the input, for energies with fine detail."""

import torch
from torch import Tensor, nn

from ebm_core.validation import check_integer, check_positive
from ebm_models.saving import register


@register
class FourierFeatures(nn.Module):
    """x ↦ (x, sin Ωx, cos Ωx) with fixed random frequencies (Tancik et al. 2020, arXiv:2006.10739).

    An MLP learns low frequencies first ("spectral bias"); on these features it learns those near
    ``scale`` as soon. The rows of Ω are drawn from N(0, scale² I) by torch's default generator when
    the module is made; they are a buffer, saved and never trained. The input itself is kept, so
    that the features stay informative far from the data.

    Args:
        n_inputs: Length d of the input.
        n_frequencies: Number m of frequencies.
        scale: Standard deviation of an element of Ω, in radians for each unit of x: features vary
            over lengths of about 1/scale.

    Attributes:
        frequencies: Ω, ``(m, d)``.
        n_outputs: d + 2 m.

    Raises:
        ConfigurationError: If a number is out of range.

    Example:
        >>> FourierFeatures(2, n_frequencies=16, scale=3.0)(torch.zeros(5, 2)).shape
        torch.Size([5, 34])
    """

    frequencies: Tensor

    def __init__(self, n_inputs: int, n_frequencies: int, scale: float = 1.0) -> None:
        super().__init__()
        n_inputs = check_integer("n_inputs", n_inputs, at_least=1)
        n_frequencies = check_integer("n_frequencies", n_frequencies, at_least=1)
        scale = check_positive("frequency_scale", scale)
        self.register_buffer("frequencies", scale * torch.randn(n_frequencies, n_inputs))
        self.n_outputs = n_inputs + 2 * n_frequencies

    def forward(self, x: Tensor) -> Tensor:
        """The features: ``(batch, d) -> (batch, d + 2 m)``."""
        phases = x @ self.frequencies.T
        return torch.cat([x, phases.sin(), phases.cos()], dim=1)

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        m, d = self.frequencies.shape
        return f"{d}, n_frequencies={m}"
