"""Noise-contrastive estimation: learn a density by telling data from noise of a known density.

The energy's normaliser is one more parameter: log p(x) = -E(x) - c. Logistic regression between
data and noise, with log p(x) - log p_noise(x) as its logit, has its optimum where p is the data's
density, normalised: c becomes log Z.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebm_core import (
    BaseLoss,
    ConfigurationError,
    EnergyLike,
    Evaluator,
    ExactDistribution,
    NumericalError,
    state_options,
)
from ebm_core.energy import check_energies
from ebm_core.validation import check_integer, check_number
from ebm_losses._checks import check_batch
from ebm_losses._terms import EnergyTerms


class NoiseContrastiveEstimation(BaseLoss):
    """Noise-contrastive estimation with a learned normaliser.

    From Gutmann & Hyvärinen 2012, JMLR 13:307.

    With ν noise draws for each state of the batch and G(x) = log p(x) - log p_noise(x) - log ν, the
    loss is

        mean_data softplus(-G(x)) + ν mean_noise softplus(G(x)).

    Fresh noise is drawn at each call; data and noise are one batch of the energy. The estimate is
    best where noise resembles the data, and needs noise wherever there are data. Train the
    parameters of this module, not the energy's alone, or c is not learned:
    ``Adam(loss_fn.parameters())``.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``.
        noise: A distribution with ``exact_sample(n)``, ``log_normalizer()`` and energies
            ``noise(x)`` (an `ExactDistribution` without its moments), of the data's dtype and
            device. A module is registered, hence moved and saved, but never trained.
        noise_ratio: ν, noise draws for each state of the data, an integer of at least 1.
        log_normalizer: The value that c starts from.
        evaluator: As in `ebm_core.BaseLoss`.

    Attributes:
        log_normalizer: c, a scalar parameter; log Z of the energy at the optimum.
        metrics: ``data_energy``, ``noise_energy`` (means), ``accuracy`` (of telling data from
            noise, both classes weighted equally; 0.5 where noise has become indistinguishable),
            ``log_normalizer``.

    Raises:
        ConfigurationError: If ``noise`` lacks one of the three, or a number is out of range.

    Example:
        >>> class Uniform:
        ...     def __call__(self, x):
        ...         return torch.zeros(len(x))
        ...     def exact_sample(self, n, seed=None):
        ...         return torch.rand(n, 2)
        ...     def log_normalizer(self):
        ...         return torch.tensor(0.0)
        >>> loss_fn = NoiseContrastiveEstimation(lambda x: 0.0 * x.sum(1), Uniform())
        >>> loss_fn(torch.rand(8, 2))  # 2 log 2, as data and noise are alike
        tensor(1.3863, grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        energy: EnergyLike,
        noise: ExactDistribution,
        noise_ratio: int = 1,
        *,
        log_normalizer: float = 0.0,
        evaluator: Evaluator | None = None,
    ) -> None:
        super().__init__(energy, evaluator)
        self.noise = _check_noise(noise)
        self.noise_ratio = check_integer("noise_ratio", noise_ratio, at_least=1)
        start = check_number("log_normalizer", log_normalizer)
        device, dtype = state_options(self.energy)
        self.log_normalizer = nn.Parameter(torch.tensor(start, device=device, dtype=dtype))

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) = -E(x) - c in nats: ``(batch, *event) -> (batch,)``."""
        return -self.evaluate_terms(EnergyTerms(self.energy), x)[0] - self.log_normalizer

    def compute(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss on data ``(batch, *event)``; see the class.

        Raises:
            ShapeError: If ``x`` is no batch of the energy's states.
            ConfigurationError: If the noise's draws are not of the data's shape, dtype and device.
            NumericalError: If the noise gives some of the data no density.
        """
        n_data = check_batch(self.energy, x)
        with torch.no_grad():
            draws = self.noise.exact_sample(self.noise_ratio * n_data)
            _check_draws(draws, x, self.noise_ratio * n_data)
        states = torch.cat([x, draws])  # one batch, which takes less time than two
        with torch.no_grad():
            log_noise = self._log_noise_density(states)
            _check_coverage(log_noise[:n_data])
        log_ratio = math.log(self.noise_ratio)
        log_density = self.log_density(states)
        logit = log_density - log_noise - log_ratio
        of_data, of_draws = logit[:n_data], logit[n_data:]
        loss = softplus(-of_data).mean() + self.noise_ratio * softplus(of_draws).mean()
        with torch.no_grad():
            found = (of_data > -log_ratio).to(logit.dtype).mean()
            rejected = (of_draws <= -log_ratio).to(logit.dtype).mean()
            energy = -log_density - self.log_normalizer
            metrics = {
                "data_energy": energy[:n_data].mean(),
                "noise_energy": energy[n_data:].mean(),
                "accuracy": (found + rejected) / 2,
                "log_normalizer": self.log_normalizer,
            }
        return loss, metrics

    def extra_repr(self) -> str:
        """Noise ratio, for ``repr``."""
        return f"noise_ratio={self.noise_ratio}"

    def _log_noise_density(self, x: Tensor) -> Tensor:
        return -check_energies(self.noise(x), x.shape[:1]) - self.noise.log_normalizer()


def _check_noise(noise: Any) -> ExactDistribution:
    missing = [
        name
        for name in ("exact_sample", "log_normalizer", "__call__")
        if not callable(getattr(noise, name, None))
    ]
    if isinstance(noise, type) or missing:
        raise ConfigurationError(
            f"noise is {noise!r}" + (f", without {', '.join(missing)}" if missing else ""),
            "an instance with exact_sample(n), log_normalizer() and energies noise(x)",
            "pass a normalised energy that can be sampled exactly, a Gaussian for example",
        )
    checked: ExactDistribution = noise
    return checked


def _check_draws(draws: Tensor, x: Tensor, n_draws: int) -> None:
    wanted = (n_draws, *x.shape[1:])
    if draws.shape != wanted or draws.dtype != x.dtype or draws.device != x.device:
        raise ConfigurationError(
            f"the noise draws are {tuple(draws.shape)}, {draws.dtype}, {draws.device}",
            f"{wanted}, {x.dtype}, {x.device}, as the data say",
            "make the noise for this event shape; bring data and objective together with .to()",
        )


def _check_coverage(log_noise_of_data: Tensor) -> None:
    covered = torch.isfinite(log_noise_of_data)
    if not covered.all():
        raise NumericalError(
            f"the noise gives {int((~covered).sum())} of {len(covered)} data no finite log density",
            "noise with a density wherever there are data",
            "use a noise distribution with a wider support, and check that the data are finite",
        )
