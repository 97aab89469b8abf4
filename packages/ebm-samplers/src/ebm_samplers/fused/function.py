"""`fuse`: an energy's kernel as a function of torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, EnergyFunction
from ebm_core.energy import EnergyLike, as_energy, evaluation_mode
from ebm_samplers.fused.lookup import fused_start
from ebm_samplers.fused.trace import CannotFuse


def fuse(energy: EnergyLike) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Compile an energy: a function that gives energies and gradients of batches from one kernel.

    Energies can be differentiated with respect to ``x``, once: in losses, under `torch.func.grad`
    and `torch.func.vmap` too (within `torch.compile`, hide the function by
    `torch.compiler.disable`). What kernels read beside ``x`` (parameters) gets no gradient. Each
    call compares energies with ``forward`` on up to four states, so that changed parameters,
    closures and attributes are followed or noticed.

    Args:
        energy: An `EnergyFunction` or any callable ``(batch, *event) -> (batch,)``.

    Returns:
        A callable ``x -> (energies (batch,), gradients of the shape of x)``, the gradients without
        autograd history. It raises `ConfigurationError` where the energy cannot be compiled.

    Example:
        >>> energies, gradients = fuse(lambda x: x.square().sum(1))(torch.ones(3, 2))
        >>> energies
        tensor([2., 2., 2.])
    """
    wrapped = as_energy(energy)

    def energy_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
        wrapped.batch_size(x)
        energies, gradients = _Fused.apply(x, wrapped)  # type: ignore[no-untyped-call]
        return energies, gradients

    return energy_and_gradient


class _Fused(torch.autograd.Function):
    """(x, energy) -> energies, gradients."""

    @staticmethod
    def forward(x: Tensor, energy: EnergyFunction) -> tuple[Tensor, Tensor]:
        return _evaluated(x, energy)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor, None]:
        product: Tensor = _Slope.apply(slope, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return product, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, energy: EnergyFunction) -> Any:
        """More batches are one larger batch."""
        x = x.movedim(in_dims[0], 0)
        shape = x.shape[:2]
        energies, gradients = _Fused.apply(x.flatten(0, 1), energy)  # type: ignore[no-untyped-call]
        return (energies.unflatten(0, shape), gradients.unflatten(0, shape)), (0, 0)


class _Slope(torch.autograd.Function):
    """(slope, x, gradients) -> slope · gradients, whose own derivative is an error, not zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, x: Tensor, gradients: Tensor) -> Tensor:
        return slope.view(-1, *(1,) * (x.ndim - 1)) * gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise ConfigurationError(
            "a gradient of a fused energy is to be differentiated",
            "first derivatives: kernels have no others",
            "use the energy itself where second derivatives are needed",
        )


def _evaluated(x: Tensor, energy: EnergyFunction) -> tuple[Tensor, Tensor]:
    """Energies and gradients by the kernel of the energy."""
    if not len(x):
        return x.new_empty(0), x.new_empty(x.shape)
    try:
        with evaluation_mode(energy), torch.inference_mode(False), torch.no_grad():
            start = fused_start(energy, x.detach(), "energy")
    except CannotFuse as reason:
        raise ConfigurationError(
            f"the energy has no fused kernel: {reason}",
            "an energy that can be traced and compiled",
            "use energy.energy_and_gradient(x), or change what the message names",
        ) from reason
    fused, state = start.fused, start.run.state
    energies = fused.tensor(fused.energies(state, start.offset))
    return energies, fused.copied(fused.gradients(state), tuple(x.shape))
