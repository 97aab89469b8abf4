"""Checks of what a caller gives to ``sample`` and ``sample_chain``."""

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ebm_core import (
    ConfigurationError,
    EnergyFunction,
    ShapeError,
    SupportError,
    is_discrete,
    spin,
    state_options,
)
from ebm_core.support import same_support
from ebm_core.validation import check_event_shape, check_integer, check_positive, check_tensor
from ebm_samplers.chains import Position
from ebm_samplers.noise import fill_normals, fill_uniforms
from ebm_samplers.streams import Stream

if TYPE_CHECKING:
    from ebm_samplers.sampler import MarkovSampler

Beta = float | Tensor | Sequence[float] | np.ndarray[Any, np.dtype[Any]]
"""Inverse temperatures as callers give them: a number, or one a chain."""


def checked_states(energy: EnergyFunction, x: Tensor, name: str = "x_init") -> Tensor:
    """Start states, detached, if they are states with one chain axis.

    Floating-point ones; where the energy's support is discrete, numbers of any dtype inside it.
    """
    discrete = is_discrete(energy.support)
    if not isinstance(x, Tensor) or not (x.is_floating_point() or discrete) or x.is_complex():
        given = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ConfigurationError(
            f"{name} has {given}",
            "a tensor of states" if discrete else "a tensor of floating-point states",
            f"convert it, as in {name}.float()",
        )
    if energy.batch_size(x) == 0:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}", "one chain or more", "pass a state")
    if discrete:
        support: Any = energy.support  # whose methods have no annotations
        outside = int((~support.check(x)).sum())
        if outside:
            raise SupportError(
                f"{outside} elements of {name} are outside the support {energy.support}",
                "states inside it",
                "make the data discrete first, as in (x > threshold).to(torch.int8)",
            )
    return x.detach() if x.requires_grad else x


def checked_numbers(n_steps: int, thin: int, burn_in: int) -> tuple[int, int, int]:
    """Numbers of transitions."""
    n_steps = check_integer("n_steps", n_steps, at_least=1)
    thin = check_integer("thin", thin, at_least=1)
    burn_in = check_integer("burn_in", burn_in)
    if thin > n_steps:
        raise ConfigurationError(
            f"thin is {thin} and n_steps {n_steps}",
            "thin of at most n_steps",
            "make more steps or thin less",
        )
    return n_steps, thin, burn_in


def check_callback(callback: Any) -> None:
    """Refuse what cannot be called."""
    if callback is not None and not callable(callback):
        raise ConfigurationError(
            f"callback is {callback!r:.80}",
            "a callable that takes the result so far",
            "pass a function, or None",
        )


def empty_states(
    energy: EnergyFunction, n_samples: int | None, dim: int | tuple[int, ...] | None
) -> Tensor:
    """A tensor for start states of the shape that ``n_samples``, ``dim`` and the energy give."""
    if n_samples is None:
        raise ConfigurationError(
            "neither x_init nor n_samples was given",
            "one of them",
            "pass n_samples, the number of chains",
        )
    n_samples = check_integer("n_samples", n_samples, at_least=1)
    event_shape = energy.event_shape
    if dim is not None:
        wanted = check_event_shape("dim", dim)
        if event_shape is not None and wanted != event_shape:
            raise ShapeError(
                f"dim is {dim!r}",
                f"the energy's event shape {tuple(event_shape)}",
                "leave dim out",
            )
        event_shape = wanted
    if event_shape is None:
        raise ConfigurationError(
            "neither x_init nor dim was given, and the energy has no event_shape",
            "one of them",
            "pass dim, the number of elements (or the shape) of a state",
        )
    device, dtype = state_options(energy)
    if is_discrete(energy.support):
        labels = isinstance(energy.support, constraints.integer_interval)
        dtype = torch.int64 if labels else torch.int8
        return torch.zeros((n_samples, *event_shape), device=device, dtype=dtype)
    return checked_states(energy, torch.empty(n_samples, *event_shape, device=device, dtype=dtype))


def fill_start(position: Position, support: Constraint) -> None:
    """Start states from numbers of stream START, at the index of the next step.

    Normals; where the support is discrete, uniform states.
    """
    x = position.x.view(len(position.x), -1)
    index = position.counter * x.shape[1]
    if not is_discrete(support):
        fill_normals(x, position.key, Stream.START, position.first_chain, index)
        return
    out = torch.empty(x.shape, dtype=torch.float64, device=x.device)
    fill_uniforms(out, position.key, Stream.START, position.first_chain, index)
    if same_support(support, spin):
        x.copy_(2 * (out < 0.5) - 1)
        return
    low, high = _bounds(support)
    x.copy_(low + (out * (high - low + 1)).floor())


def _bounds(support: Constraint) -> tuple[int, int]:
    """The smallest and largest element of binary or labelled states."""
    if same_support(support, constraints.boolean):
        return 0, 1
    if isinstance(support, constraints.integer_interval):
        return int(support.lower_bound), int(support.upper_bound)
    raise ConfigurationError(
        f"x_init is None, and no uniform states are known on the support {support}",
        "start states",
        "pass x_init",
    )


def checked_beta(beta: Beta | None, x: Tensor, dtype: torch.dtype) -> float | Tensor | None:
    """Inverse temperatures: None, a positive number, or ``(chain,)`` on the device of ``x``."""
    if beta is None:
        return None
    if isinstance(beta, np.ndarray):
        beta = beta.item() if beta.ndim == 0 else beta.copy(order="C")  # torch wants it writable
    if isinstance(beta, list | tuple) and all(isinstance(b, numbers.Real) for b in beta):
        beta = torch.tensor(beta, dtype=torch.float64)  # with all the digits
    if isinstance(beta, Tensor) and beta.ndim == 0:
        return check_positive("beta", beta)
    if not isinstance(beta, Tensor | np.ndarray | list | tuple):
        return check_positive("beta", beta)
    betas = check_tensor("beta", beta, (len(x),)).detach().to(x.device, dtype, copy=True)
    if not (betas > 0).all():
        raise ConfigurationError(
            f"beta has the element {betas.min().item():g}",
            "positive numbers",
            "pass positive inverse temperatures",
        )
    return betas


def refuse(name: str, others: Mapping[str, Any]) -> None:
    """Refuse arguments that were given together with the argument ``name``."""
    given = [other for other, value in others.items() if value is not None]
    if given:
        raise ConfigurationError(
            f"{name} was given together with {', '.join(given)}",
            f"{name} alone",
            f"leave {', '.join(given)} out",
        )


def resumed_position(sampler: "MarkovSampler", resume: Mapping[str, Any]) -> Position:
    """The position that ``resume`` describes, if this sampler can go on from there."""
    names = {"sampler", *(field.name for field in fields(Position))}
    if not isinstance(resume, Mapping) or set(resume) != names:
        raise ConfigurationError(
            "resume is not that of a result", "result.resume", "pass it unchanged"
        )
    if resume["sampler"] != type(sampler).__name__:
        raise ConfigurationError(
            f"resume comes from {resume['sampler']}",
            f"that of {type(sampler).__name__}",
            "go on with the kind of sampler that began",
        )
    if (resume["step_size"] is None) != (sampler.adaptation is None):
        raise ConfigurationError(
            "only one of the sampler and the run to resume has an adapting step size",
            "both or neither",
            "construct the sampler with the target_acceptance it had then",
        )
    position = Position(**{name: value for name, value in resume.items() if name != "sampler"})
    checked_states(sampler.energy, position.x, "resume['x']")
    return position
