"""BlackJAX: ``sgld`` (with the full gradient: unadjusted Langevin), ``mala`` and ``hmc``.

One jitted program: `lax.scan` over keys, as its documentation advises, with the kernel mapped over
chains by `jax.vmap`, in the loop of the JAX rival (blocks, groups of chains, host devices).
Gradients are automatic, from the energies of that rival; the derivative of the 100-D Gaussian is
given, because the automatic one needs two matrix products.

For ``sgld`` there is a second form: all chains are one state, and one call of the generator serves
them all.
"""

from collections.abc import Callable
from typing import Any

from rivals import jax as written  # sets XLA's flags
from rivals.cells import LEAPFROGS, Cell
from rivals.jax import Chain, Form
from rivals.protocol import THREADS, Build, Rival, serve

# isort: split
import blackjax
import jax
import jax.numpy as jnp

from rivals.jax_energies import ENERGIES, Array

BLOCKS = {1: 1024, 100: 16, 10_000: 1}
"""Steps whose keys are split at once."""


def log_density(target: str) -> Callable[[Array], Array]:
    """log p of a state ``(dim,)``, or of states ``(dim, chains)``."""
    energy, gradient = ENERGIES[target]()
    if target != "AR .9, 100-D":
        return lambda x: -energy(tuple(x))

    @jax.custom_vjp
    def density(x: Array) -> Array:
        return -energy((x,))

    def forward(x: Array) -> tuple[Array, Array]:
        (slope,) = gradient((x,))
        return -0.5 * (x * slope).sum(0), slope

    density.defvjp(forward, lambda slope, cotangent: (-cotangent * slope,))
    return density


def algorithm(cell: Cell) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """First state of one chain at x; its next state: of state and key."""
    density = log_density(cell.target)
    if cell.method == "ULA":
        sgld = blackjax.sgld(lambda x, _: jax.grad(density)(x))
        return sgld.init, lambda x, key: sgld.step(key, x, 0, cell.step)
    if cell.method == "MALA":
        chosen = blackjax.mala(density, cell.step)
    else:
        chosen = blackjax.hmc(density, cell.step, jnp.ones(cell.dim), LEAPFROGS)
    return chosen.init, lambda state, key: chosen.step(key, state)[0]


def mapped(cell: Cell) -> Chain:
    """The kernel mapped over chains."""
    first, step = algorithm(cell)
    return Chain(
        jax.vmap(first, in_axes=-1),
        lambda key, steps, chains: jax.random.split(key, (steps, chains)),
        jax.vmap(step),
        lambda state: jnp.moveaxis(getattr(state, "position", state), -2, -1),
    )


def joint(cell: Cell) -> Chain:
    """``sgld`` with the chains ``(dim, chains)`` of a group as one state."""
    density = log_density(cell.target)
    sgld = blackjax.sgld(lambda x, _: jax.grad(lambda y: density(y).sum())(x))
    return Chain(
        lambda x: x,
        lambda key, steps, chains: jax.random.split(key, steps),
        lambda x, key: sgld.step(key, x, 0, cell.step),
        lambda x: x,
    )


def forms(cell: Cell) -> dict[str, Build]:
    """Candidates; on as many host devices as there are cores, if there are chains for them."""
    kinds = {"mapped": lambda: mapped(cell)}
    if cell.method == "ULA" and cell.chains > 1:
        kinds["one state"] = lambda: joint(cell)
    form = Form(BLOCKS[cell.chains], 1, 10_000 if cell.dim == 2 else 250)
    devices = THREADS if cell.chains > 1 else 1
    return {
        f"{name}, {form}, {devices} device(s)": lambda kind=kind: written.program(
            cell, kind(), form, devices
        )
        for name, kind in kinds.items()
    }


if __name__ == "__main__":
    serve(Rival(forms, ("blackjax", "jax", "jaxlib", "numpy")))
