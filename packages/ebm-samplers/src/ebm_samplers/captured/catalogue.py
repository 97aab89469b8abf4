"""Which recordings there are of each sampler, for which chains they do, and when to make one."""

import contextlib
import dataclasses
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebm_core import EnergyFunction
from ebm_samplers.captured.graph import CannotCapture, failed, first_line
from ebm_samplers.captured.recording import Recording, Settings

if TYPE_CHECKING:
    from ebm_samplers.captured.chains import CapturedChains
    from ebm_samplers.chains import Position
    from ebm_samplers.sampler import MarkovSampler

ENOUGH = 32
"""Transitions from which on a run is captured at its first call; else at the second like it."""

MOST_KEPT = 4
"""Recordings of one sampler that are kept: of different shapes, say."""

MOST_MADE = 16
"""Recordings of one sampler that are made, in all: then those kept must do."""

CHANGES = 5
"""How often the energies of a sampler's graphs may cease to be those of ``forward``."""

MOST_SEEN = 64
"""Kinds of chains of one sampler that are remembered."""

_wanted = True


@contextlib.contextmanager
def without_graphs() -> Iterator[None]:
    """Let the torch engine issue every step anew on CUDA devices: to compare, or to debug."""
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before


def graphs_wanted() -> bool:
    """Whether steps may be captured now.

    `without_graphs` stands against it, and autocast, and a capture that failed.
    """
    return _wanted and not torch.is_autocast_enabled("cuda") and not failed()


class Catalogue:
    """What is known of one sampler.

    Attributes:
        refused: Why chains are not captured, by their kind.
        in_use: The chains that work in a recording, by their kind.
    """

    def __init__(self) -> None:
        self.refused: dict[Hashable, str] = {}
        self.in_use: weakref.WeakValueDictionary[Hashable, CapturedChains] = (
            weakref.WeakValueDictionary()
        )
        self._seen: set[Hashable] = set()
        self._recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self._n_made = 0
        self._n_changes = 0

    def check(self, kind: Hashable, total: int) -> None:
        """Whether chains of this kind are to be captured, ``total`` transitions of them.

        Raises:
            CannotCapture: If not.
        """
        if len(self._seen) + len(self.refused) > MOST_SEEN:
            self._seen.clear()
            self.refused.clear()
        if not _wanted:
            raise CannotCapture("graphs are not wanted")
        if kind in self.in_use:
            raise CannotCapture("other chains are using the graphs")
        if kind in self.refused:
            raise CannotCapture(self.refused[kind])
        if total < ENOUGH and kind not in self._seen:
            self._seen.add(kind)
            raise CannotCapture("it does not pay for a few transitions")

    def refuse(self, kind: Hashable, reason: str) -> None:
        """Make no graphs for such chains again."""
        self._recordings.pop(kind, None)
        self.refused[kind] = reason

    def begun(
        self, kind: Hashable, sampler: "MarkovSampler", position: "Position", values: Settings
    ) -> tuple[Recording, bool]:
        """A recording with its chains at a position, and whether all is finite there.

        Raises:
            CannotCapture: If there is none whose energies are those of ``forward``.
        """
        try:
            expected = _expected(sampler.energy, position.x)
        except Exception as error:  # the torch engine meets it again, and explains
            raise CannotCapture(first_line(error)) from error
        recording = self._recordings.get(kind)
        if recording is not None:
            agree, finite = recording.begin(sampler, position, values, expected)
            if agree:
                self._recordings.move_to_end(kind)
                return recording, finite
            self._n_changes += 1
            if self._n_changes > CHANGES:
                raise CannotCapture(
                    f"forward has changed {CHANGES} times since it was first captured, by more "
                    "than its parameters: keep numbers that change in buffers of the energy"
                )
        recording = None  # its memory may be needed
        self._recordings.pop(kind, None)
        if len(self._recordings) >= MOST_KEPT:
            self._recordings.popitem(last=False)
        self._n_made += 1
        if self._n_made > MOST_MADE:
            raise CannotCapture(f"{MOST_MADE} kinds of chains of this sampler have been captured")
        try:
            recording = Recording(sampler, position)
        except CannotCapture:
            raise
        except Exception as error:
            raise CannotCapture(first_line(error)) from error
        agree, finite = recording.begin(sampler, position, values, expected)
        if not agree:
            raise CannotCapture("energies of the same states differ from call to call")
        self._recordings[kind] = recording
        return recording, finite


_catalogues: "weakref.WeakKeyDictionary[MarkovSampler, Catalogue]" = weakref.WeakKeyDictionary()


def catalogue_of(sampler: "MarkovSampler") -> Catalogue:
    """What is known of a sampler."""
    return _catalogues.setdefault(sampler, Catalogue())


def kind_of(sampler: "MarkovSampler", position: "Position") -> Hashable:
    """What must be the same for graphs to do the right thing.

    Raises:
        CannotCapture: If the sampler has an attribute whose changes cannot be noticed, or autocast
            is on, whose copies of weights a graph would go on reading.
    """
    if torch.is_autocast_enabled("cuda"):
        raise CannotCapture("autocast is on")
    x, energy = position.x, sampler.energy
    own = tuple((name, _mark(name, v)) for name, v in vars(sampler).items() if name not in _KNOWN)
    tensors = (*energy.parameters(), *energy.buffers())
    return (
        *(x.shape, x.dtype, x.device),
        None if position.beta is None else isinstance(position.beta, Tensor),
        tuple(position.carried),
        id(energy),
        own,
        tuple((id(t), t.data_ptr(), t.shape, t.dtype) for t in tensors),
    )


_KNOWN = {"energy", "settings", "_adapted_step_size", "_last", "_key", "_counter"}
"""Attributes of samplers that are followed, or do not matter to a step."""


@dataclasses.dataclass(frozen=True)
class _Same:
    """An object, equal to itself alone; it keeps it alive, so that no other gets its place."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _mark(name: str, value: Any) -> Hashable:
    """What tells whether an attribute is still the same."""
    if isinstance(value, Tensor):
        return _Same(value), value.data_ptr(), value._version
    if isinstance(value, tuple):
        return tuple(_mark(name, part) for part in value)
    frozen = getattr(getattr(value, "__dataclass_params__", None), "frozen", False)
    if value is None or isinstance(value, (bool, int, float, str)) or frozen:
        unchanging: Hashable = value
        return unchanging
    if isinstance(value, (FunctionType, torch.dtype, torch.device)):
        return _Same(value)
    raise CannotCapture(
        f"the sampler's attribute {name!r} is of {type(value)}, in which changes go unnoticed"
    )


def _expected(energy: EnergyFunction, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Energies that graphs must have at ``x``; and gradients, where the energy has its own."""
    method: Callable[..., Any] = type(energy).energy_and_gradient
    if method is EnergyFunction.energy_and_gradient:
        return energy(x), None
    return energy.energy_and_gradient(x)


def explained_graphs(sampler: "MarkovSampler", position: "Position") -> str:
    """Whether steps of such chains run as CUDA graphs, or why not, as far as it is known."""
    try:
        kind = kind_of(sampler, position)
    except CannotCapture as reason:
        return f"each step is issued anew: {reason}"
    catalogue = catalogue_of(sampler)
    if kind in catalogue.refused:
        return f"each step is issued anew: {catalogue.refused[kind]}"
    return f"steps run as CUDA graphs, in runs of {ENOUGH} and from the second shorter one on"
