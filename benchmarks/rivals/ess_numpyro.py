"""NumPyro's NUTS in `benchmarks/ess.py`, by its functions `init_kernel` and `sample_kernel`.

Its warm-up has the defaults of its class `NUTS` (diagonal mass, acceptance 0.8). Further chains
take over what one chain has adapted to.
"""

from typing import Any

from rivals.ess_cells import WARM_UP, Job
from rivals.ess_jax import Array, Method, State, run  # sets XLA's flags
from rivals.jax_targets import check, log_density
from rivals.protocol import Rival, serve

# isort: split
import jax
from jax import lax
from numpyro.infer.hmc import hmc


def nuts(job: Job) -> Method:
    """NUTS; its settings are the state of a chain that has adapted."""
    density = log_density(job.target)
    init_kernel, sample_kernel = hmc(lambda x: -density(x), algo="NUTS")

    def adapt(key: Array, x: Array) -> tuple[Any, Array]:
        state = init_kernel(x, num_warmup=WARM_UP, rng_key=key)
        state = lax.fori_loop(0, WARM_UP, lambda _, s: sample_kernel(s), state)
        return state, state.z

    def first(x: Array, settings: Any) -> State:
        energy, gradient = jax.value_and_grad(lambda y: -density(y))(x)
        return settings._replace(z=x, z_grad=gradient, potential_energy=energy)

    def step(key: Array, state: State, settings: Any) -> State:
        return sample_kernel(state._replace(rng_key=key))

    return Method(adapt, first, step, lambda state: state.z)


def job(method: str, target: str, chains: int, **options: Any) -> Any:
    """One job; see `rivals.ess_jax.run`."""
    return {"runs": run(nuts, Job(method, target, chains), **options)}


if __name__ == "__main__":
    packages = ("numpyro", "jax", "jaxlib", "numpy")
    serve(Rival(lambda cell: {}, packages, {"job": job, "densities": check}))
