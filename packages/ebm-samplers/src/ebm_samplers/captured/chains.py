"""Chains that advance by launching CUDA graphs."""

import contextlib
import dataclasses
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_samplers.acceptance import check_resolution
from ebm_samplers.adaptation import StepSizeAdaptation
from ebm_samplers.captured.recording import LONGEST, CannotCapture, Recording
from ebm_samplers.chains import Chains, Leg, Plan, Position, require_finite
from ebm_samplers.states import State, Statistics

if TYPE_CHECKING:
    from ebm_samplers.sampler import MarkovSampler

ENOUGH = 32
"""Transitions from which on a run is captured at its first call; else at the second like it."""

MOST_RECORDINGS = 4
"""Recordings of one sampler: of different shapes, say, or with a different network."""

CHANGES = 5
"""How often the energies of a sampler's graphs may cease to be those of ``forward``."""

MOST_KINDS = 64
"""Kinds of chains of one sampler that are remembered."""

BETWEEN_LOOKS = 256
"""Transitions after which energies are looked at, since a look waits for the device."""


class _Entry:
    """What is known of one sampler."""

    def __init__(self) -> None:
        self.seen: set[Hashable] = set()
        self.recordings: OrderedDict[Hashable, Recording] = OrderedDict()
        self.refused: dict[Hashable, str] = {}
        self.n_changes = 0
        self.users: weakref.WeakValueDictionary[Hashable, CapturedChains] = (
            weakref.WeakValueDictionary()
        )


_entries: "weakref.WeakKeyDictionary[MarkovSampler, _Entry]" = weakref.WeakKeyDictionary()
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


def captured_on(device: torch.device) -> bool:
    """Whether chains on a device can be captured."""
    return device.type == "cuda"


def require_uncaptured(device: torch.device) -> None:
    """Refuse to sample while the caller captures a CUDA graph.

    Raises:
        ConfigurationError: If it does.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ConfigurationError(
            "a sampler was called while a CUDA graph is captured",
            "calls outside: samplers look at their start states, and capture their own steps",
            "capture what comes before and after the sampler",
        )


class CapturedChains(Chains):
    """Chains on a CUDA device whose transitions are captured, see `Recording`.

    Args:
        sampler: Whose ``start`` and ``transition`` are captured.
        position: Where to begin.
        check_start: Refuse start states that are not finite.
        total: How many transitions there will be.

    Raises:
        CannotCapture: If they cannot be captured, or it does not pay.
        NumericalError: As `TorchChains`.
    """

    block = 64

    def __init__(
        self, sampler: "MarkovSampler", position: Position, check_start: bool, total: int
    ) -> None:
        super().__init__(sampler, position)
        entry = _entries.setdefault(sampler, _Entry())
        kind = _kind(sampler, position)
        if len(entry.seen) + len(entry.refused) > MOST_KINDS:
            entry.seen.clear()
            entry.refused.clear()
        if not _wanted or kind in entry.users:
            raise CannotCapture("graphs are not wanted, or chains inside of others use them")
        if kind in entry.refused:
            raise CannotCapture(entry.refused[kind])
        if total < ENOUGH and kind not in entry.seen:
            entry.seen.add(kind)
            raise CannotCapture("it does not pay for a few transitions")
        self._copy: State | None = None
        self._unlooked = 0
        (values,) = self.settings(1)
        self.step_size = values["step_size"]
        try:
            self._recording, finite = _begun(entry, kind, sampler, position, values)
        except CannotCapture as reason:
            entry.recordings.pop(kind, None)
            entry.refused[kind] = str(reason)
            raise
        entry.users[kind] = self
        if check_start and not finite:
            require_finite(self.state)
        self.check()

    @property
    def state(self) -> State:
        """The present state, in tensors of its own."""
        if self._copy is None:
            state = self._recording.state
            parts = {f.name: getattr(state, f.name).clone() for f in dataclasses.fields(state)}
            self._copy = dataclasses.replace(state, **parts)
        return self._copy

    @property
    def x(self) -> Tensor:
        """The present positions, ``(chain, *event)``."""
        return self._recording.state.x.clone() if self._copy is None else self._copy.x

    def legs(
        self,
        n: int,
        adaptation: StepSizeAdaptation | None = None,
        age: int = 0,
        plan: Plan | None = None,
    ) -> Iterator[Leg]:
        """Make ``n`` transitions, up to 32 in a leg; one where the step adapts.

        Energies are looked at after some hundred transitions.
        """
        adapts = adaptation is not None and self.adapted_step_size is not None
        done = 0
        while done < n:
            most = 1 if adapts else _leg(plan, done, min(n - done, LONGEST))
            values, branch = self._ahead(most, adapts)
            try:
                statistics = self._launched(values, branch, plan is not None)
            except CannotCapture as reason:
                raise ConfigurationError(
                    f"this step of {type(self.sampler).__name__} cannot be captured, though one "
                    f"before could: {reason}",
                    "steps that are alike, or differ in what `branch` gives",
                    "sample within ebm_samplers.without_graphs(), or mend the step",
                ) from reason
            done += len(values)
            if adaptation is not None and self.adapted_step_size is not None:
                acceptance = torch.as_tensor(statistics["acceptance_rate"])
                self.adapted_step_size = adaptation.moved(self.adapted_step_size, acceptance, age)
                age += 1
            yield Leg(len(values), statistics)
            if self._unlooked >= BETWEEN_LOOKS:
                self.check()
        self.check()

    def check(self) -> None:
        """Refuse energies met since the last check that are too large for accept tests."""
        self._unlooked = 0
        largest = self._recording.restart_largest()
        if largest is not None:
            beta = 1.0 if self.beta is None else self.beta
            check_resolution(beta * largest)

    def _ahead(self, most: int, adapts: bool) -> tuple[list[dict[str, Any]], Hashable]:
        """The settings of the next transitions that can be one graph, and what they share."""
        values = []
        try:
            for value in self.settings(most, adapts):
                values.append(value)  # noqa: PERF402 - a schedule may fail at a later step
        except Exception:
            if not values:
                raise
        branches = (
            self._recording.branch(self.sampler, self.counter + i) for i in range(len(values))
        )
        first = next(branches)
        alike = len(values) == most and all(branch == first for branch in branches)
        return (values if alike else values[:1]), first

    def _launched(
        self, values: list[dict[str, Any]], branch: Hashable, reports: bool
    ) -> Statistics:
        """Make transitions; their statistics, in tensors of their own."""
        statistics = self._recording.advance(self.sampler, self.counter, values, branch, reports)
        n = len(values)
        self._copy = None
        self.step_size = values[-1]["step_size"]
        self.counter += n
        self.schedule_step += n
        self._unlooked += n
        return {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in statistics.items()
        }


def _begun(
    entry: _Entry,
    kind: Hashable,
    sampler: "MarkovSampler",
    position: Position,
    values: dict[str, Any],
) -> tuple[Recording, bool]:
    """A recording with its chains at a position, and whether they are finite there.

    Raises:
        CannotCapture: If there is none whose energies are those of ``forward``.
    """
    energies = sampler.energy(position.x)
    recording = entry.recordings.get(kind)
    if recording is not None:
        agree, finite = recording.begin(sampler, position, values, energies)
        if agree:
            entry.recordings.move_to_end(kind)
            return recording, finite
        entry.n_changes += 1
        if entry.n_changes > CHANGES:
            raise CannotCapture(
                f"forward has changed {CHANGES} times since it was first captured, by more than "
                "its parameters: keep numbers that change in buffers of the energy"
            )
    recording = None  # its memory may be needed
    entry.recordings.pop(kind, None)
    if len(entry.recordings) >= MOST_RECORDINGS:
        entry.recordings.popitem(last=False)
    try:
        recording = Recording(sampler, position)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise CannotCapture(f"{type(error).__name__}: {reason}") from error
    agree, finite = recording.begin(sampler, position, values, energies)
    if not agree:
        raise CannotCapture("energies of the same states differ from call to call")
    entry.recordings[kind] = recording
    return recording, finite


def _leg(plan: Plan | None, done: int, most: int) -> int:
    """How many transitions to make at most, so that a leg has draws only if it ends with one."""
    if plan is None:
        return most
    single = plan.keep != "final"  # each draw is wanted
    between = plan.thin * (1 if single else plan.stop or max(1, most // plan.thin))
    to_stop = between - done % between
    if to_stop <= most:
        return to_stop
    to_draw = plan.thin - done % plan.thin
    if to_draw > most:
        return most
    return to_draw + (most - to_draw) // plan.thin * plan.thin


def _kind(sampler: "MarkovSampler", position: Position) -> Hashable:
    """What must be the same for graphs to do the right thing, as far as it can be seen."""
    x, beta, energy = position.x, position.beta, sampler.energy
    own = tuple(
        (name, _mark(value), value._version if isinstance(value, Tensor) else 0)
        for name, value in vars(sampler).items()
        if not name.startswith("_") and name != "settings"
    )
    tensors = tuple(map(_mark, (*energy.parameters(), *energy.buffers())))
    return (
        (x.shape, x.dtype, x.device),
        None if isinstance(beta, Tensor) else beta,
        isinstance(beta, Tensor),
        tuple(position.carried),
        torch.is_autocast_enabled("cuda"),
        own,
        tensors,
    )


def _mark(value: Any) -> Hashable:
    """What tells whether a value is still the same."""
    if isinstance(value, Tensor):
        return id(value), value.data_ptr(), value.shape, value.dtype
    if value is None or isinstance(value, (bool, int, float, str, StepSizeAdaptation)):
        return value
    return id(value)
