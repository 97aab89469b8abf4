"""A floor in `benchmarks/training.py`: a step's large products of matrices, and Adam.

A gradient by states takes two products with the matrix between the hidden layers, a loss with its
backward pass three. They are made one after the other by either of torch's two libraries;
activations, the thin outer layers, noise and autograd are left out.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ebm_samplers.fused.matrices import rows_by_rows
from rivals.density_training import Loss
from rivals.training_cells import BATCH, K_STEPS
from rivals.training_steps import work

EVALUATIONS = {"CD-10": (K_STEPS, 2 * BATCH), "PCD-10": (K_STEPS, 2 * BATCH)}
"""Gradients of a batch by states, and states of the loss."""


class Prepared(torch.autograd.Function):
    """Zero, whose backward pass has gradients ready."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        """Of all parameters."""
        ctx.gradients = [torch.full_like(parameter, 1e-6) for parameter in parameters]
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        """As they were made."""
        return tuple(ctx.gradients)


def products(
    objective: str, product: Callable[[Tensor, Tensor], Tensor], network: nn.Module
) -> tuple[Loss, Iterable[nn.Parameter]]:
    """A loss that makes the products alone."""
    n_gradients, n_states = EVALUATIONS[objective]
    parameters = list(network.parameters())
    (weight,) = (p.detach() for p in parameters if p.ndim == 2 and min(p.shape) > 2)
    chains, states = torch.randn(BATCH, len(weight)), torch.randn(n_states, len(weight))
    turned = states.t().contiguous()

    def loss(x: Tensor) -> Tensor:
        for _ in range(2 * n_gradients):
            product(chains, weight)
        for _ in range(2):
            product(states, weight)
        product(turned, turned)
        zero: Tensor = Prepared.apply(*parameters)  # type: ignore[no-untyped-call]
        return zero

    return loss, parameters


LIBRARIES = {"MKL": lambda a, b: a @ b.t(), "oneDNN": rows_by_rows}
FORMS = {
    objective: {
        name: lambda n, o=objective, p=product: products(o, p, n)
        for name, product in LIBRARIES.items()
    }
    for objective in EVALUATIONS
}

if __name__ == "__main__":
    work(FORMS, ("torch",))
