"""`ReplayBuffer`: the chains that persist from one training step to the next.

A buffer is ``size`` slots with one chain each. A training step draws some slots without
replacement, advances their chains and writes each back to *the slot it came from*, so that every
chain lives on: no lineage can be copied over another. Chains begin as noise and are never begun
anew unless ``reinit_probability`` says so.

The buffer is made when the first data arrive, in their shape, dtype and on their device, and is an
ordinary module buffer from then on: moved by ``.to()``, saved in ``state_dict``, and restored also
into a buffer that has not been made yet. The state of a buffer that had not been made takes one
that has back to that.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ebm_core import ConfigurationError, ShapeError, spin
from ebm_core.support import same_support
from ebm_core.validation import check_integer, check_number


class Initializer(Protocol):
    """What makes the states that chains begin from: ``torch.randn``, ``torch.zeros``, …."""

    def __call__(
        self, size: Sequence[int], /, *, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """States of shape ``size``, ``(n, *event)``, on that device and of that dtype."""
        ...


class ReplayBuffer(nn.Module):
    """Slots with one persistent chain each.

    Args:
        size: Number of slots, at least 1.
        reinit_probability: With this probability, from 0 to 1, a drawn chain begins anew from
            ``initializer``.
        initializer: Makes the states that chains begin from: called as ``initializer((n, *event),
            device=..., dtype=...)``.

    Attributes:
        states: The chains, ``(size, *event)``; None until `prepare` (or ``load_state_dict``) made
            them.

    Example:
        >>> buffer = ReplayBuffer(100)
        >>> buffer.prepare((2,), device=torch.device("cpu"), dtype=torch.float32)
        >>> slots, chains = buffer.draw(10)
        >>> buffer.write(slots, chains + 1.0)
        >>> buffer.states.shape, len(slots.unique())
        (torch.Size([100, 2]), 10)
    """

    states: Tensor | None

    def __init__(
        self,
        size: int,
        *,
        reinit_probability: float = 0.0,
        initializer: Initializer = torch.randn,
    ) -> None:
        super().__init__()
        self.size = check_integer("buffer_size", size, at_least=1)
        self.reinit_probability = check_number(
            "reinit_probability", reinit_probability, at_least=0.0, at_most=1.0
        )
        self.initializer = check_initializer(initializer)
        self.register_buffer("states", None)

    def prepare(
        self, event_shape: Sequence[int], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Make the chains at the first call; at later ones, check that they fit the data.

        Chains follow data that are on another device.

        Raises:
            ShapeError: If the buffer holds states of another shape.
            ConfigurationError: If it holds states of another dtype.
        """
        if self.states is None:
            # A buffer that was made under inference_mode could not be written to in training.
            with torch.inference_mode(False):
                shape = (self.size, *event_shape)
                self.states = begun(self.initializer, shape, device=device, dtype=dtype)
            return
        if self.states.shape[1:] != tuple(event_shape):
            raise ShapeError(
                f"data of event shape {tuple(event_shape)} came to a buffer of chains of another",
                f"event shape {tuple(self.states.shape[1:])}",
                "make one objective for each shape of data",
            )
        if self.states.dtype != dtype:
            raise ConfigurationError(
                f"data of {dtype} came to a buffer of chains of another dtype",
                f"{self.states.dtype}",
                "convert the data, or the buffer by buffer.to(dtype)",
            )
        if self.states.device != device:
            with torch.inference_mode(False):
                self.states = self.states.to(device)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw slots without replacement, by torch's default generator.

        Args:
            n: Number of slots, at most ``size``; with ``n == size`` they come in order.

        Returns:
            Slots ``(n,)`` and a copy of their chains ``(n, *event)``, some begun anew where
            ``reinit_probability`` is above 0. The buffer is unchanged until `write`.

        Raises:
            ConfigurationError: If ``n`` is above ``size``, or the buffer has not been made.
        """
        if check_integer("n", n, at_least=1) > self.size:
            raise ConfigurationError(
                f"{n} chains of a buffer of {self.size}",
                f"at most {self.size}",
                "use a larger buffer_size",
            )
        states = self._made()
        if n == self.size:
            return self._taken(torch.arange(n, device=states.device), states.clone())
        slots = torch.randperm(self.size, device=states.device)[:n]
        return self._taken(slots, states[slots])

    @torch.no_grad()
    def write(self, slots: Tensor, chains: Tensor) -> None:
        """Write chains ``(n, *event)`` back to the slots ``(n,)`` that they were drawn from."""
        assert self.states is not None, "write follows draw"
        self.states[slots] = chains

    def extra_repr(self) -> str:
        """Size and re-initialisation, for ``repr``."""
        return f"{self.size}, reinit_probability={self.reinit_probability}"

    def _made(self) -> Tensor:
        if self.states is None:
            raise ConfigurationError(
                "the buffer has no states yet", "a buffer that was made", "call prepare first"
            )
        return self.states

    def _taken(self, slots: Tensor, chains: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn slots and chains, some of them begun anew."""
        if self.reinit_probability > 0.0:
            n, device = len(chains), chains.device
            begins = torch.rand(n, device=device) < self.reinit_probability
            fresh = begun(self.initializer, chains.shape, device=device, dtype=chains.dtype)
            chains = torch.where(begins.reshape(n, *[1] * (chains.ndim - 1)), fresh, chains)
        return slots, chains

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
        saved = state_dict.get(f"{prefix}states")
        if saved is not None and self.states is None:
            if len(saved) != self.size:
                error_msgs.append(
                    f"{prefix}states: {len(saved)} chains were saved, buffer_size is {self.size}."
                )
                return
            self.states = torch.empty_like(saved)
        elif saved is None and "version" in local_metadata:
            # The buffer was saved, without chains; a state that knows of no buffer has no version.
            self.states = None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def check_initializer(initializer: Any) -> Initializer:
    """Something that can be called for states.

    Raises:
        ConfigurationError: If it cannot.
    """
    if not callable(initializer):
        raise ConfigurationError(
            f"initializer is {initializer!r}",
            "a callable (shape, *, device, dtype) -> states",
            "pass such a callable, torch.randn for example",
        )
    checked: Initializer = initializer
    return checked


def begun(
    initializer: Initializer, shape: Sequence[int], *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """States ``(n, *event)`` for chains to begin from.

    A copy: what the initializer gave may be the caller's data, and chains are written in place.

    Raises:
        ConfigurationError: If the initializer gave anything else.
    """
    states: Any = initializer(shape, device=device, dtype=dtype)
    wanted = f"{tuple(shape)}, {dtype}, {device}"
    remedy = "make states of the shape, dtype and device that initializer is called with"
    if not isinstance(states, Tensor):
        raise ConfigurationError(f"initializer gave a {type(states).__name__}", wanted, remedy)
    if states.shape != tuple(shape) or states.dtype != dtype or states.device != device:
        given = f"initializer gave {tuple(states.shape)}, {states.dtype}, {states.device}"
        raise ConfigurationError(given, wanted, remedy)
    return states.detach().clone(memory_format=torch.contiguous_format)


def check_n_negatives(n_negatives: int | None, buffer_size: int) -> int | None:
    """A number of chains to draw, at most as many as there are.

    Raises:
        ConfigurationError: If it is none.
    """
    if n_negatives is None:
        return None
    if check_integer("n_negatives", n_negatives, at_least=1) > buffer_size:
        raise ConfigurationError(
            f"n_negatives is {n_negatives} and buffer_size {buffer_size}",
            "at most buffer_size negatives",
            "use a larger buffer_size or fewer n_negatives",
        )
    return n_negatives


def initializer_on(support: Constraint) -> Initializer:
    """The initializer that suits a support: N(0, I) on the real numbers, uniform on a finite set.

    Raises:
        ConfigurationError: If there is no obvious one.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if same_support(support, constraints.real):
        return _random_normals
    if same_support(support, spin):
        return _random_spins
    if same_support(support, constraints.boolean):
        return partial(torch.randint, 0, 2)
    if isinstance(support, constraints.integer_interval):
        return partial(torch.randint, int(support.lower_bound), int(support.upper_bound) + 1)
    raise ConfigurationError(
        f"no initial states are known for the support {support}",
        "states inside the support for chains to begin from",
        "pass initializer, a callable (shape, *, device, dtype) -> states",
    )


def _random_normals(size: Sequence[int], /, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    if not dtype.is_floating_point:
        raise ConfigurationError(
            f"chains of {dtype} are to begin from normal noise",
            "floating data, as the energy's support is the real numbers",
            "convert the data with x.float(), or pass initializer",
        )
    return torch.randn(size, device=device, dtype=dtype)


def _random_spins(size: Sequence[int], /, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    return 2 * torch.randint(2, tuple(size), device=device, dtype=dtype) - 1
