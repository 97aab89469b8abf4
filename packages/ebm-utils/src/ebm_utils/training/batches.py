"""Where batches come from, such that a run can go on from any step.

Tensors and data sets are shuffled by a permutation that is a function of seed and epoch alone, so
the batch of a step can be made without those before it, and no random state has to be saved.
Batches of a callable are a function of the step and of the global random state, which a checkpoint
holds. An iterable (a ``DataLoader``) is begun anew with the random state its epoch began with, and
read up to the step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from ebm_core import ConfigurationError, NumericalError, ShapeError, draw_key, make_generator
from ebm_core.validation import check_integer
from ebm_utils.datasets.base import SyntheticDataset
from ebm_utils.training.random_state import capture_random_state, restore_random_state

Batch = tuple[Any, ...]
"""The arguments of the loss."""

DEFAULT_BATCH_SIZE = 128
_NOTHING: Any = object()
GOLDEN = 0x9E3779B97F4A7C15  # odd: epochs of near seeds have generators far apart


Data = (
    Tensor | Sequence[Tensor] | Dataset[Any] | SyntheticDataset | Iterable[Any] | Callable[..., Any]
)
"""What `fit` takes as data."""


class Batches(ABC):
    """Batches by the number of the step, from 0.

    Attributes:
        steps_per_epoch: Batches of one pass over the data; None where there is no such thing.
    """

    steps_per_epoch: int | None = None

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The batch of a step; steps are asked for in order."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the number of the step."""
        return {}

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on with this step; the caller puts the global random state in place afterwards."""
        return  # a callable needs no more than the step

    def signature(self) -> dict[str, Any]:
        """What must be the same in a resumed run, as numbers and words."""
        return {"data": type(self).__name__}


class ShuffledBatches(Batches):
    """Batches of a set of fixed size, in an order of its own for each epoch.

    Each epoch visits the set in the order of ``torch.randperm`` by a generator seeded with seed and
    number of the epoch, ``batch_size`` items a step; what is left over at the end of an epoch, less
    than a batch, is left out of that epoch.

    Args:
        n_items: Size of the set.
        pick: Gives the batch of some indices.
        batch_size: Items of a batch; a smaller set is one batch.
        seed: Of the order; see `ebm_core.make_generator`.
    """

    def __init__(
        self, n_items: int, pick: Callable[[Tensor], Any], batch_size: int, seed: int | None
    ) -> None:
        if n_items < 1:
            raise ConfigurationError(
                "the data hold no items", "at least one", "check where the data come from"
            )
        self.n_items, self.pick = n_items, pick
        self.batch_size = min(check_integer("batch_size", batch_size, at_least=1), n_items)
        self.given_seed = None if seed is None else int(seed)
        self.seed = draw_key(seed)
        self.steps_per_epoch: int = n_items // self.batch_size
        self._epoch, self._order = -1, torch.empty(0)

    def batch(self, step: int) -> Batch:
        """The batch of a step, whichever was asked for before."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = make_generator((self.seed + epoch * GOLDEN) % 2**64)
            self._epoch = epoch
            self._order = torch.randperm(self.n_items, generator=generator, device="cpu")
        first = position * self.batch_size
        return as_arguments(self.pick(self._order[first : first + self.batch_size]))

    def state_dict(self) -> dict[str, Any]:
        """The key of the order, which ``seed=None`` drew."""
        return {"seed": self.seed}

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Take the key."""
        self.seed, self._epoch = int(state["seed"]), -1

    def signature(self) -> dict[str, Any]:
        """Size of the set and of its batches, and the seed that was given."""
        sizes = {"n_items": self.n_items, "batch_size": self.batch_size}
        return {**super().signature(), **sizes, "seed": self.given_seed}


class ComputedBatches(Batches):
    """Batches of a callable ``step -> batch``, steps from 0.

    Args:
        make: The callable. What it draws from the global generators, a resumed run draws again; a
            generator of its own is not restored.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        return as_arguments(self.make(step))


class IteratedBatches(Batches):
    """Batches of an iterable, begun anew when it ends.

    A resumed run restores the global random state (and those of the generators of a ``DataLoader``
    and its samplers, if they have any) with which the epoch began, and reads and drops the batches
    that had been used; then `Trainer` restores the random state of the step. So a ``DataLoader``
    goes on as if it had not been cut, also one that shuffles; its workers begin anew with each
    epoch, persistent ones too. What an iterable draws from elsewhere, or reads from a stream, it
    must repeat itself; and what it draws from the global generators in the training process from
    batch to batch, and keeps, as a buffer that shuffles does, is not repeated: let workers do it,
    or a generator of its own.

    Args:
        data: The iterable.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self.steps_per_epoch = _length(data)
        self._iterator: Iterator[Any] | None = None
        self._began: dict[str, Any] = {}
        self._used = 0

    def batch(self, step: int) -> Batch:
        """The next batch."""
        if self._iterator is None:
            self._begin()
        assert self._iterator is not None
        used = self._used
        batch = next(self._iterator, _NOTHING)
        if batch is _NOTHING and used and self._iterator is not self.data:
            self._begin()  # once an epoch: a DataLoader draws a random number each time
            batch = next(self._iterator, _NOTHING)
        if batch is _NOTHING:
            raise ConfigurationError(
                f"the data ended after {used} batches, at step {step + 1}",
                "an iterable that can be read again, with at least one batch",
                "pass a DataLoader, or a callable step -> batch",
            )
        self._used += 1
        return as_arguments(batch)

    def state_dict(self) -> dict[str, Any]:
        """Batches used of the epoch, and the random state that it began with."""
        return {"used": self._used, "began": self._began}

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Begin the epoch again, and drop what had been used."""
        if not state["began"]:
            return
        restore_random_state(state["began"], _generators(self.data))
        self._begin()
        assert self._iterator is not None
        for i in range(state["used"]):
            if next(self._iterator, _NOTHING) is _NOTHING:
                raise ConfigurationError(
                    f"the data ended after {i} batches of the epoch",
                    f"the {state['used']} that had been used when the checkpoint was written",
                    "resume with the data that the run began with",
                )
        self._used = state["used"]

    def signature(self) -> dict[str, Any]:
        """Number of batches."""
        return {**super().signature(), "steps_per_epoch": self.steps_per_epoch}

    def _begin(self) -> None:
        if getattr(self.data, "persistent_workers", False):
            # Workers that live on have random streams that no checkpoint holds.
            self.data._iterator = None  # type: ignore[attr-defined]
        self._began = capture_random_state(_generators(self.data))
        self._iterator, self._used = iter(self.data), 0


def batches_of(data: Data, batch_size: int | None, seed: int | None) -> Batches:
    """The batches of whatever is given as data; see `fit`.

    Raises:
        ConfigurationError: If it is nothing that `fit` takes, or ``batch_size`` is given for data
            that come in batches.
        ShapeError: If tensors differ in length.
        NumericalError: If a tensor of data is not finite.
    """
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    if isinstance(data, SyntheticDataset) and _has_items_of(SyntheticDataset, data):
        data = data.data
    elif isinstance(data, TensorDataset) and _has_items_of(TensorDataset, data):
        data = data.tensors
    if isinstance(data, Tensor):
        data = (data,)
    if isinstance(data, tuple | list) and data and all(isinstance(t, Tensor) for t in data):
        tensors = _check_tensors(data)
        return ShuffledBatches(
            len(tensors[0]), lambda index: tuple(t[index.to(t.device)] for t in tensors), size, seed
        )
    if _is_map_style(data):
        items: Any = data
        return ShuffledBatches(
            len(items),
            lambda index: default_collate([items[i] for i in index.tolist()]),
            size,
            seed,
        )
    if isinstance(data, np.ndarray | Mapping | str):
        raise ConfigurationError(
            f"the data are of the class {type(data).__name__}",
            "tensors, or an iterable of batches",
            "convert arrays with torch.from_numpy(x), and pass a tuple of tensors for several",
        )
    if batch_size is not None:
        raise ConfigurationError(
            f"batch_size is {batch_size} with data of the class {type(data).__name__}",
            "None for data that come in batches",
            "set the size where the batches are made",
        )
    if isinstance(data, Iterable):
        return IteratedBatches(data)
    if callable(data):
        return ComputedBatches(data)
    raise ConfigurationError(
        f"the data are of the class {type(data).__name__}",
        "a tensor, a tuple of tensors, a Dataset, an iterable of batches or a callable step -> "
        "batch",
        "pass a tensor (n, *event)",
    )


def as_arguments(batch: Any) -> Batch:
    """The arguments of the loss: a tuple or list is several, all else is one."""
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _has_items_of(kind: Any, data: Any) -> bool:
    """Whether items are those of a class, not changed by a class that derives from it."""
    return type(data).__getitem__ is kind.__getitem__


def _length(data: Any) -> int | None:
    """Number of batches, where it is known: a ``DataLoader`` has ``len`` even where it is not."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:
        return None


def _generators(data: Any) -> list[torch.Generator]:
    """The generators that a ``DataLoader`` and its samplers were given, each once."""
    batches = getattr(data, "batch_sampler", None)
    owners = (data, getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    found = (getattr(owner, "generator", None) for owner in owners)
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


def _is_map_style(data: Any) -> bool:
    """A data set with items by number, whether or not it derives from ``Dataset``."""
    numbered = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    of_torch = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    return numbered and (of_torch or not hasattr(data, "__iter__"))


def _check_tensors(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    if any(t.ndim == 0 or len(t) != len(tensors[0]) for t in tensors):
        raise ShapeError(
            f"the tensors have shapes {', '.join(str(tuple(t.shape)) for t in tensors)}",
            "the same number of items in each",
            "pass (x, y) with one y for each x",
        )
    for tensor in tensors:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NumericalError(
                "the data hold NaN or infinity", "finite data", "remove those items"
            )
    return tensors
