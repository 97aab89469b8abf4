"""Energy discrepancy: data against their own noisy neighbours, by energies alone.

Data are perturbed by noise and recovered by as much noise again, M times each. An energy that is
right tells a datum from its recoveries as well as can be; no score, no sampler and no normaliser
are needed, only the energy's values.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ebm_core import BaseLoss, EnergyLike, Evaluator, require_continuous
from ebm_core.validation import check_integer, check_number, check_positive
from ebm_losses._checks import check_batch, check_floating
from ebm_losses._terms import EnergyTerms


class EnergyDiscrepancy(BaseLoss):
    """Energy discrepancy with Gaussian perturbations (Schröder et al. 2023, arXiv:2307.06431).

    The loss is the paper's w-stabilised estimate L_{t,M,w},

        mean_batch log(w/M + 1/M Σ_j exp(E(x) - E(x + √t ξ + √t ξ'_j))),    j = 1…M,

    with ξ, ξ'_j ~ N(0, I): each datum is perturbed once, and recovered M times from there. Noise is
    drawn afresh at each call by torch's default generator.

    At w = 1 the loss is, up to the constant log M, the cross-entropy of telling x among its M
    recoveries: seen from the perturbed point all M + 1 are equally far by law, so that the
    posterior of "this is the datum" is exp(-E) normalised over them, and the optimum is the data's
    density for every M. Other w lead there as M grows; the paper finds w = 0 unstable.

    √(2t), the distance of a recovery in units of the data, should be comparable with the width of
    what is to be learned: a small t makes a local objective like score matching, blind to the
    relative weight of distant modes; a large one makes recoveries easy to tell and noisy, the more
    so in high dimensions.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``, on a
            continuous support; finite wherever noise may carry the data.
        t: Time of the perturbation, its variance in units of the data squared, positive.
        n_negatives: M, recoveries of each datum, at least 1.
        w: Stabilisation, at least 0.
        evaluator: As in `ebm_core.BaseLoss`.

    Attributes:
        metrics: ``data_energy``, ``negative_energy`` (means over data and over recoveries),
            ``accuracy`` (how often the datum has less energy than all its recoveries).

    Raises:
        ConfigurationError: If a number is out of range.
        SupportError: If the energy's support is discrete.

    Example:
        A flat energy cannot tell the datum from M recoveries; log(w/M + 1) is left:

        >>> loss_fn = EnergyDiscrepancy(lambda x: 0.0 * x.sum(1), n_negatives=4)
        >>> abs(loss_fn(torch.randn(8, 2)).item() - math.log(1 + 1 / 4)) < 1e-6
        True
    """

    def __init__(
        self,
        energy: EnergyLike,
        t: float = 0.25,
        n_negatives: int = 16,
        w: float = 1.0,
        *,
        evaluator: Evaluator | None = None,
    ) -> None:
        super().__init__(energy, evaluator)
        require_continuous(self.energy.support, type(self).__name__)
        self.t = check_positive("t", t)
        self.n_negatives = check_integer("n_negatives", n_negatives, at_least=1)
        self.w = check_number("w", w, at_least=0)

    def compute(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss on data ``(batch, *event)``; see the class.

        Raises:
            ShapeError: If ``x`` is no batch of the energy's states.
            ConfigurationError: If the data are not floating.
        """
        n_data = check_batch(self.energy, x)
        check_floating(x, type(self).__name__)
        x, scale = x.detach(), math.sqrt(self.t)
        perturbed = x + scale * torch.randn_like(x)
        shape = (n_data, self.n_negatives, *x.shape[1:])
        noise = torch.randn(shape, device=x.device, dtype=x.dtype)
        recovered = (perturbed[:, None] + scale * noise).flatten(0, 1)
        terms = EnergyTerms(self.energy)
        data_energy, negative_energy = (
            self.evaluate_terms(terms, states)[0] for states in (x, recovered)
        )
        differences = data_energy[:, None] - negative_energy.reshape(n_data, -1)
        # log w among the differences: log(w + Σ exp) without overflow; w = 0 adds exp(-∞).
        log_w = differences.new_full((n_data, 1), math.log(self.w) if self.w else -math.inf)
        log_sums = torch.cat([log_w, differences], dim=1).logsumexp(1)
        loss = log_sums.mean() - math.log(self.n_negatives)
        return loss, {
            "data_energy": data_energy.mean(),
            "negative_energy": negative_energy.mean(),
            "accuracy": (differences < 0).all(1).to(x.dtype).mean(),
        }

    def extra_repr(self) -> str:
        """Time, recoveries and stabilisation, for ``repr``."""
        return f"t={self.t}, n_negatives={self.n_negatives}, w={self.w}"
