"""Energies of states and labels: `ConditionalEnergy`, and `ClassifierEnergy` on top of it.

A network gives one number for each of K classes. Read as energies E(x, y), they define the joint
density p(x, y) ∝ exp(-E(x, y)); read as logits f(x), with E(x, y) = -f(x)[y], they are a classifier
with p(y | x) = softmax f(x), which leaves the size of all logits free to be a density of states
(Grathwohl et al. 2020, "Your classifier is secretly an energy based model and you should treat it
like one", arXiv:1912.03263, equations 5 to 8).
"""

from typing import Any

import torch
from torch import Tensor, nn

from ebm_core import ConfigurationError, EnergyFunction, ShapeError
from ebm_core.validation import check_integer
from ebm_models.base import BaseModel
from ebm_models.saving import register
from ebm_models.wrapper import check_module


@register
class ConditionalEnergy(BaseModel):
    """E(x, y) = network(x)[y] + |x|² / (2 base_scale²) for labels y = 0, …, K - 1.

    ``energy(x, labels)`` is the joint energy; ``energy(x)`` that of the states alone, with the
    labels summed out: E(x) = -log Σ_y exp(-E(x, y)). Both belong to one density, so that data
    without labels can be used too. `given` fixes labels, for samplers and losses of one argument.

    Args:
        network: A network that takes ``(batch, *event)`` and gives ``(batch, n_classes)``, such as
            `ConvNetwork` with as many outputs.
        n_classes: K.
        event_shape: The shape of one state; None if the network takes any.
        base_scale: Standard deviation of the Gaussian base term; None for none. See `BaseModel`.

    Attributes:
        network: The network.
        n_classes: K.

    Raises:
        ConfigurationError: If ``network`` is no module, or a number is out of range.

    Example:
        >>> energy = ConditionalEnergy(nn.Linear(2, 3), n_classes=3, base_scale=2.0)
        >>> x, labels = torch.zeros(5, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> energy(x, labels).shape, energy(x).shape, energy.given(labels)(x).shape
        (torch.Size([5]), torch.Size([5]), torch.Size([5]))
    """

    def __init__(
        self,
        network: nn.Module,
        n_classes: int,
        event_shape: int | tuple[int, ...] | None = None,
        base_scale: float | None = None,
    ) -> None:
        super().__init__(event_shape, base_scale)
        self.n_classes = check_integer("n_classes", n_classes, at_least=1)
        self.network = check_module(network)

    def class_energies(self, x: Tensor) -> Tensor:
        """The network's part of E(x, y) for all labels: ``(batch, *event) -> (batch, n_classes)``.

        Raises:
            ShapeError: If the network gives something else.
        """
        return self._outputs(x)

    def network_energy(self, x: Tensor) -> Tensor:
        """-log Σ_y exp(-E(x, y)) without the base term, ``(batch,)``."""
        return -torch.logsumexp(-self.class_energies(x), 1)

    def forward(self, x: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """E(x, labels), or E(x) without labels: ``(batch, *event) -> (batch,)``.

        Args:
            x: States, ``(batch, *event)``.
            labels: One a state, integers ``(batch,)``, or one for all; None to sum them out.

        Raises:
            ShapeError: If the shapes do not fit.
            ConfigurationError: If labels are no integers from 0 to ``n_classes`` - 1.
        """
        if labels is None:
            return super().forward(x)
        return self.joint_energy(x, self.check_labels(labels, self.batch_size(x)).to(x.device))

    def joint_energy(self, x: Tensor, labels: Tensor) -> Tensor:
        """E(x, labels) for labels that have been checked, int64 ``(batch,)``."""
        energies = self.class_energies(x).gather(1, labels[:, None]).squeeze(1)
        return self.with_base(energies, x)

    def given(self, labels: Tensor | int) -> "GivenLabels":
        """E(·, labels) as an energy of states alone, with this one's parameters.

        Args:
            labels: Of chains or data, in their order, ``(batch,)``; or one for all, for batches of
                any size.

        Raises:
            ConfigurationError: If labels are no integers from 0 to ``n_classes`` - 1.
        """
        return GivenLabels(self, labels)

    def check_labels(self, labels: Any, n: int | None = None) -> Tensor:
        """Labels as int64, ``(n,)``; scalar where ``n`` is None and one label was given.

        Raises:
            ShapeError: If there are not as many as states.
            ConfigurationError: If they are no integers from 0 to ``n_classes`` - 1.
        """
        wanted = f"integers from 0 to {self.n_classes - 1}"
        if not isinstance(labels, Tensor):
            check_integer("labels", labels)
            labels = torch.tensor(int(labels))
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ConfigurationError(
                f"labels have dtype {labels.dtype}", wanted, "convert them with labels.long()"
            )
        if labels.ndim > 1 or (n is not None and labels.ndim == 1 and len(labels) != n):
            raise ShapeError(
                f"labels have shape {tuple(labels.shape)}",
                "(batch,)" if n is None else f"({n},), one for each state",
                "pass one label a state, or one number for all",
            )
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.n_classes:
            raise ConfigurationError(
                f"labels are from {int(labels.min())} to {int(labels.max())}",
                wanted,
                "number the classes from 0, and pass their number as n_classes",
            )
        index: Tensor = labels.long()
        return index if n is None or index.ndim == 1 else index.expand(n)

    def _outputs(self, x: Tensor) -> Tensor:
        outputs: Any = self.network(x)
        if not isinstance(outputs, Tensor) or outputs.shape != (len(x), self.n_classes):
            given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ShapeError(
                f"the network gave {given} for states {tuple(x.shape)}",
                f"one number for each class, (batch, {self.n_classes})",
                "end the network in a layer with n_classes outputs",
            )
        return outputs


class GivenLabels(EnergyFunction):
    """E(·, labels) of a `ConditionalEnergy`; see `ConditionalEnergy.given`.

    Attributes:
        conditional: The energy of both, whose parameters these are.
        labels: ``(batch,)``, or a scalar; a buffer, part of ``state_dict``.
    """

    labels: Tensor

    def __init__(self, conditional: ConditionalEnergy, labels: Tensor | int) -> None:
        super().__init__()
        self.conditional = conditional
        self.event_shape = conditional.event_shape
        self.support = conditional.support
        device = next((p.device for p in conditional.parameters()), None)
        checked = conditional.check_labels(labels).to(device)
        self.register_buffer("labels", checked)

    def forward(self, x: Tensor) -> Tensor:
        """E(x, labels): ``(batch, *event) -> (batch,)``.

        Raises:
            ShapeError: If there are not as many states as labels.
        """
        n = self.batch_size(x)
        if self.labels.ndim == 1 and len(self.labels) != n:
            raise ShapeError(
                f"x has {n} states, and labels are given for {len(self.labels)}",
                "one label for each state",
                "call given with the labels of these states, or with one number for all",
            )
        # Labels were checked when they were given: no value is looked at here, as tracing wants it.
        return self.conditional.joint_energy(x, self.labels.expand(n))


@register
class ClassifierEnergy(ConditionalEnergy):
    """A classifier as an energy: E(x, y) = -logits(x)[y], E(x) = -logsumexp logits(x) (JEM).

    The Gaussian base term, if any, is part of both energies and not of p(y | x).

    Args:
        network: A network that takes ``(batch, *event)`` and gives logits ``(batch, n_classes)``.
        n_classes: K.
        event_shape: The shape of one state; None if the network takes any.
        base_scale: Standard deviation of the Gaussian base term; None for none. See `BaseModel`.

    Raises:
        ConfigurationError: As `ConditionalEnergy`.

    Example:
        >>> classifier = ClassifierEnergy(nn.Linear(2, 3), n_classes=3)
        >>> x, labels = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
        >>> nn.functional.cross_entropy(classifier.logits(x), labels).shape
        torch.Size([])
        >>> classifier.predict(x).shape, classifier.log_prob(x, labels).shape, classifier(x).shape
        (torch.Size([5]), torch.Size([5]), torch.Size([5]))
    """

    def logits(self, x: Tensor) -> Tensor:
        """The network's outputs: ``(batch, *event) -> (batch, n_classes)``.

        Raises:
            ShapeError: If ``x`` is no batch of states, or the network gives something else.
        """
        self.batch_size(x)
        return self._outputs(x)

    def class_energies(self, x: Tensor) -> Tensor:
        """Minus the logits, ``(batch, n_classes)``."""
        return self._outputs(x).neg()

    def log_prob(self, x: Tensor, labels: Tensor | int | None = None) -> Tensor:
        """Log p(y | x) in nats.

        Args:
            x: States, ``(batch, *event)``.
            labels: One a state, ``(batch,)``, or one for all; None for all classes.

        Returns:
            ``(batch,)``; ``(batch, n_classes)`` for all classes.

        Raises:
            ShapeError: If the shapes do not fit.
            ConfigurationError: If labels are no integers from 0 to ``n_classes`` - 1.
        """
        log_probs = self.logits(x).log_softmax(1)
        if labels is None:
            return log_probs
        index = self.check_labels(labels, len(x)).to(x.device)
        return log_probs.gather(1, index[:, None]).squeeze(1)

    def predict(self, x: Tensor) -> Tensor:
        """The most probable label of each state, int64 ``(batch,)``."""
        return self.logits(x).argmax(1)
