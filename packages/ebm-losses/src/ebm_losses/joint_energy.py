"""JEM: a classifier that is an energy, trained as both.

The logits f(x) of a classifier define a joint density p(x, y) ∝ exp(f(x)[y]): its conditional
p(y | x) is the usual softmax, and its marginal has the energy E(x) = -log Σ_y exp f(x)[y]. The
joint likelihood is log p(y | x) + log p(x): cross-entropy plus a contrastive loss of E.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from ebm_core import ConfigurationError, EnergyLike, Sampler, ShapeError
from ebm_core.validation import check_number
from ebm_losses._checks import check_batch
from ebm_losses.contrastive import Jitter, PersistentContrastiveDivergence
from ebm_losses.divergence import RunawayGuard
from ebm_losses.labelled_buffer import check_labels
from ebm_losses.regularization import Regularizer
from ebm_losses.replay_buffer import Initializer


class JointEnergyLoss(PersistentContrastiveDivergence):
    """Cross-entropy plus ``weight`` times PCD on E(x) = -logsumexp f(x).

    From Grathwohl et al. 2020, arXiv:1912.03263, equation 8. ``loss_fn(x, y)`` needs labels,
    ``loss_fn(x, y, negatives)`` takes the caller's negatives. Both terms see the data with the same
    jitter.

    Args:
        energy: A classifier as an energy: ``energy.logits(x)`` gives f(x), ``(batch, n_classes)``,
            and ``energy(x)`` its -logsumexp, ``(batch,)``.
        sampler: As in `PersistentContrastiveDivergence`.
        k_steps: As in `PersistentContrastiveDivergence`; the paper takes 20.
        buffer_size: As in `PersistentContrastiveDivergence`; the paper takes 10,000.
        reinit_probability: As in `PersistentContrastiveDivergence`; the paper takes 0.05.
        weight: Of the contrastive term, at least 0; the likelihood has 1.
        n_negatives: As in `PersistentContrastiveDivergence`.
        leave_out_stuck: As in `PersistentContrastiveDivergence`.
        initializer: As in `PersistentContrastiveDivergence`.
        regularizers: As in `ContrastiveObjective`; part of the contrastive term.
        jitter: As in `ContrastiveObjective`; the paper adds noise of 0.03 to data in [-1, 1].
        guard: As in `ContrastiveObjective`.

    Attributes:
        buffer: As in `PersistentContrastiveDivergence`.
        negatives: As in `ContrastiveObjective`.
        metrics: As in `ContrastiveObjective`, and ``cross_entropy`` (nats) and ``accuracy``.

    Raises:
        ConfigurationError: If the energy has no ``logits``, or as in
            `PersistentContrastiveDivergence`.

    Example:
        >>> import torch
        >>> from ebm_core import EnergyFunction
        >>> from ebm_core.testing import ReferenceLangevin
        >>> class Classifier(EnergyFunction):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(2, 3)
        ...     def logits(self, x):
        ...         return self.layer(x) - x.square().sum(1, keepdim=True)
        ...     def forward(self, x):
        ...         return -self.logits(x).logsumexp(1)
        >>> energy = Classifier()
        >>> loss_fn = JointEnergyLoss(energy, ReferenceLangevin(energy, 0.01), buffer_size=100)
        >>> loss_fn(torch.randn(8, 2), torch.randint(3, (8,))).backward()
        >>> sorted(loss_fn.metrics)
        ['accuracy', 'cross_entropy', 'data_energy', 'energy_gap', 'negative_energy']
    """

    def __init__(
        self,
        energy: EnergyLike,
        sampler: Sampler,
        k_steps: int = 20,
        buffer_size: int = 1000,
        reinit_probability: float = 0.0,
        weight: float = 1.0,
        *,
        n_negatives: int | None = None,
        leave_out_stuck: bool = False,
        initializer: Initializer | None = None,
        regularizers: Sequence[Regularizer] = (),
        jitter: Jitter | float | None = None,
        guard: RunawayGuard | bool = True,
    ) -> None:
        if not callable(getattr(energy, "logits", None)):
            raise ConfigurationError(
                f"the energy {type(energy).__name__} has no logits",
                "an energy with logits(x) -> (batch, n_classes), and energy(x) = -logsumexp of it",
                "pass a classifier as an energy, or use PersistentContrastiveDivergence",
            )
        super().__init__(
            energy,
            sampler,
            k_steps,
            buffer_size,
            reinit_probability,
            n_negatives=n_negatives,
            leave_out_stuck=leave_out_stuck,
            initializer=initializer,
            regularizers=regularizers,
            jitter=jitter,
            guard=guard,
        )
        self.weight = check_number("weight", weight, at_least=0.0)

    def compute(  # type: ignore[override]
        self, x: Tensor, y: Tensor, negatives: Tensor | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy plus ``weight`` times the contrastive loss.

        Args:
            x: Data, ``(batch, *event)``.
            y: Their classes, ``(batch,)``, integers.
            negatives: Samples of the model, ``(n, *event)``; None to draw them.

        Raises:
            ShapeError: If there is not one label a state, or logits are no ``(batch, n_classes)``;
                and as in `ContrastiveObjective.compute`.
            ConfigurationError: If labels are no classes.
        """
        check_batch(self.energy, x)
        x = self._jittered(x)
        logits = self._logits(x)
        y = check_labels(y, logits.shape[1], len(x)).to(logits.device)
        classification = cross_entropy(logits, y)
        contrastive, metrics = self.contrast(x, negatives)
        return classification + self.weight * contrastive, {
            **metrics,
            "cross_entropy": classification,
            "accuracy": (logits.argmax(1) == y).to(logits.dtype).mean(),
        }

    def _logits(self, x: Tensor) -> Tensor:
        energy: Any = self.energy
        # A module that is no EnergyFunction has been wrapped in one.
        logits = (energy if hasattr(energy, "logits") else energy.function).logits(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ShapeError(
                f"logits of {len(x)} states are {given}",
                f"({len(x)}, n_classes)",
                "return one row of class scores for each state",
            )
        return logits
