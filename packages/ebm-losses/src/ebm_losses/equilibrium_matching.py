"""Equilibrium matching: an energy that falls from noise to data, and is level at the data.

Between a datum and noise the slope of the energy is prescribed: along the line that joins them, and
shrinking to nothing at the datum. Gradient descent on what is learned turns noise into data.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ebm_core import BaseLoss, EnergyLike, Evaluator, require_continuous
from ebm_core.validation import check_number, check_positive
from ebm_losses._checks import check_batch, check_floating
from ebm_losses._metrics import root_mean_square
from ebm_losses._terms import SlopeTerms


class EquilibriumMatching(BaseLoss):
    """Equilibrium matching with an explicit energy (Wang & Du 2025, arXiv:2510.02300).

    Each datum x is mixed with noise ε ~ N(0, I) at a random γ ~ U(0, 1), and the loss (EqM-E in the
    paper) is

        mean_batch Σ_event (∇E(x_γ) - c(γ) (ε - x))²,     x_γ = γ x + (1 - γ) ε,

    with the truncated decay c(γ) = λ for γ <= a, then falling linearly to c(1) = 0. The energy does
    not see γ. Noise and γ are drawn afresh at each call by torch's default generator.

    What is learned is a landscape to descend, *not* a density: exp(-E) is not the data's. Samples
    come from gradient descent x ← x - η ∇E(x) from N(0, I) (with momentum, if you like) until the
    gradient is small; η λ = 1/n takes n steps for the way. Bring data to about unit scale first, as
    noise has unit variance.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``, on a
            continuous support and twice differentiable.
        decay_start: a, in [0, 1]: 0 decays all the way, 1 not at all (flow matching with an energy
            that does not see the time).
        gradient_scale: λ, positive: how steep the way from noise to data is.
        evaluator: As in `ebm_core.BaseLoss`.

    Attributes:
        metrics: ``energy`` (mean over the mixed states), ``gradient_rms`` and ``target_rms`` (root
            mean squares of an element of ∇E and of what it is fitted to).

    Raises:
        ConfigurationError: If a number is out of range.
        SupportError: If the energy's support is discrete.

    Example:
        >>> loss_fn = EquilibriumMatching(lambda x: 0.5 * x.square().sum(1))
        >>> loss_fn(torch.randn(256, 2)).shape
        torch.Size([])
        >>> loss_fn.decay(torch.tensor([0.0, 0.5, 0.9, 1.0]))
        tensor([4.0000, 4.0000, 2.0000, 0.0000])
    """

    def __init__(
        self,
        energy: EnergyLike,
        decay_start: float = 0.8,
        gradient_scale: float = 4.0,
        *,
        evaluator: Evaluator | None = None,
    ) -> None:
        super().__init__(energy, evaluator)
        require_continuous(self.energy.support, type(self).__name__)
        self.decay_start = check_number("decay_start", decay_start, at_least=0, at_most=1)
        self.gradient_scale = check_positive("gradient_scale", gradient_scale)

    def decay(self, gamma: Tensor) -> Tensor:
        """c(γ), of the shape of γ, which lies in [0, 1]."""
        if self.decay_start == 1.0:
            return torch.full_like(gamma, self.gradient_scale)
        falling = (1 - gamma) / (1 - self.decay_start)
        return self.gradient_scale * falling.clamp(max=1.0)

    def compute(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss on data ``(batch, *event)``; see the class.

        Raises:
            ShapeError: If ``x`` is no batch of the energy's states.
            ConfigurationError: If the data are not floating.
        """
        n_data = check_batch(self.energy, x)
        check_floating(x, type(self).__name__)
        noise = torch.randn_like(x)
        gamma = torch.rand((n_data, *[1] * (x.ndim - 1)), device=x.device, dtype=x.dtype)
        target = self.decay(gamma) * (noise - x)
        terms, energies, squares = self.evaluate_terms(
            SlopeTerms(self.energy), torch.lerp(noise, x, gamma), target
        )
        return terms.mean(), {
            "energy": energies.mean(),
            "gradient_rms": squares.mean().sqrt(),
            "target_rms": root_mean_square(target),
        }

    def extra_repr(self) -> str:
        """The decay's numbers, for ``repr``."""
        return f"decay_start={self.decay_start}, gradient_scale={self.gradient_scale}"
