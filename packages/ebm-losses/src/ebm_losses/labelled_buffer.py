"""`LabelledReplayBuffer`: persistent chains of a class-conditional density, each of one class."""

from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, ShapeError
from ebm_core.validation import check_integer
from ebm_losses.replay_buffer import Initializer, ReplayBuffer


class LabelledReplayBuffer(ReplayBuffer):
    """A `ReplayBuffer` whose slots carry labels, drawn for given labels.

    Slot i holds a chain of the class i mod ``n_classes`` for good, so that classes have equally
    many slots, or nearly so. ``labels`` is part of ``state_dict``.

    Args:
        size: Number of slots, at least ``n_classes``.
        n_classes: Number of classes, at least 1.
        reinit_probability: As in `ReplayBuffer`.
        initializer: As in `ReplayBuffer`.

    Attributes:
        states: As in `ReplayBuffer`.
        labels: The class of each slot, from 0 to ``n_classes - 1``, ``(size,)``, int64.

    Example:
        >>> buffer = LabelledReplayBuffer(100, n_classes=10)
        >>> buffer.prepare((2,), device=torch.device("cpu"), dtype=torch.float32)
        >>> slots, chains = buffer.draw_for(torch.tensor([3, 3, 7]))
        >>> buffer.labels[slots], chains.shape, len(slots.unique())
        (tensor([3, 3, 7]), torch.Size([3, 2]), 3)
    """

    labels: Tensor

    def __init__(
        self,
        size: int,
        n_classes: int,
        *,
        reinit_probability: float = 0.0,
        initializer: Initializer = torch.randn,
    ) -> None:
        super().__init__(size, reinit_probability=reinit_probability, initializer=initializer)
        self.n_classes = check_integer("n_classes", n_classes, at_least=1)
        if self.n_classes > self.size:
            raise ConfigurationError(
                f"a buffer of {self.size} slots for {self.n_classes} classes",
                "a slot for each class",
                "use a larger buffer_size",
            )
        self.register_buffer("labels", torch.arange(self.size) % self.n_classes)

    def draw_for(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a slot of each given class without replacement, by torch's default generator.

        Args:
            labels: Classes, ``(n,)``, integers; at most as many of a class as it has slots.

        Returns:
            Slots ``(n,)``, with ``self.labels[slots]`` equal to ``labels``, and a copy of their
            chains ``(n, *event)``; see `ReplayBuffer.draw`.

        Raises:
            ShapeError: If ``labels`` are no vector.
            ConfigurationError: If they are no integers from 0 to ``n_classes - 1``, if a class is
                asked for more often than it has slots, or the buffer has not been made.
        """
        labels = check_labels(labels, self.n_classes)
        states = self._made()
        labels = labels.to(states.device)
        with torch.inference_mode(False):
            self.labels = self.labels.to(states.device)
        wanted = torch.bincount(labels, minlength=self.n_classes)
        present = torch.bincount(self.labels, minlength=self.n_classes)
        if (wanted > present).any():
            label = int((wanted - present).argmax())
            raise ConfigurationError(
                f"{int(wanted[label])} chains of the class {label}, which has "
                f"{int(present[label])} slots",
                "at most as many as there are slots of a class",
                "use a larger buffer_size",
            )
        # All slots in random order, sorted by class; each request takes the next of its class.
        shuffled = torch.randperm(self.size, device=states.device)
        by_class = shuffled[self.labels[shuffled].argsort(stable=True)]
        order = labels.argsort(stable=True)
        rank = torch.arange(len(labels), device=states.device)
        rank = rank - (wanted.cumsum(0) - wanted)[labels[order]]
        slots = torch.empty_like(labels)
        slots[order] = by_class[(present.cumsum(0) - present)[labels[order]] + rank]
        return self._taken(slots, states[slots])

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = state_dict.get(f"{prefix}labels")
        if saved is not None and len(saved) and int(saved.max()) + 1 != self.n_classes:
            error_msgs.append(
                f"{prefix}labels: chains of {int(saved.max()) + 1} classes were saved, n_classes "
                f"is {self.n_classes}."
            )
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def check_labels(labels: Tensor, n_classes: int, n: int | None = None) -> Tensor:
    """Labels ``(n,)`` as int64, after a check that they are classes.

    Args:
        labels: Integers, ``(n,)``.
        n_classes: They are to be from 0 to this less one.
        n: How many there are to be; None for any number.

    Raises:
        ShapeError: If they are no vector of ``n``.
        ConfigurationError: If they are no integers, or out of range.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ConfigurationError(
            f"labels are of the kind {kind}",
            "a tensor of integers, one label a state",
            "pass class numbers as a tensor, such as y.long()",
        )
    if labels.ndim != 1 or n not in (None, len(labels)):
        raise ShapeError(
            f"labels have the shape {tuple(labels.shape)}",
            f"({'n' if n is None else n},)",
            "pass one class number a state",
        )
    labels = labels.long()
    if len(labels) and not ((labels >= 0) & (labels < n_classes)).all():
        raise ConfigurationError(
            f"labels run from {int(labels.min())} to {int(labels.max())}",
            f"classes from 0 to {n_classes - 1}",
            "number the classes from 0",
        )
    return labels
