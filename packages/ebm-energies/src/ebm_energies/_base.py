"""What the energies share: how they hold numbers, know their dimension and say what they know.

Numbers and tensors that define an energy are buffers, so that ``.to`` and ``state_dict`` see them;
a tensor that comes as ``nn.Parameter`` stays one. An energy has just those of the methods
``log_normalizer``, ``exact_sample``, ``mean``, ``covariance`` and ``minima`` whose answer is known;
`available_if` hides those that are known for some instances only.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ebm_core import ConfigurationError, EnergyFunction, make_generator, state_options
from ebm_core.validation import check_integer, check_number, check_tensor

Method = TypeVar("Method", bound=Callable[..., Any])


def hold(module: nn.Module, name: str, value: Tensor, dtype: torch.dtype | None = None) -> None:
    """Register a tensor: a parameter as it is, anything else as a buffer, copied, of ``dtype``.

    The copy is an ordinary tensor also under ``torch.inference_mode()``, so that an energy made
    there can be differentiated elsewhere.
    """
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
        return
    with torch.inference_mode(False):
        copy = value.detach().to(
            dtype=dtype or value.dtype, copy=True, memory_format=torch.contiguous_format
        )
    module.register_buffer(name, copy)


def hold_number(
    module: nn.Module,
    name: str,
    value: Any,
    *,
    dtype: torch.dtype | None = None,
    **bounds: float,
) -> None:
    """Register a finite number within bounds as a scalar tensor.

    A tensor keeps its dtype and device; a Python number takes ``dtype``, or the default. The bounds
    are those of `ebm_core.validation.check_number`.
    """
    number = check_number(name, value, **bounds)
    if isinstance(value, Tensor) and value.is_floating_point():
        hold(module, name, check_tensor(name, value, ()))
    else:
        hold(module, name, torch.tensor(number, dtype=dtype or torch.get_default_dtype()))


def common_dtype(values: Iterable[Any]) -> torch.dtype:
    """The dtype to which floating tensors and arrays among the values promote, or the default."""
    tensors = [torch.as_tensor(v) for v in values if isinstance(v, Tensor | np.ndarray)]
    dtypes = [t.dtype for t in tensors if t.is_floating_point()]
    return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype()


def double_tensor(name: str, value: Any, shape: tuple[int | None, ...] | None = None) -> Tensor:
    """Numbers as a finite float64 tensor of the wanted shape, for computations at construction."""
    if not isinstance(value, Tensor):
        # check_tensor says what is wrong where this fails.
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            value = torch.as_tensor(value, dtype=torch.float64)
    return check_tensor(name, value, shape).detach().to(torch.float64)


def refuse_parameters(remedy: str, **values: Any) -> None:
    """Refuse parameters where an energy keeps only what it computes from them at construction.

    Args:
        remedy: How to learn them instead.
        **values: The arguments, by name.

    Raises:
        ConfigurationError: If one is an ``nn.Parameter``.
    """
    for name, value in values.items():
        if isinstance(value, nn.Parameter):
            raise ConfigurationError(
                f"{name} is an nn.Parameter, but is transformed once, when the energy is made",
                f"{name} as a plain tensor",
                remedy,
            )


def draw_options(energy: nn.Module, n: int, seed: int | None) -> dict[str, Any]:
    """Generator, device and dtype of ``n`` exact draws, as keyword arguments of ``torch.randn``."""
    check_integer("n", n, at_least=1)
    device, dtype = state_options(energy)
    return {"generator": make_generator(seed, device), "device": device, "dtype": dtype}


def available_if(known: Callable[[Any], bool]) -> Callable[[Method], Method]:
    """A method that exists where ``known(instance)``; elsewhere ``hasattr`` is false."""

    def decorate(method: Method) -> Method:
        return cast(Method, _AvailableIf(method, known))

    return decorate


class _AvailableIf:
    def __init__(self, function: Callable[..., Any], known: Callable[[Any], bool]) -> None:
        self.function = function
        self.known = known
        self.__doc__ = function.__doc__

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self.function
        if not self.known(instance):
            raise AttributeError(f"{owner.__name__}.{self.function.__name__} is not known here")
        return MethodType(self.function, instance)


class VectorEnergy(EnergyFunction):
    """An energy of vectors ``(..., dim)``; with ``dim=None`` ``forward`` takes any length.

    Args:
        dim: The length of a state, or None.
        at_least: The smallest length that makes sense.
    """

    event_ndim = 1

    def __init__(self, dim: int | None, at_least: int = 1) -> None:
        super().__init__()
        if dim is not None:
            self.event_shape = torch.Size([check_integer("dim", dim, at_least=at_least)])

    def require_dim(self) -> int:
        """The length of a state.

        Raises:
            ConfigurationError: If the energy was made without ``dim``.
        """
        if self.event_shape is None:
            raise ConfigurationError(
                f"{type(self).__name__} was made without a dimension",
                "the dimension, on which this answer depends",
                f"give dim= to {type(self).__name__}",
            )
        return self.event_shape[0]


def cartesian_power(values: Tensor, dim: int) -> Tensor:
    """All vectors of length ``dim`` with elements from ``values``, ``(len(values)**dim, dim)``.

    Raises:
        ConfigurationError: If there are more than 2**20 of them.
    """
    if len(values) ** dim > 2**20:
        raise ConfigurationError(
            f"a list of {len(values)}**{dim} minima",
            "at most 2**20 of them",
            "ask in a smaller dimension",
        )
    return torch.cartesian_prod(*[values] * dim).reshape(-1, dim)
