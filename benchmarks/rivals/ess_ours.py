"""This project in `benchmarks/ess.py`: ``warm_up``, then ``sample``, with the engine they pick.

Of more than 64 chains the first 64 are warmed up; all then make a burn-in with what these learned.
"""

from time import perf_counter
from typing import Any

import numpy as np
import torch
from targets import TARGETS

from ebm_samplers import NUTS, HamiltonianMonteCarlo, MarkovSampler, warm_up
from rivals.ess_cells import BURN_IN, LEARNERS, WARM_UP, Job
from rivals.protocol import THREADS, Rival, repeated, serve


def sampler_of(job: Job) -> MarkovSampler:
    """The sampler of a job, as it is before warm-up."""
    energy = TARGETS[job.target].energy
    return NUTS(energy, 0.1) if job.method == "NUTS" else HamiltonianMonteCarlo(energy, 0.1, 10)


def job(
    method: str, target: str, chains: int, seed: int, patience: float, out: str
) -> dict[str, Any]:
    """All of a job; the first, shorter round compiles what there is to compile.

    Args:
        method: One of `rivals.ess_cells.METHODS`.
        target: Name of a target.
        chains: Number of chains.
        seed: Of everything.
        patience: Seconds after which the job is not done again.
        out: Where draws go.

    Returns:
        Seconds of compilation, warm-up and drawing, and the file of the draws.
    """
    wanted, sampler = Job(method, target, chains), sampler_of(Job(method, target, chains))
    x = torch.randn(chains, TARGETS[target].dim, generator=torch.Generator().manual_seed(seed))

    def once(n_warm_up: int, n_draws: int, seed: int) -> tuple[float, float, Any]:
        begin = perf_counter()
        warm = warm_up(sampler, x[:LEARNERS], n_steps=n_warm_up, seed=seed)
        start = warm.x
        if chains > LEARNERS:
            start = warm.sampler.sample(x, n_steps=BURN_IN, seed=seed + 2).final
        middle = perf_counter()
        result = warm.sampler.sample(start, n_steps=n_draws, keep="trajectory", seed=seed + 1)
        return middle - begin, perf_counter() - middle, result

    begin = perf_counter()
    once(WARM_UP // 5, min(10, wanted.draws), seed + 2)
    first = perf_counter() - begin
    warm, draw, result = repeated(lambda: once(WARM_UP, wanted.draws, seed), patience)
    np.save(f"{out}-0.npy", result.trajectory.numpy())
    entry = {"form": "", "file": f"{out}-0.npy", "compile": first, "warm": warm, "draw": draw}
    return {"runs": [entry], "note": str(sampler.explain(x)).splitlines()[0]}


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    packages = ("ebm-core", "ebm-energies", "ebm-models", "ebm-samplers", "torch", "numba", "numpy")
    serve(Rival(lambda cell: {}, packages, {"job": job}))
