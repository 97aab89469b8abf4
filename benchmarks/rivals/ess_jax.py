"""The loop of the JAX rivals in `benchmarks/ess.py`: adapt, burn in, draw.

Each part is compiled before it is timed. One chain adapts (window adaptation, as the libraries have
it; ChEES takes all), then all chains run with what it found, mapped over chains by `jax.vmap` and,
with more cores, over as many host devices by `jax.pmap`. Draws come in blocks from `lax.scan`.
"""

import functools
import os
from collections.abc import Callable, Mapping
from time import perf_counter
from types import MappingProxyType
from typing import Any, NamedTuple

from rivals.ess_cells import BURN_IN, Job
from rivals.protocol import THREADS, repeated

os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_prefer_vector_width=512",
        f"--xla_force_host_platform_device_count={THREADS}",
        *(("--xla_cpu_multi_thread_eigen=false",) if THREADS == 1 else ()),
    )
)

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rivals.jax_targets import log_density

Array = Any
State = Any


class Method(NamedTuple):
    """A sampler.

    Attributes:
        adapt: Settings and last positions, of key and start: of one chain, ``(dim,)``, or of all,
            ``(chains, dim)``, if ``jointly``.
        first: The state of one chain at a position, with settings.
        step: The next state of one chain: of key, state, settings.
        position: ``(dim,)``, of a state.
        forms: What makes settings of those that were adapted, by name; each is run.
        jointly: Whether all chains adapt.
    """

    adapt: Callable[[Array, Array], tuple[Any, Array]]
    first: Callable[[Array, Any], State]
    step: Callable[[Array, State, Any], State]
    position: Callable[[State], Array]
    forms: Mapping[str, Callable[[Any], Any]] = MappingProxyType({"": lambda settings: settings})
    jointly: bool = False


def compiled(f: Any, *arguments: Any) -> tuple[Callable[..., Any], float]:
    """A jitted or mapped function, compiled for arguments like these, and what that took."""
    begin = perf_counter()
    return f.lower(*arguments).compile(), perf_counter() - begin


def timed(f: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """A result that is there, and what it took."""
    begin = perf_counter()
    result = jax.block_until_ready(f(*arguments))
    return result, perf_counter() - begin


@functools.cache
def adapting(
    make: Callable[[Job], Method], job: Job, shape: tuple[int, ...]
) -> tuple[Method, Callable[..., Any], float]:
    """A method, and its adaptation from starts of this shape, with the time to compile it."""
    method = make(job)
    return method, *compiled(jax.jit(method.adapt), jax.random.key(0), jnp.zeros(shape))


def run(make: Callable[[Job], Method], job: Job, seed: int, patience: float, out: str) -> Any:
    """All of a job.

    Args:
        make: Makes the method of a job.
        job: Which.
        seed: Of everything.
        patience: Seconds of burn-in, and of drawing, after which no further block begins.
        out: Where draws go, ``(chain, draw, dim)``, one file for each form.

    Returns:
        For each form its name, file, and seconds of compilation, warm-up and drawing.
    """
    jointly, one = job.method == "ChEES", job.chains == 1
    dim = log_density(job.target).dim
    key, start_key, adapt_key, burn_key, draw_key = jax.random.split(jax.random.key(seed), 5)
    starts = jax.random.normal(start_key, (job.chains, dim))
    x = starts if jointly else starts[0]
    adapts = job if jointly else Job(job.method, job.target, 1)  # the same for all numbers
    method, adapt, compiling = adapting(make, adapts, x.shape)
    devices = THREADS if job.chains >= THREADS > 1 else 1
    first, draw = programs(method, job, devices)
    programs_of: dict[str, Any] = {}

    def once(choose: Callable[[Any], Any]) -> tuple[float, float, Array]:
        """The job with one form of the settings; its parts are compiled at the first time."""
        (settings, positions), warming = timed(adapt, adapt_key, x)
        settings, drawing, drawn = choose(settings), 0.0, []
        at = jnp.reshape(positions if jointly or one else starts, (devices, -1, dim))
        keys = jax.random.split(key, devices)
        if not programs_of:
            programs_of["first"], a = compiled(first, at, settings)
            state = programs_of["first"](at, settings)
            programs_of["draw"], b = compiled(draw, keys, state, settings)
            programs_of["seconds"] = compiling + a + b
        state, seconds = timed(programs_of["first"], at, settings)
        warming += seconds

        def block(key: Array, i: int) -> tuple[Array, float]:
            nonlocal state
            keys = jax.random.split(jax.random.fold_in(key, i), devices)
            (state, x), seconds = timed(programs_of["draw"], keys, state, settings)
            return x, seconds

        for i in range(0 if jointly or one else BURN_IN // job.block):
            if warming < patience:
                warming += block(burn_key, i)[1]
        for i in range(job.draws // job.block):
            if drawing < patience or len(drawn) < 2:
                x_new, seconds = block(draw_key, i)
                drawn.append(np.asarray(x_new))  # (device, draw, chain, dim)
                drawing += seconds
        draws = np.concatenate(drawn, 1).transpose(0, 2, 1, 3).reshape(job.chains, -1, dim)
        return warming, drawing, draws

    found = []
    for name, choose in method.forms.items():
        warming, drawing, draws = repeated(functools.partial(once, choose), patience)
        path = f"{out}-{len(found)}.npy"
        np.save(path, draws)
        entry = {"form": name, "file": path, "compile": programs_of["seconds"]}
        found.append({**entry, "warm": warming, "draw": drawing})
    return found


def programs(method: Method, job: Job, devices: int) -> tuple[Any, Any]:
    """Jitted: states at positions; states and draws after a block."""

    def step(settings: Any, state: State, key: Array) -> State:
        keys = jax.random.split(key, job.chains // devices)
        return jax.vmap(method.step, in_axes=(0, 0, None))(keys, state, settings)

    def first(x: Array, settings: Any) -> State:
        return jax.vmap(method.first, in_axes=(0, None))(x, settings)

    def block(key: Array, state: State, settings: Any) -> tuple[State, Array]:
        def once(s: State, k: Array) -> tuple[State, Array]:
            s = step(settings, s, k)
            return s, jax.vmap(method.position)(s)

        return lax.scan(once, state, jax.random.split(key, job.block))

    if devices > 1:
        return jax.pmap(first, in_axes=(0, None)), jax.pmap(block, in_axes=(0, 0, None))
    over = jax.vmap(first, in_axes=(0, None)), jax.vmap(block, in_axes=(0, 0, None))
    return jax.jit(over[0]), jax.jit(over[1])
