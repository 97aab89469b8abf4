"""Starts for chains of an energy of which nothing is known.

Normals spread the chains; those outside the support are drawn again at other scales; and a descent
with step control takes them from where energies are enormous to where the target's mass may be. It
ends long before chains meet at a mode: a chain stops when a dozen steps win less than half a nat a
dimension, which is about what a typical draw lies above the mode. A narrow place far below the rest
of a target still gets all chains, whatever its share of the mass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebm_core import ConfigurationError, EnergyFunction, NumericalError, evaluation_mode
from ebm_core.energy import misfits_explained
from ebm_samplers.noise import fill_normals
from ebm_samplers.states import per_chain
from ebm_samplers.streams import Stream

SCALES = (1.0, 0.3, 0.1, 0.03, 3.0, 10.0, 0.01, 30.0, 0.001, 100.0)
"""Standard deviations at which starts are drawn, until energies are finite."""
ROUNDS = 4
"""Times that each scale is tried."""
PATIENCE = 10
"""Descents between two looks at what they won."""
LONGEST = 100
"""Descents at most."""


@dataclass(frozen=True, eq=False)
class Starts:
    """Where chains begin.

    Attributes:
        x: ``(chain, *event)``, of finite energy and gradient.
        n_redrawn: Chains whose first start was not finite, or outside the support.
        n_moved: Chains that were taken downhill.
        n_gradients: Gradients of single states that it took.
    """

    x: Tensor
    n_redrawn: int
    n_moved: int
    n_gradients: int


def find_starts(energy: EnergyFunction, like: Tensor, key: int) -> Starts:
    """Starts from N(0, I), as far as the energy allows.

    Args:
        energy: E.
        like: A tensor of the shape, dtype and device wanted, ``(chain, *event)``.
        key: Of the random stream.

    Raises:
        NumericalError: If no state with finite energy and gradient is found for a chain.
    """
    x = torch.empty_like(like)
    d = x[0].numel()
    with evaluation_mode(energy), torch.no_grad():
        n_gradients, redrawn = len(x), 0
        missing = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for i in range(ROUNDS * len(SCALES)):
            draw = torch.empty_like(like)
            fill_normals(draw.view(len(x), -1), key, Stream.START, 0, i * d)
            draw *= SCALES[i % len(SCALES)]
            x = torch.where(_wide(missing, x), draw, x)
            missing = ~(_finite(energy, x) & inside(energy, x))
            if i == 0:
                redrawn = int(missing.sum())
            n_gradients += len(x)
            if not missing.any():
                break
        else:
            failed = int(missing.sum())
            raise NumericalError(
                f"energies or gradients of {failed} of {len(x)} starts are not finite, drawn from "
                f"N(0, s²) with s from {min(SCALES)} to {max(SCALES)}",
                "a support that such draws meet",
                "pass x_init, states of finite energy",
            )
        lower, spent = descend(energy, x)
        moved = int((lower != x).reshape(len(x), -1).any(1).sum())
    return Starts(lower, redrawn, moved, n_gradients + spent)


def inside(energy: EnergyFunction, x: Tensor) -> Tensor:
    """Which states are in the support that the energy declares, ``(chain,)``."""
    support: Any = energy.support  # whose methods have no annotations
    inside: Tensor = support.check(x).reshape(len(x), -1).all(1)
    return inside


def require_repeatable(energy: EnergyFunction, x: Tensor) -> None:
    """Refuse energies that give other values for the same states.

    Raises:
        ConfigurationError: If they do.
    """
    with evaluation_mode(energy), torch.no_grad(), misfits_explained(energy, x):
        first, second = energy(x), energy(x)
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise ConfigurationError(
            "the energy gave two different values for the same state",
            "an energy that is a function of the state",
            "switch its randomness off: pass the module itself, or name it in as_energy(f, module),"
            " so that dropout is off",
        )


def descend(energy: EnergyFunction, x: Tensor) -> tuple[Tensor, int]:
    """Each chain downhill to less than d nats above where descent ends, d elements a state.

    Typical draws lie d/2 above the mode of a Gaussian: a chain that starts so low does not move.

    Args:
        energy: E.
        x: States of finite energy and gradient, ``(chain, *event)``.

    Returns:
        States, and the number of gradients taken.
    """
    d = x[0].numel()
    _, bottom, n = _down(energy, x, None)
    start = energy.energy_and_gradient(x)[0]
    if (start <= bottom + d).all():
        return x, (n + 1) * len(x)
    x, _, again = _down(energy, x, bottom + d)
    return x, (n + again + 1) * len(x)


def _down(energy: EnergyFunction, x: Tensor, stop: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """Gradient descent of each chain by itself, whose steps grow where they win.

    Args:
        energy: E.
        x: Where to begin.
        stop: Energies at which chains stop; None to go on until little is won.

    Returns:
        States, their energies, and how many gradients of all chains it took.
    """
    level, gradient = energy.energy_and_gradient(x)
    norm = per_chain(gradient.square()).sqrt()
    step = 0.1 / norm.clamp(min=1e-30)
    before, n = level, 0
    while n < LONGEST:
        going = norm > 0 if stop is None else (norm > 0) & (level > stop)
        if not going.any():
            break
        n += 1
        proposal = x - _wide(step * going, x) * gradient
        new, new_gradient = energy.energy_and_gradient(proposal)
        finite = (per_chain(proposal) + new + per_chain(new_gradient)).isfinite()
        better = going & finite & inside(energy, proposal) & (new < level)
        rows = _wide(better, x)
        x, gradient = torch.where(rows, proposal, x), torch.where(rows, new_gradient, gradient)
        level = torch.where(better, new, level)
        step = step * torch.where(better, 1.6, 0.25)
        if n % PATIENCE == 0:
            if stop is None and (before - level < x[0].numel() / 10).all():
                break
            before = level
    return x, level, n + 1


def _finite(energy: EnergyFunction, x: Tensor) -> Tensor:
    level, gradient = energy.energy_and_gradient(x)
    return (level + per_chain(gradient)).isfinite()


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """``(chain,)`` as ``(chain, 1, …)``."""
    return values.view(-1, *(1,) * (x.ndim - 1))
