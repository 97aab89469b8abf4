"""Denoising score matching: the energy's score is fitted to the known score of noisy data.

With x̃ = x + σ ξ, ξ ~ N(0, I), the score of the noisy data's density q_σ(x̃) is the conditional
mean of -(x̃ - x)/σ² given x̃. Regressing the energy's score on it needs no sampler, no normaliser
and second derivatives only through autograd.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ebm_core import BaseLoss, EnergyLike, require_continuous
from ebm_core.validation import check_positive
from ebm_losses._checks import check_batch, check_floating


class DenoisingScoreMatching(BaseLoss):
    """Denoising score matching at one noise level (Vincent 2011, Neural Computation 23:1661).

    The loss is

        ½ σ² mean_batch Σ_event (s(x̃) + (x̃ - x)/σ²)² = ½ mean_batch Σ_event (σ s(x̃) + ξ)²,   s =
        -∇E,

    a sum over the elements of the event and a mean over the batch. It is weighted by σ² (Song &
    Ermon 2019, arXiv:1907.05600), so that its size, about half the number of elements of an
    untrained energy's event, does not depend on σ; divide by σ² for Vincent's form. Events of any
    shape; the noise is drawn by torch's default generator, afresh at each call.

    The optimum is the density of the *noisy* data, the data's density convolved with N(0, σ² I).

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``, on a
            continuous support and twice differentiable (a piecewise linear network such as one of
            ReLUs has no second derivatives in x, but is accepted).
        noise_scale: σ, the standard deviation of the noise in units of the data, positive.

    Attributes:
        metrics: ``noisy_energy`` (mean energy of the noisy data), ``score_rms`` (root mean square
            of an element of the score).

    Raises:
        ConfigurationError: If ``noise_scale`` is not a positive number.
        SupportError: If the energy's support is discrete.

    Example:
        >>> loss_fn = DenoisingScoreMatching(lambda x: 0.5 * x.square().sum(1), noise_scale=0.1)
        >>> loss_fn(torch.randn(256, 2)).shape
        torch.Size([])
    """

    def __init__(self, energy: EnergyLike, noise_scale: float = 0.1) -> None:
        super().__init__(energy)
        require_continuous(self.energy.support, type(self).__name__)
        self.noise_scale = check_positive("noise_scale", noise_scale)

    def compute(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss on data ``(batch, *event)``; see the class.

        Raises:
            ShapeError: If ``x`` is no batch of the energy's states.
            ConfigurationError: If the data are not floating.
        """
        n_data = check_batch(self.energy, x)
        check_floating(x, type(self).__name__)
        noise = torch.randn_like(x)
        energies, gradient = self.energy.energy_and_gradient(
            x + self.noise_scale * noise, create_graph=True
        )
        residual = noise - self.noise_scale * gradient
        loss = residual.square().sum() / (2 * n_data)
        metrics = {"noisy_energy": energies.mean(), "score_rms": gradient.square().mean().sqrt()}
        return loss, metrics

    def extra_repr(self) -> str:
        """Noise scale, for ``repr``."""
        return f"noise_scale={self.noise_scale}"
