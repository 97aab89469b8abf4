"""What takes more chains, or larger energies, than the simulator can run: `nox -s ptx`.

Kernels are compiled as for a device, and their PTX runs on the emulated one of `emulated`.
"""

import math
import os

import pytest
import torch
from targets import TARGETS

from ebm_core import as_energy
from ebm_samplers.fused.cuda._backend import simulated
from ebm_samplers.fused.cuda.energy import CudaEnergy
from ebm_samplers.fused.engine import FusedEnergy

pytestmark = [
    pytest.mark.skipif(simulated() or not os.environ.get("EBM_PTX"), reason="run by nox -s ptx"),
    pytest.mark.usefixtures("emulated"),
]
KEY = 2**40 + 12345
STEP = {"dense gaussian": 0.01, "logistic": 0.002}


def both(energy, x, sampler, **settings):
    """The same run by the CPU's kernel and by the device's."""
    engines = FusedEnergy(energy, x), CudaEnergy(energy, x)
    return [e.run(sampler, e.flat(x), key=KEY, **settings) for e in engines]


@pytest.mark.parametrize("sampler", ("langevin", "underdamped", "mala", "hmc", "nuts"))
@pytest.mark.parametrize("name", ("dense gaussian", "logistic", "perceptron"))
def test_large_energies(name, sampler):
    make, shape = TARGETS[name]
    x = 0.7 * torch.randn(700, *shape, generator=torch.Generator().manual_seed(0))
    h = STEP.get(name, 0.02)
    want, have = both(
        as_energy(make(torch.float32)), x, sampler,
        n_steps=5, lengths=4, step_size=h if sampler in ("langevin", "mala") else math.sqrt(h),
        friction=0.7 if sampler == "underdamped" else None,
    )  # fmt: skip
    a, b = torch.as_tensor(want.state), have.state
    apart = ((a - b).abs() > 1e-3 * (1 + a.abs())).any(1)
    assert apart.sum() <= 2  # accept tests within rounding of their uniforms


@pytest.mark.parametrize("sampler", ("mala", "hmc", "nuts"))
def test_what_is_not_finite_is_rejected_by_each_of_many_chains(sampler):
    """Compilers told that numbers are finite remove tests, in some shapes of loops only."""
    x = 3 * torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    energy = as_energy(lambda x: (x**4).sum(1))
    want, have = both(energy, x, sampler, n_steps=4, step_size=2.0, lengths=6)
    diverged = torch.as_tensor(want.statistics[2])
    assert (diverged > 0).sum() > 9000
    assert torch.equal(diverged, have.statistics[2])
    assert have.state.isfinite().all()
    apart = (torch.as_tensor(want.state) - have.state).abs() > 1e-3 * (1 + have.state.abs())
    assert apart.any(1).sum() <= 2


def test_moments():
    energy, n = as_energy(lambda x: x.square().sum(1) / 2), 20_000
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    for sampler, step_size in (("mala", 0.5), ("hmc", 0.7), ("nuts", 0.7)):
        cuda = CudaEnergy(energy, x)
        run = cuda.run(sampler, cuda.flat(x), n_steps=20, step_size=step_size, lengths=4, key=KEY)
        for power, value, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
            z = (run.state[:, :2] ** power).mean(0).sub(value) * math.sqrt(n / variance)
            assert z.abs().max() < 4.5
