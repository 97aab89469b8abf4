"""How fast normals alone are made: the ceiling of every sampler that needs them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import torch

from ebm_samplers import LangevinDynamics, Stream, fill_normals
from rivals.protocol import THREADS, seconds_of

DIM = 2
AT_ONCE = 2**16
CPU = torch.device("cpu")


def walk_rate(chains: int, seconds: float, device: torch.device = CPU) -> float:
    """Normals per second of a random walk: unadjusted Langevin on an energy of zero.

    The nearest to normals alone that kernels make: one addition for each.
    """
    sampler = LangevinDynamics(lambda x: 0.0 * x.sum(1))
    x = torch.zeros(chains, DIM, device=device)

    def run(n_steps: int) -> None:
        sampler.sample_chain(x, n_steps)
        _wait(device)

    return _rate(run, chains * DIM, seconds)


def fill_rate(chains: int, seconds: float, device: torch.device = CPU) -> float:
    """Normals per second, all threads together, of `fill_normals` into a tensor that stays."""
    length = max(4, AT_ONCE // chains)
    tensors = [torch.empty(chains, length, device=device) for _ in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:

        def run(repeats: int) -> None:
            list(pool.map(fill, tensors, [repeats] * THREADS))
            _wait(device)

        def fill(out: torch.Tensor, repeats: int) -> None:
            for index in range(repeats):
                fill_normals(out, 0, Stream.NOISE, 0, index * length)

        return _rate(run, THREADS * chains * length, seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rate(run: Callable[[int], object], normals: int, seconds: float) -> float:
    repeats = 1
    while min(seconds_of(run, repeats) for _ in range(2)) < 0.05 * seconds:
        repeats *= 4
    taken = median(seconds_of(run, repeats) for _ in range(7))
    return normals * repeats / taken
