"""`SamplerLoss`: what objectives whose negatives a sampler makes have in common."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ebm_core import BaseLoss, ConfigurationError, EnergyLike, Sampler, evaluation_mode
from ebm_losses._checks import check_states_like


class SamplerLoss(BaseLoss):
    """Runs a sampler of the caller's, and saves its state with the objective's own.

    Args:
        energy: The energy to train, or any callable ``(batch, *event) -> (batch,)``.
        sampler: An object with ``sample_chain(x_init, n_steps) -> final states``; None for an
            objective that can do without.

    Raises:
        ConfigurationError: If ``sampler`` has no ``sample_chain``, or is a class.
    """

    sampler: Any

    def __init__(self, energy: EnergyLike, sampler: Sampler | None) -> None:
        super().__init__(energy)
        self.sampler = None if sampler is None else check_sampler(sampler)

    def run_sampler(self, start: Tensor, n_steps: int, **options: Any) -> Tensor:
        """The sampler's final states from ``(n, *event)``, constants, the energy in eval mode.

        Raises:
            ShapeError: If the sampler gave states of another shape.
            ConfigurationError: If it gave no tensor, or one of another dtype or device.
        """
        with evaluation_mode(self.energy):
            final: Any = self.sampler.sample_chain(start, n_steps, **options)
        final = check_states_like(
            final,
            start,
            len(start),
            origin=f"sample_chain of {type(self.sampler).__name__}",
            remedy="return the last states of the chains alone, one for each start (result.final "
            "of a result object), on their device and of their dtype",
        )
        return constants(final)

    def get_extra_state(self) -> dict[str, Any]:
        """The sampler's state and the name of its class, as part of ``state_dict``."""
        method = self._state_method("state_dict")
        if method is None:
            return {}
        return {"sampler": method(), "sampler_class": type(self.sampler).__name__}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the sampler's state.

        Raises:
            ConfigurationError: If the state of a sampler of another class was saved, or this one
                cannot take any. Nothing of the objective has been loaded then.
        """
        self._check_sampler_state(state)
        if "sampler" in state:
            self.sampler.load_state_dict(state["sampler"])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        self._check_sampler_state(state_dict.get(f"{prefix}_extra_state", {}))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _check_sampler_state(self, state: Mapping[str, Any]) -> None:
        if "sampler" not in state:
            return
        name, saved_name = type(self.sampler).__name__, state.get("sampler_class")
        method = self._state_method("load_state_dict")
        if method is None or name != saved_name:
            raise ConfigurationError(
                f"the saved state is that of a sampler of the class {saved_name}",
                f"one of {name}" if method else f"none, as {name} has no load_state_dict",
                "make the objective with the sampler that was saved, or remove '_extra_state' from "
                "the saved state and load it with strict=False",
            )

    def _state_method(self, name: str) -> Callable[..., Any] | None:
        # A sampler that is a module is registered and saved as such.
        is_module = isinstance(self.sampler, nn.Module)
        method = None if is_module else getattr(self.sampler, name, None)
        return method if callable(method) else None


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


def constants(states: Tensor) -> Tensor:
    """States without a graph that can take part in a backward pass.

    Those that were made under ``inference_mode`` cannot, but a copy of them can.
    """
    return states.clone() if states.is_inference() else states.detach()
