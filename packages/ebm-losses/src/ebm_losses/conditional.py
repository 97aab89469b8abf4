"""Persistent chains of class-conditional densities: each chain has the class of its slot."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ebm_core import ConfigurationError, EnergyFunction, Sampler, ShapeError
from ebm_losses._checks import check_batch
from ebm_losses.contrastive import Jitter, PersistentContrastiveDivergence
from ebm_losses.divergence import RunawayGuard
from ebm_losses.labelled_buffer import LabelledReplayBuffer, check_labels
from ebm_losses.regularization import Regularizer
from ebm_losses.replay_buffer import Initializer


class ConditionalContrastiveDivergence(PersistentContrastiveDivergence):
    """PCD for p(x | y) ∝ exp(-E(x, y)): one negative of the same class for each datum.

    ``loss_fn(x, labels)``; its gradient is that of the mean -log p(x | y). Chains live in a
    `LabelledReplayBuffer`, drawn for the labels of the batch.

    Args:
        energy: E(·, labels) as an energy of states alone, which uses its attribute ``labels``, one
            for each state of a batch; what ``given`` of a conditional energy of ebm-models gives,
            with any label. The attribute is set for the time of a call.
        sampler: As in `PersistentContrastiveDivergence`, made with this very object as its energy.
        n_classes: Number of classes; labels run from 0.
        k_steps: As in `PersistentContrastiveDivergence`.
        buffer_size: Number of chains, all classes together; of each class there must be as many as
            data of it in a batch.
        reinit_probability: As in `PersistentContrastiveDivergence`.
        leave_out_stuck: As in `PersistentContrastiveDivergence`; classes keep their shares.
        initializer: As in `PersistentContrastiveDivergence`.
        regularizers: As in `ContrastiveObjective`.
        jitter: As in `ContrastiveObjective`.
        guard: As in `ContrastiveObjective`.

    Attributes:
        buffer: The `LabelledReplayBuffer`.
        negatives: Negatives of the last call, in the order of its labels.
        metrics: As in `ContrastiveObjective`.

    Raises:
        ConfigurationError: If the energy has no ``labels``, the sampler another energy, or a number
            is out of range.

    Example:
        >>> import torch
        >>> from ebm_core.testing import ReferenceLangevin
        >>> class Shifted(EnergyFunction):
        ...     labels = torch.tensor(0)
        ...     def forward(self, x):
        ...         return 0.5 * (x - self.labels[..., None]).square().sum(1)
        >>> energy = Shifted()
        >>> sampler = ReferenceLangevin(energy, step_size=0.1)
        >>> loss_fn = ConditionalContrastiveDivergence(energy, sampler, n_classes=3)
        >>> labels = torch.tensor([0, 2, 2, 1])
        >>> loss_fn(torch.randn(4, 2), labels).shape, loss_fn.negatives.shape
        (torch.Size([]), torch.Size([4, 2]))
    """

    buffer: LabelledReplayBuffer

    def __init__(
        self,
        energy: EnergyFunction,
        sampler: Sampler,
        n_classes: int,
        k_steps: int = 10,
        buffer_size: int = 1000,
        reinit_probability: float = 0.0,
        *,
        leave_out_stuck: bool = False,
        initializer: Initializer | None = None,
        regularizers: Sequence[Regularizer] = (),
        jitter: Jitter | float | None = None,
        guard: RunawayGuard | bool = True,
    ) -> None:
        if not isinstance(energy, EnergyFunction) or not hasattr(energy, "labels"):
            raise ConfigurationError(
                f"the energy {type(energy).__name__} has no labels",
                "an EnergyFunction of states that uses its attribute `labels`",
                "pass conditional.given(0), and make the sampler with the same object",
            )
        super().__init__(
            energy,
            sampler,
            k_steps,
            buffer_size,
            reinit_probability,
            leave_out_stuck=leave_out_stuck,
            initializer=initializer,
            regularizers=regularizers,
            jitter=jitter,
            guard=guard,
        )
        if getattr(sampler, "energy", energy) is not energy:
            raise ConfigurationError(
                "the sampler has another energy than the one that is trained",
                "the same object, so that chains follow the labels of each call",
                "make given = conditional.given(0) once, and pass it to both",
            )
        self.buffer = LabelledReplayBuffer(
            buffer_size,
            n_classes,
            reinit_probability=reinit_probability,
            initializer=self.buffer.initializer,
        )
        self._labels: Tensor | None = None
        self._together = False  # there is one label for each state

    def compute(  # type: ignore[override]
        self, x: Tensor, labels: Tensor, negatives: Tensor | None = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean E(x, labels) minus mean E(negatives, labels), plus the regularisers.

        Args:
            x: Data, ``(batch, *event)``.
            labels: Their classes, ``(batch,)``, integers.
            negatives: Samples of the model for these labels, ``(batch, *event)``; None to draw
                them.

        Raises:
            ShapeError: If there is not one label a state, or one negative a label; and as in
                `ContrastiveObjective.compute`.
            ConfigurationError: If labels are no classes, or one is asked for more often than it has
                chains.
        """
        n_data = check_batch(self.energy, x)
        if isinstance(negatives, Tensor) and negatives.shape[:1] != (n_data,):
            raise ShapeError(
                f"{len(negatives) if negatives.ndim else 'no'} negatives came with {n_data} labels",
                "one negative of the class of each label",
                "pass as many negatives as data, in the order of their labels",
            )
        energy: Any = self.energy
        before = energy.labels
        labels = check_labels(labels, self.buffer.n_classes, n_data).to(x.device)
        with torch.inference_mode(False):  # the sampler differentiates an energy with them
            self._labels = labels.clone() if labels.is_inference() else labels
        energy.labels = self._labels
        try:
            return super().compute(x, negatives)
        finally:
            energy.labels = before

    def draw_chains(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Slots of the classes of this call, and a copy of their chains."""
        assert self._labels is not None, "compute has set them"
        return self.buffer.draw_for(self._labels)

    def mean_over_negatives(self, energies: Tensor) -> Tensor:
        """The mean energy of negatives, with ``leave_out_stuck`` of those that moved.

        Each class keeps its share of the batch, which data have, too: otherwise classes that stick
        more often would be raised or lowered as a whole. A class of which none moved counts in
        full.
        """
        if not self._has_drawn or self._moved is None:
            return energies.mean()
        labels = self._labels
        assert labels is not None, "compute has set them"
        members = one_hot(labels, self.buffer.n_classes).to(energies)
        none_moved = self._moved.to(energies) @ members == 0
        counted = (self._moved | none_moved[labels]).to(energies)
        weights = (members.sum(0) / (counted @ members))[labels]
        return (weights * counted * energies).mean()
