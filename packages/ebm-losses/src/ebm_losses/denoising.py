"""Denoising score matching: the energy's score is fitted to the known score of noisy data.

With x̃ = x + σ ξ, ξ ~ N(0, I), the score of the noisy data's density q_σ(x̃) is the conditional
mean of -(x̃ - x)/σ² given x̃. Regressing the energy's score on it needs no sampler, no normaliser
and second derivatives only through autograd.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ebm_core import (
    BaseLoss,
    ConfigurationError,
    EnergyFunction,
    EnergyLike,
    Evaluator,
    as_energy,
    require_continuous,
)
from ebm_core.energy import CallableEnergy
from ebm_core.validation import check_positive
from ebm_losses._checks import check_batch, check_floating
from ebm_losses._terms import SlopeTerms


class DenoisingScoreMatching(BaseLoss):
    """Denoising score matching at one noise level or several.

    At one level σ (Vincent 2011, Neural Computation 23:1661) the loss is

        ½ σ² mean_batch Σ_event (s(x̃) + (x̃ - x)/σ²)² = ½ mean_batch Σ_event (σ s(x̃) + ξ)²,   s =
        -∇E,

    a sum over the elements of the event and a mean over the batch. It is weighted by σ² (Song &
    Ermon 2019, arXiv:1907.05600), so that its size, about half the number of elements of an
    untrained energy's event, does not depend on σ; divide by σ² for Vincent's form. Events of any
    shape; the noise is drawn by torch's default generator, afresh at each call.

    The optimum is the density of the *noisy* data, q_σ: the data's density convolved with
    N(0, σ² I).

    At several levels each state of the batch draws one of them, all equally likely, and the loss is
    the same mean. What the energy learns then is one of three things:

    - By default, one energy fits all levels at once. Its optimum is the density of the mixture
      Σ_σ σ² q_σ(x): the weights σ² of the loss become those of the mixture.
    - With ``conditional=True`` the energy takes the level as its second argument, ``energy(x,
      sigma)`` with ``sigma`` of shape ``(batch,)``, and learns q_σ for each (Song & Ermon 2019). To
      let one network serve all levels, scale it: ``lambda x, sigma: energy(x) / sigma`` is the
      form of Song & Ermon 2020, arXiv:2006.09011, technique 3.
    - With ``reference_scale`` σ0, E σ0²/σ² stands for level σ: one energy, tempered by (σ/σ0)².
      This is multiscale denoising score matching (Li, Chen & Sommer 2019, arXiv:1910.07762), whose
      residual is x - x̃ + σ0² ∇E(x̃), weighted by 1/σ². Levels are told apart by their distance from
      the data, which needs high dimensions; samples come from annealing the temperature (σ/σ0)².

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``, on a
            continuous support and twice differentiable (a piecewise linear network such as one of
            ReLUs has no second derivatives in x, but is accepted).
        noise_scale: σ, the standard deviation of the noise in units of the data, positive; or
            several, as a sequence or a tensor of one axis.
        reference_scale: σ0 of multiscale denoising score matching, positive; None for one energy at
            its own temperature.
        conditional: Call the energy with the level of each state as its second argument.
        evaluator: As in `ebm_core.BaseLoss`; a conditional energy is always torch's.

    Attributes:
        noise_scale: σ as a float, or several as a tuple of floats.
        metrics: ``noisy_energy`` (mean energy of the noisy data), ``score_rms`` (root mean square
            of an element of ∇E).

    Raises:
        ConfigurationError: If ``noise_scale`` or ``reference_scale`` is not a positive number, or
            the energy is to be both tempered and conditional.
        SupportError: If the energy's support is discrete.

    Example:
        >>> loss_fn = DenoisingScoreMatching(lambda x: 0.5 * x.square().sum(1), noise_scale=0.1)
        >>> loss_fn(torch.randn(256, 2)).shape
        torch.Size([])

        Three levels, an energy for each:

        >>> def energy(x, sigma):
        ...     return 0.5 * x.square().sum(1) / (1 + sigma**2)
        >>> loss_fn = DenoisingScoreMatching(energy, (0.1, 0.3, 1.0), conditional=True)
        >>> loss_fn(torch.randn(256, 2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        energy: EnergyLike,
        noise_scale: float | Iterable[float] | Tensor = 0.1,
        *,
        reference_scale: float | None = None,
        conditional: bool = False,
        evaluator: Evaluator | None = None,
    ) -> None:
        super().__init__(energy, evaluator)
        require_continuous(self.energy.support, type(self).__name__)
        self.noise_scale = _check_levels(noise_scale)
        self.reference_scale = (
            None if reference_scale is None else check_positive("reference_scale", reference_scale)
        )
        if conditional and reference_scale is not None:
            raise ConfigurationError(
                f"conditional=True was given with reference_scale={reference_scale}",
                "one way in which the energy stands for a level",
                "leave out reference_scale, or let the conditional energy do the scaling",
            )
        self.conditional = conditional

    def compute(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss on data ``(batch, *event)``; see the class.

        Raises:
            ShapeError: If ``x`` is no batch of the energy's states.
            ConfigurationError: If the data are not floating.
        """
        check_batch(self.energy, x)
        check_floating(x, type(self).__name__)
        noise = torch.randn_like(x)
        energy: EnergyFunction = self.energy
        scale: float | tuple[float, ...] | Tensor = self.noise_scale
        if self.conditional or isinstance(scale, tuple):
            with torch.inference_mode(False):  # a conditional energy is differentiated with it
                sigma = self._draw_levels(x)
            energy, scale = self._at(sigma), sigma.reshape(-1, *[1] * (x.ndim - 1))
        factor = scale if self.reference_scale is None else self.reference_scale**2 / scale
        if self.evaluator is not None and not isinstance(factor, Tensor):
            shape = (len(x), *[1] * (x.ndim - 1))
            factor = x.new_full(shape, factor)  # no part of a kernel: it may change
        drawn = (noise, factor) if isinstance(factor, Tensor) else (noise,)
        slopes = SlopeTerms(energy, None if isinstance(factor, Tensor) else factor, 0.5)
        noisy = x + scale * noise
        if self.conditional:  # an energy of this call, not worth an evaluator's preparations
            terms, energies, squares = slopes(noisy, *drawn)
        else:
            terms, energies, squares = self.evaluate_terms(slopes, noisy, *drawn)
        return terms.mean(), {
            "noisy_energy": energies.mean(),
            "score_rms": squares.mean().sqrt(),
        }

    def extra_repr(self) -> str:
        """Noise scales and what the energy stands for, for ``repr``."""
        parts = [f"noise_scale={self.noise_scale}"]
        if self.reference_scale is not None:
            parts.append(f"reference_scale={self.reference_scale}")
        if self.conditional:
            parts.append("conditional=True")
        return ", ".join(parts)

    def _draw_levels(self, x: Tensor) -> Tensor:
        """σ of each state, ``(batch,)``."""
        if isinstance(self.noise_scale, float):
            return x.new_full((len(x),), self.noise_scale)
        chosen = torch.randint(len(self.noise_scale), (len(x),), device=x.device)
        return x.new_tensor(self.noise_scale)[chosen]

    def _at(self, sigma: Tensor) -> EnergyFunction:
        """The energy of states at levels ``(batch,)``."""
        if not self.conditional:
            return self.energy
        # A wrapped callable is called itself: the wrapper passes states alone.
        energy = self.energy
        call: Callable[..., Tensor] = energy
        if isinstance(energy, CallableEnergy):
            call = energy.function
        return as_energy(lambda x: call(x, sigma))


def _check_levels(noise_scale: float | Iterable[float] | Tensor) -> float | tuple[float, ...]:
    scalar = isinstance(noise_scale, Tensor) and noise_scale.ndim == 0
    if scalar or not isinstance(noise_scale, Iterable):
        return check_positive("noise_scale", noise_scale)
    levels = tuple(check_positive("noise_scale", level) for level in noise_scale)
    if not levels:
        raise ConfigurationError(
            "noise_scale is empty", "a positive number, or several", "pass at least one level"
        )
    return levels
