"""BlackJAX in `benchmarks/ess.py`: NUTS and HMC by window adaptation, and HMC by ChEES.

Window adaptation has a diagonal mass and its default rates. ChEES estimates a diagonal mass, too
(an option of its own), with the Adam step of its documentation.
"""

from typing import Any

from rivals.ess_cells import LEAPFROGS, WARM_UP, Job
from rivals.ess_jax import Array, Method, State, run  # sets XLA's flags
from rivals.jax_targets import check, log_density
from rivals.protocol import Rival, serve

# isort: split
import blackjax
import jax
import optax
from blackjax.mcmc import dynamic_hmc


def windowed(job: Job) -> Method:
    """NUTS, or HMC with a number of leapfrogs."""
    density = log_density(job.target)
    nuts = job.method == "NUTS"
    algorithm = blackjax.nuts if nuts else blackjax.hmc
    extra = {} if nuts else {"num_integration_steps": LEAPFROGS[-1]}
    adaptation = blackjax.window_adaptation(algorithm, density, **extra)
    kernel = algorithm.build_kernel()

    def adapt(key: Array, x: Array) -> tuple[Any, Array]:
        (state, found), _ = adaptation.run(key, x, num_steps=WARM_UP)
        return {name: found[name] for name in ("step_size", "inverse_mass_matrix")}, state.position

    def step(key: Array, state: State, settings: Any) -> State:
        return kernel(key, state, density, **settings)[0]

    def first(x: Array, settings: Any) -> State:
        return algorithm.init(x, density)

    method = Method(adapt, first, step, lambda state: state.position)
    if nuts:
        return method
    lengths = {f"{n} leapfrogs": {"num_integration_steps": n} for n in LEAPFROGS}
    return method._replace(forms={k: lambda s, v=v: s | v for k, v in lengths.items()})


def chees(job: Job) -> Method:
    """HMC whose length maximises how far the chains' squared distances from their mean jump."""
    density = log_density(job.target)
    adaptation = blackjax.chees_adaptation(density, job.chains, mass_matrix_estimation="diagonal")
    functions: dict[str, Any] = {}  # of the lengths, known once adaptation is traced

    def adapt(key: Array, x: Array) -> tuple[Any, Array]:
        (states, found), _ = adaptation.run(
            key, x, 0.1, optax.adam(0.025), WARM_UP, max_sampling_steps=job.draws
        )
        for name in ("next_random_arg_fn", "integration_steps_fn"):
            functions[name] = found.pop(name)
        return found, states.position

    def step(key: Array, state: State, settings: Any) -> State:
        return dynamic_hmc.build_kernel(**functions)(key, state, density, **settings)[0]

    def first(x: Array, settings: Any) -> State:
        return dynamic_hmc.init(x, density, jax.numpy.asarray(WARM_UP))

    return Method(adapt, first, step, lambda state: state.position, jointly=True)


def job(method: str, target: str, chains: int, **options: Any) -> Any:
    """One job; see `rivals.ess_jax.run`."""
    make = chees if method == "ChEES" else windowed
    return {"runs": run(make, Job(method, target, chains), **options)}


if __name__ == "__main__":
    packages = ("blackjax", "jax", "jaxlib", "numpy")
    serve(Rival(lambda cell: {}, packages, {"job": job, "densities": check}))
