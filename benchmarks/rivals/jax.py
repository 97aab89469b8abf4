"""A loop written by hand in JAX: analytic gradients of the whole batch, `lax.scan`, one program.

Random numbers come from `jax.random` in blocks of some steps: many with one chain (where a call of
the generator would be all the time of a step), few with 10,000 (where a block should stay in
cache). The README of the benchmarks says what else was tried.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from rivals.cells import LEAPFROGS, Cell
from rivals.protocol import THREADS, Build, Program, Rival, serve

os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_prefer_vector_width=512",  # the default of 256 is up to a third slower here
        f"--xla_force_host_platform_device_count={THREADS}",
        *(("--xla_cpu_multi_thread_eigen=false",) if THREADS == 1 else ()),
    )
)

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rivals.jax_energies import ENERGIES, Array, Vector, each

State = Any


class Form(NamedTuple):
    """How the loop is arranged.

    Attributes:
        block: Steps whose random numbers are made at once.
        unroll: Steps of them that are unrolled.
        group: Chains that run together, one group after the other, to stay in cache.
    """

    block: int
    unroll: int
    group: int

    def __str__(self) -> str:
        """For the results."""
        return f"noise of {self.block} steps, {self.unroll} unrolled, groups of {self.group}"


def candidate(cell: Cell) -> Form:
    """The fastest form found for a cell (the README of the benchmarks lists what was tried)."""
    if cell.dim > 2:
        return {1: Form(64, 1, 1), 100: Form(4, 1, 100)}.get(cell.chains, Form(1, 1, 250))
    return {1: Form(1024, 1, 1), 100: Form(64, 1, 100)}.get(cell.chains, Form(1, 1, 10_000))


class Chain(NamedTuple):
    """A sampler on a group of chains; its state may be any tree of arrays, chains last.

    Attributes:
        first: The state at positions ``(dim, chains)``.
        noise: The random numbers of some steps, steps first: of key, steps, chains.
        step: The next state: of state and the random numbers of the step.
        positions: ``(..., dim, chains)`` of a state.
    """

    first: Callable[[Array], State]
    noise: Callable[[Array, int, int], Any]
    step: Callable[[State, Any], State]
    positions: Callable[[State], Array]


def total(*parts: Array) -> Array:
    """Sum over elements, ``(chains,)``, of terms that each belong to a part."""
    return sum(part.sum(0) if part.ndim > 1 else part for part in parts)


def by_hand(cell: Cell) -> Chain:
    """The three methods, on all chains of a group at once."""
    energy, gradient = ENERGIES[cell.target]()
    h = cell.step

    def langevin(state: State, noise: tuple[Vector, Array]) -> State:
        x, z = state[0], noise[0]
        return (each(lambda x, g, z: x - h * g + (2 * h) ** 0.5 * z, x, gradient(x), z),)

    def chosen(accepted: Array, new: State, old: State) -> State:
        return jax.tree.map(lambda n, o: jnp.where(accepted, n, o), new, old)

    def mala(state: State, noise: tuple[Vector, Array]) -> State:
        (x, e, g), (z, log_u) = state, noise
        y = each(lambda x, g, z: x - h * g + (2 * h) ** 0.5 * z, x, g, z)
        new = y, energy(y), gradient(y)
        w = each(lambda g, s: (h / 2) ** 0.5 * (g + s), g, new[2])
        ratio = total(*each(lambda w, z: w * (w / 2 - z), w, z))
        return chosen(log_u < e - new[1] - ratio, new, state)

    def hmc(state: State, noise: tuple[Vector, Array]) -> State:
        (x, e, g), (z, log_u) = state, noise

        def kick(p: Vector, slope: Vector, step: float) -> Vector:
            return each(lambda p, s: p - step * s, p, slope)

        def leapfrog(_: Array, s: tuple[Vector, Vector, Vector]) -> tuple[Vector, Vector, Vector]:
            y = each(lambda y, p: y + h * p, s[0], s[1])
            slope = gradient(y)
            return y, kick(s[1], slope, h), slope

        y, p, slope = lax.fori_loop(0, LEAPFROGS, leapfrog, (x, kick(z, g, h / 2), g))
        p = kick(p, slope, -h / 2)  # the last one is half a kick
        new = y, energy(y), slope
        kinetic = 0.5 * total(*each(lambda p, z: p * p - z * z, p, z))
        return chosen(log_u < e - new[1] - kinetic, new, state)

    def first(x: Array) -> State:
        x = parts(x, 0)
        return (x,) if cell.method == "ULA" else (x, energy(x), gradient(x))

    def noise(key: Array, steps: int, chains: int) -> tuple[Vector, Array]:
        key_z, key_u = jax.random.split(key)
        z = jax.random.normal(key_z, (steps, cell.dim, chains))
        return parts(z, 1), jnp.log(jax.random.uniform(key_u, (steps, chains)))

    def positions(state: State) -> Array:
        return jnp.stack(state[0], -2) if cell.dim == 2 else state[0][0]

    step = {"ULA": langevin, "MALA": mala, "HMC": hmc}[cell.method]
    return Chain(first, noise, step, positions)


def parts(x: Array, axis: int) -> Vector:
    """The vector of an array whose elements lie along an axis."""
    return tuple(jnp.moveaxis(x, axis, 0)) if x.shape[axis] == 2 else (x,)


def program(cell: Cell, chain: Chain, form: Form, devices: int = 1) -> Program:
    """A cell in a form, its groups of chains spread over host devices."""
    group = min(form.group, cell.chains // devices)

    def unit(_: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
        state, key = carry
        key, sub = jax.random.split(key)
        noise = chain.noise(sub, form.block, group)
        state, _ = lax.scan(lambda s, n: (chain.step(s, n), None), state, noise, unroll=form.unroll)
        return state, key

    def advance(groups: tuple[State, Array], n_units: Array) -> tuple[State, Array]:
        return lax.map(lambda carry: lax.fori_loop(0, n_units, unit, carry), groups)

    def begin(x: Array, keys: Array) -> tuple[State, Array]:
        return lax.map(chain.first, x), keys

    shape = (cell.chains // group, cell.dim, group)
    start = jnp.full(shape, cell.start, jnp.float32)
    keys = jax.random.split(jax.random.key(0), len(start))
    if devices == 1:
        run_all, run_start = jax.jit(advance), jax.jit(begin)
    else:
        run_all, run_start = jax.pmap(advance, in_axes=(0, None)), jax.pmap(begin)
        start, keys = (a.reshape(devices, -1, *a.shape[1:]) for a in (start, keys))
    chains = {"now": run_start(start, keys)}

    def run(n_units: int) -> None:
        chains["now"] = jax.block_until_ready(run_all(chains["now"], n_units))

    def reset() -> None:
        chains["now"] = run_start(start, chains["now"][1])

    def states() -> list[list[float]]:
        x = np.asarray(chain.positions(chains["now"][0])).reshape(shape)
        return np.moveaxis(x, 1, 2).reshape(-1, cell.dim).tolist()

    return Program(run, reset, states, form.block)


def forms(cell: Cell) -> dict[str, Build]:
    """On one host device; where there are cores and chains for more, also on several."""
    form = candidate(cell)
    return {
        f"{form}, {n} device(s)": lambda n=n: program(cell, by_hand(cell), form, n)
        for n in sorted({1, THREADS if cell.chains > 1 else 1}, reverse=True)
    }


if __name__ == "__main__":
    serve(Rival(forms, ("jax", "jaxlib", "numpy")))
