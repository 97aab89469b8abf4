"""`EnergyFunction`: the one object that everything else meets.

An energy E defines the density p(x) ∝ exp(-E(x)). It is a ``torch.nn.Module`` whose ``forward``
takes a batch of states ``(batch, *event)`` and gives one number a state, ``(batch,)``. Gradients,
scores, scaling, sums and temperatures follow from ``forward``; a subclass writes nothing else.
`as_energy` turns any callable of that form into one.

Axes. The axes of one state are its *event* axes; those before are *batch* axes. A learned energy
has one batch axis. An analytic energy may take any number of them; it then says how many axes an
event has, by ``event_shape`` (the exact shape) or, where the size is free, by ``event_ndim``.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ebm_core.errors import ConfigurationError, ShapeError
from ebm_core.validation import check_event_shape, check_positive

if TYPE_CHECKING:
    from ebm_core.composition import ScaledEnergy, SumEnergy

EnergyLike = Callable[[Tensor], Tensor]
"""What samplers and losses accept as an energy: an `EnergyFunction`, a module, or any callable."""


class EnergyFunction(nn.Module, ABC):
    """Base class of energies E with p(x) ∝ exp(-E(x)).

    Subclasses implement ``forward(x)``: ``(batch, *event) -> (batch,)``, differentiable by
    autograd.

    Attributes:
        event_shape: The shape of one state, or None where any shape goes.
        event_ndim: How many trailing axes form a state; None with ``event_shape`` None means all
            but the first.
        support: Where states live (a ``torch.distributions`` constraint); the real numbers by
            default.

    Example:
        >>> class Quartic(EnergyFunction):
        ...     def forward(self, x):
        ...         return (x**4).sum(dim=1)
        >>> energy = Quartic()
        >>> energy.gradient(torch.tensor([[1.0, 2.0]]))
        tensor([[ 4., 32.]])
    """

    # A subclass or an instance may override each of these, as attribute or property.
    event_shape: torch.Size | None = None
    event_ndim: int | None = None
    support: Constraint = constraints.real

    __call__: Callable[..., Tensor]

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The energy of each state.

        Args:
            x: States, ``(batch, *event)``.

        Returns:
            Energies in nats, ``(batch,)``; infinite outside the support.
        """

    def energy_and_gradient(self, x: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """E(x) and ∇E(x) from one forward and one backward pass.

        Works under ``no_grad`` and ``inference_mode``, restores the caller's grad mode, and never
        touches the ``.grad`` of parameters. Override this one method to supply a gradient in closed
        form.

        Args:
            x: States, ``(batch, *event)``. Integer states are taken as numbers of the energy's
                dtype.
            create_graph: Keep the graph, so that both results can be differentiated again, with
                respect to the parameters and to ``x``. Without it both are detached.

        Returns:
            Energies ``(batch,)`` and gradients of the shape of ``x``.

        Raises:
            ShapeError: If ``forward`` does not give one number a state.
            ConfigurationError: If the energy cannot be differentiated with respect to ``x``, or
                takes states of another dtype or device.
        """
        batch_shape = self.batch_shape(x)
        with torch.inference_mode(False), torch.enable_grad():
            x = self._differentiable(x, create_graph)
            with misfits_explained(self, x):
                energy = self(x)
            check_energies(energy, batch_shape)
            gradient = None
            if energy.requires_grad:
                (gradient,) = torch.autograd.grad(
                    energy.sum(), x, create_graph=create_graph, allow_unused=True
                )
        if gradient is None:
            raise ConfigurationError(
                f"{type(self).__name__}.forward gave energies that autograd cannot trace to x",
                "a forward that is differentiable with respect to x",
                "remove detach(), no_grad and numpy from forward, or override energy_and_gradient",
            )
        return (energy if create_graph else energy.detach()), gradient

    def gradient(self, x: Tensor, create_graph: bool = False) -> Tensor:
        """∇E(x), of the shape of ``x``; see `energy_and_gradient`."""
        return self.energy_and_gradient(x, create_graph)[1]

    def score(self, x: Tensor, create_graph: bool = False) -> Tensor:
        """∇ log p(x) = -∇E(x), of the shape of ``x``; see `energy_and_gradient`."""
        return -self.gradient(x, create_graph)

    def batch_shape(self, x: Tensor) -> torch.Size:
        """The batch axes of ``x``, after a check that the others form a state of this energy.

        Raises:
            ShapeError: If there is no batch axis, or the event axes are not those of this energy.

        Example:
            >>> as_energy(lambda x: x.square().sum(1), event_shape=3).batch_shape(torch.zeros(5, 3))
            torch.Size([5])
        """
        event_shape = self.event_shape
        n_event = len(event_shape) if event_shape is not None else self.event_ndim
        n_batch = 1 if n_event is None else x.ndim - n_event
        fits = 1 <= n_batch <= x.ndim and (event_shape is None or x.shape[n_batch:] == event_shape)
        if not fits:
            unbatched = event_shape is None or x.shape == event_shape
            raise ShapeError(
                f"x has shape {tuple(x.shape)}",
                f"(batch, {_event_words(event_shape, n_event)})",
                "add the batch axis with x[None]"
                if unbatched
                else "pass states of this energy's event shape",
            )
        return x.shape[:n_batch]

    def batch_size(self, x: Tensor) -> int:
        """The number of states in ``x``, after a check that there is just one batch axis.

        What samplers and losses ask, for which the first axis counts chains or data.

        Raises:
            ShapeError: If ``x`` is not of shape ``(batch, *event)``.
        """
        batch_shape = self.batch_shape(x)
        if len(batch_shape) != 1:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}, with batch axes {tuple(batch_shape)}",
                "one batch axis",
                "merge the batch axes with x.flatten(0, k), or pass states of the right shape",
            )
        return batch_shape[0]

    def tempered(self, temperature: float) -> "ScaledEnergy":
        """The energy E/T of the tempered density p(x)^(1/T).

        Args:
            temperature: T > 0; above 1 flattens the density.

        Raises:
            ConfigurationError: If it is no positive number, or a parameter.
        """
        if isinstance(temperature, nn.Parameter):
            raise ConfigurationError(
                "the temperature is a parameter, which would not be trained",
                "a number",
                "multiply by the parameter instead: beta * energy",
            )
        return (1.0 / check_positive("temperature", temperature)) * self

    def __add__(self, other: EnergyLike) -> "SumEnergy":
        """E1 + E2: the density of the product of experts."""
        from ebm_core.composition import SumEnergy

        return SumEnergy(self, other) if callable(other) else NotImplemented

    def __radd__(self, other: EnergyLike | int) -> "EnergyFunction":
        """E1 + E2, where E1 is a plain callable, or the 0 from which ``sum`` starts."""
        from ebm_core.composition import SumEnergy

        if isinstance(other, int) and other == 0:
            return self
        return SumEnergy(other, self) if callable(other) else NotImplemented

    def __sub__(self, other: EnergyLike) -> "SumEnergy":
        """E1 - E2: a ratio of densities."""
        return self + -as_energy(other) if callable(other) else NotImplemented

    def __mul__(self, factor: float | Tensor) -> "ScaledEnergy":
        """The energy times a number (an inverse temperature)."""
        from ebm_core.composition import ScaledEnergy

        return ScaledEnergy(self, factor)

    __rmul__ = __mul__

    def __truediv__(self, temperature: float) -> "ScaledEnergy":
        """E / T; see `tempered`."""
        return self.tempered(temperature)

    def __neg__(self) -> "ScaledEnergy":
        """The energy with its sign changed."""
        return -1.0 * self

    def _differentiable(self, x: Tensor, create_graph: bool) -> Tensor:
        if not x.is_floating_point():
            x = x.to(state_options(self)[1])
        if x.is_inference():
            x = x.clone()
        if create_graph and x.requires_grad:
            return x
        return x.detach().requires_grad_(True)


class CallableEnergy(EnergyFunction):
    """An energy made of a callable; see `as_energy`."""

    def __init__(
        self,
        function: EnergyLike,
        *modules: nn.Module,
        event_shape: int | tuple[int, ...] | None = None,
        support: Constraint | None = None,
    ) -> None:
        super().__init__()
        for name in ("event_shape", "event_ndim", "support"):
            if getattr(function, name, None) is not None:
                setattr(self, name, getattr(function, name))
        event_shape = self.event_shape if event_shape is None else event_shape
        if event_shape is not None:
            self.event_shape = check_event_shape("event_shape", event_shape)
        if support is not None:
            self.support = support
        self.function = function
        owner = getattr(function, "__self__", None)
        self.registered = nn.ModuleList(
            (*modules, owner) if isinstance(owner, nn.Module) else modules
        )

    def forward(self, x: Tensor) -> Tensor:
        """The callable's value at ``x``: ``(batch, *event) -> (batch,)``."""
        return self.function(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> "CallableEnergy":
        """A copy with modules of its own.

        Raises:
            ConfigurationError: If the callable is a function with modules: the copy's function
                would go on with the modules of the original.
        """
        if len(self.registered) and isinstance(self.function, FunctionType):
            raise ConfigurationError(
                f"a copy is made of an energy whose function, {self.function.__name__}, uses "
                f"modules by reference",
                "an energy that holds its modules, so that a copy has its own",
                "write a subclass of EnergyFunction with the modules as attributes, or pass the "
                "module itself",
            )
        copied = self.__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


def as_energy(
    f: EnergyLike,
    *modules: nn.Module,
    event_shape: int | tuple[int, ...] | None = None,
    support: Constraint | None = None,
) -> EnergyFunction:
    """Any callable as an `EnergyFunction`; an energy is returned as it is.

    Modules are registered, so that their parameters, ``.to(device)``, ``eval()`` and ``state_dict``
    are the energy's: ``f`` itself if it is a module, the module whose bound method ``f`` is, and
    those named in ``modules``. Tensors and modules that a bare closure uses without being named
    there are used by reference: their values count, but they cannot be moved, saved, put in eval
    mode or found by an optimiser through this energy. A function with named modules cannot be
    copied (``copy.deepcopy``, and what averages models by it).

    Args:
        f: ``(batch, *event) -> (batch,)``. Its attributes ``event_shape``, ``event_ndim`` and
            ``support``, if it has any, are taken over.
        *modules: Modules that ``f`` uses.
        event_shape: The shape of one state (an int for vectors); None if any shape goes.
        support: Where states live; None for what ``f`` says, or the real numbers.

    Raises:
        ConfigurationError: If ``f`` is not callable, or is a class.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> energy = as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1), net, event_shape=2)
        >>> len(list(energy.parameters())), energy.event_shape
        (2, torch.Size([2]))
    """
    if not callable(f) or isinstance(f, type):
        raise ConfigurationError(
            f"the energy is {f!r}",
            "an EnergyFunction, or a callable that takes (batch, *event) and gives (batch,)",
            "pass an instance or a function",
        )
    if isinstance(f, EnergyFunction) and not modules and event_shape is None and support is None:
        return f
    return CallableEnergy(f, *modules, event_shape=event_shape, support=support)


def check_energies(energy: Any, batch_shape: torch.Size) -> Tensor:
    """The value of an energy's ``forward``, after a check that it is one number a state.

    Raises:
        ShapeError: If it is not.
    """
    if not isinstance(energy, Tensor) or energy.shape != batch_shape:
        shape = tuple(energy.shape) if isinstance(energy, Tensor) else type(energy).__name__
        raise ShapeError(
            f"the energy gave {shape} for a batch of shape {tuple(batch_shape)}",
            f"one number a state, shape {tuple(batch_shape)}",
            "sum over the event axes in forward, or squeeze the last axis of a network's output; "
            "a single state needs a batch axis, x[None]",
        )
    return energy


def misfit(energy: EnergyFunction, x: Tensor) -> ConfigurationError | None:
    """What is wrong with states that an energy has failed with: their dtype or device, or nothing.

    It is that if states of its parameters' dtype and device are taken.
    """
    device, dtype = state_options(energy)
    if (x.device, x.dtype) == (device, dtype):
        return None
    try:
        with torch.no_grad():
            energy(x.detach().to(device, dtype))
    except Exception:  # of any kind: the error to report is the one that led here
        return None
    return ConfigurationError(
        f"the energy cannot take x of {x.dtype} on {x.device}",
        f"states of its parameters' {dtype} on {device}",
        f"pass x.to({str(device)!r}, {dtype}), or move the energy with energy.to(x)",
    )


@contextmanager
def misfits_explained(energy: EnergyFunction, x: Tensor) -> Iterator[None]:
    """Within it, torch's error is a `ConfigurationError` where `misfit` says what is wrong."""
    try:
        yield
    except RuntimeError as error:
        reason = misfit(energy, x)
        if reason is None:
            raise
        raise reason from error


def state_options(energy: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype for the states of an energy.

    Those of its first floating parameter or buffer; without any, torch's defaults.

    Example:
        >>> state_options(nn.Linear(1, 1, dtype=torch.float64))
        (device(type='cpu'), torch.float64)
    """
    for tensors in (energy.parameters(), energy.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.get_default_device(), torch.get_default_dtype()


class evaluation_mode:  # noqa: N801 - a context, like torch.no_grad
    """Put a module in eval mode for a while, then restore the flag of each of its submodules.

    Flags are set without a call of ``eval()``, which costs as much as a small network; parts that
    have ``train`` or ``eval`` of their own, and scripted ones, are told.

    Example:
        >>> net = nn.Dropout()
        >>> with evaluation_mode(net):
        ...     print(net.training)
        False
        >>> net.training
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        trained = _in_training(self._module, [])
        self._told = [part for part in trained if _must_be_told(part)]
        self._plain = (
            [part for part in trained if part not in self._told] if self._told else trained
        )
        self._flags = [(part, part.training) for told in self._told for part in told.modules()]
        for part in self._plain:
            part.__dict__["training"] = False  # nn.Module's own way asks ten questions first
        for part in self._told:
            part.eval()

    def __exit__(self, *error: object) -> None:
        for part in self._told:
            part.train()
        for part, flag in self._flags:
            part.training = flag
        for part in self._plain:
            part.__dict__["training"] = True


def _must_be_told(part: nn.Module) -> bool:
    kind = type(part)
    own = kind.train is not nn.Module.train or kind.eval is not nn.Module.eval
    return own or isinstance(part, torch.jit.ScriptModule)


def _in_training(module: nn.Module, found: list[nn.Module]) -> list[nn.Module]:
    """The parts of a module that are in training mode; ``modules()`` takes thrice as long."""
    if module.training:
        found.append(module)
    for part in module._modules.values():
        if part is not None:
            _in_training(part, found)
    return found


def _event_words(event_shape: torch.Size | None, event_ndim: int | None) -> str:
    if event_shape is not None:
        return ", ".join(map(str, event_shape))
    return "*event" if event_ndim is None else ", ".join(["any"] * event_ndim)
