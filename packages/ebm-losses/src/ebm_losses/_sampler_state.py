"""The sampler of an objective: a check of what was given for one, and its state, saved with it."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ebm_core import ConfigurationError, Sampler


def check_sampler(sampler: Any) -> Sampler:
    """An object with ``sample_chain``.

    Raises:
        ConfigurationError: If it has none, or is a class.
    """
    if isinstance(sampler, type) or not callable(getattr(sampler, "sample_chain", None)):
        name = sampler.__name__ if isinstance(sampler, type) else type(sampler).__name__
        raise ConfigurationError(
            f"sampler is {'the class' if isinstance(sampler, type) else 'of the class'} {name}",
            "an object with sample_chain(x_init, n_steps) -> final states",
            "pass an instance of a sampler, such as LangevinDynamics(energy, step_size=0.01)",
        )
    checked: Sampler = sampler
    return checked


def sampler_state(sampler: Any) -> dict[str, Any]:
    """The sampler's state and the name of its class; empty if it has none."""
    method = _state_method(sampler, "state_dict")
    if method is None:
        return {}
    return {"sampler": method(), "sampler_class": type(sampler).__name__}


def check_sampler_state(sampler: Any, state: Mapping[str, Any]) -> None:
    """Refuse what `sampler_state` gave for a sampler of another class.

    Raises:
        ConfigurationError: If it is, or this one cannot take any.
    """
    if "sampler" not in state:
        return
    name, saved_name = type(sampler).__name__, state.get("sampler_class")
    method = _state_method(sampler, "load_state_dict")
    if method is None or name != saved_name:
        raise ConfigurationError(
            f"the saved state is that of a sampler of the class {saved_name}",
            f"one of {name}" if method else f"none, as {name} has no load_state_dict",
            "make the objective with the sampler that was saved, or remove '_extra_state' from "
            "the saved state and load it with strict=False",
        )


def restore_sampler(sampler: Any, state: Mapping[str, Any]) -> None:
    """Restore what `sampler_state` gave; see `check_sampler_state`."""
    check_sampler_state(sampler, state)
    if "sampler" in state:
        sampler.load_state_dict(state["sampler"])


def _state_method(sampler: Any, name: str) -> Callable[..., Any] | None:
    # A sampler that is a module is registered and saved as such.
    method = None if isinstance(sampler, nn.Module) else getattr(sampler, name, None)
    return method if callable(method) else None
