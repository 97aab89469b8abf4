"""The terms that objectives average: functions of states and of all that was drawn for them.

An objective draws, and hands the terms to its evaluator (`ebm_core.BaseLoss.evaluate_terms`):
torch, or what computes the same more quickly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ebm_core import EnergyFunction
from ebm_core.energy import check_energies


@dataclass(frozen=True)
class EnergyTerms:
    """Energies themselves."""

    energy: EnergyFunction

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E of states ``(n, *event)``, twice."""
        energies = check_energies(self.energy(x), self.energy.batch_shape(x))
        return energies, energies.detach()


@dataclass(frozen=True)
class SlopeTerms:
    """How far the gradient is from what it should be: weight · Σ_event (scale · ∇E - target)².

    Attributes:
        energy: E.
        scale: A number; None where each state has its own.
        weight: Of the sum of squares.
    """

    energy: EnergyFunction
    scale: float | None = 1.0
    weight: float = 1.0

    def __call__(self, x: Tensor, target: Tensor, *scale: Tensor) -> tuple[Tensor, ...]:
        """The term, E and the mean square of an element of ∇E, of each state.

        Args:
            x: States, ``(n, *event)``.
            target: Of the same shape.
            *scale: Where the attribute is None: one tensor ``(n, 1, ...)``.
        """
        energies, gradient = self.energy.energy_and_gradient(x, create_graph=True)
        factor = scale[0] if self.scale is None else self.scale
        residual = factor * gradient - target
        return self.weight * sum_event(residual.square()), energies.detach(), mean_square(gradient)


@dataclass(frozen=True)
class CurvatureTerms:
    """Half the squared gradient less the curvature along directions, as in sliced score matching.

    Attributes:
        energy: E.
        variance_reduction: Take |∇E|² itself, not its estimate along the directions.
        chunk_size: Directions in one batched backward pass.
        complete: Directions are all unit vectors: the curvature is their sum, not their mean.
    """

    energy: EnergyFunction
    variance_reduction: bool = True
    chunk_size: int = 1
    complete: bool = False

    def __call__(self, x: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
        """The term, E, the mean square of an element of ∇E, and the curvature, of each state.

        Args:
            x: States, ``(n, *event)``.
            directions: v, ``(n, direction, *event)``.
        """
        directions = directions.transpose(0, 1)
        # Batched passes are vmap's, which a recording of single operations does not see through.
        at_once = 1 if torch._C._len_torch_dispatch_stack() else self.chunk_size
        energies, gradient, forms = quadratic_forms(self.energy, x, directions, at_once)
        if self.variance_reduction:
            squares = sum_event(gradient.square())
        else:
            squares = sum_event(directions * gradient, 2).square().mean(0)
        curvature = forms.sum(0) if self.complete else forms.mean(0)
        terms = 0.5 * squares - curvature
        return terms, energies.detach(), mean_square(gradient), curvature.detach()


def quadratic_forms(
    energy: EnergyFunction, x: Tensor, directions: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies ``(n,)``, gradient ``(n, *event)`` and vᵀ∇²E v ``(direction, n)``.

    Args:
        energy: E.
        x: States, ``(n, *event)``.
        directions: v, ``(direction, n or 1, *event)``.
        chunk_size: Directions in a batched backward pass.
    """
    keep_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        x = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
        directions = directions.clone() if directions.is_inference() else directions
        energies, gradient = energy.energy_and_gradient(x, create_graph=True)
        parts = [
            sum_event(v * _hessian_product(gradient, x, v, keep_graph), 2)
            for v in torch.split(directions.expand(-1, *x.shape), chunk_size)
        ]
        forms = torch.cat(parts) if len(parts) > 1 else parts[0]
    if not keep_graph:
        energies, gradient = energies.detach(), gradient.detach()
    return energies, gradient, forms


def _hessian_product(gradient: Tensor, x: Tensor, v: Tensor, create_graph: bool) -> Tensor:
    """∇²E v for directions v ``(direction, n, *event)``, by one backward pass."""
    if not gradient.requires_grad:
        return torch.zeros_like(v)
    batched = len(v) > 1
    (product,) = torch.autograd.grad(
        gradient,
        x,
        v if batched else v[0],
        create_graph=create_graph,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=batched,
    )
    return torch.zeros_like(v) if product is None else product.reshape(v.shape)


def sum_event(values: Tensor, n_batch: int = 1) -> Tensor:
    """The sum over all axes but the first ``n_batch``."""
    return values.reshape(*values.shape[:n_batch], -1).sum(-1)


def mean_square(values: Tensor) -> Tensor:
    """Of the elements of each state, ``(n,)``, without a graph."""
    return values.detach().square().reshape(len(values), -1).mean(1)
