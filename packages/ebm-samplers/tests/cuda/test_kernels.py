"""CUDA kernels against the CPU's, without a device, in one of two ways.

`nox -s cudasim` runs them as Python, in numba.cuda's simulator; `nox -s ptx` compiles them for a
device, and runs their PTX on the emulated one of `emulated`.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from targets import TARGETS, DoubleWell, dense_gaussian, funnel

from ebm_core import as_energy
from ebm_samplers import (
    MALA,
    NUTS,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    UnderdampedLangevin,
    fuse,
    without_graphs,
)
from ebm_samplers.fused.cuda._backend import simulated
from ebm_samplers.fused.cuda.energy import CudaEnergy
from ebm_samplers.fused.engine import FusedEnergy
from ebm_samplers.fused.kernel import counts
from ebm_samplers.fused.noise import fill_rows
from ebm_samplers.philox import philox4x32

pytestmark = [
    pytest.mark.skipif(
        not (simulated() or os.environ.get("EBM_PTX")),
        reason="run by nox -s cudasim and nox -s ptx",
    ),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]
KEY, FIRST = 2**40 + 12345, 7
CLOSE = {torch.float32: 2e-5, torch.float64: 1e-12}
SAMPLERS = ("langevin", "underdamped", "mala", "hmc", "nuts")
ENERGIES = {
    **{name: TARGETS[name] for name in ("double well", "rosenbrock", "mixture", "images")},
    "funnel": (lambda dtype: funnel, (3,)),
    "powers": (lambda dtype: lambda x: ((0.4 * x) ** 18 + (x.abs() + 1) ** 2.5).sum(1), (2,)),
    "dense gaussian": (lambda dtype: dense_gaussian(12, dtype), (12,)),
}
STEP = {"rosenbrock": 1e-4, "mixture": 0.01, "dense gaussian": 0.05}


@pytest.fixture(autouse=True, scope="module")
def device(request):
    """What runs kernels: the simulator, or the emulated device."""
    if not simulated():
        request.getfixturevalue("emulated")


@pytest.fixture
def on_cuda(monkeypatch):
    """States on the CPU are treated as if they were on a CUDA device."""
    monkeypatch.setattr("ebm_samplers.fused.lookup.kernels_for", lambda device: CudaEnergy)


def energies(name, dtype=torch.float32):
    make, shape = ENERGIES[name]
    energy = as_energy(make(dtype))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return energy, x, FusedEnergy(energy, x), CudaEnergy(energy, x)


def runs(name, sampler, dtype=torch.float32, n=6, **more):
    """The same run by both kernels."""
    _, x, cpu, cuda = energies(name, dtype)
    settings = {
        "n_steps": n, "step_size": STEP.get(name, 0.05), "key": KEY, "first_chain": FIRST,
        "first_step": 3, "lengths": 3, "thin": 1, "keep_draws": True,
        "friction": 0.7 if sampler == "underdamped" else None, **more,
    }  # fmt: skip
    return [e.run(sampler, e.flat(x), **settings) for e in (cpu, cuda)]


def same(want, have, dtype=torch.float32):
    for field in ("state", "draws", "statistics", "notes"):
        a, b = torch.as_tensor(getattr(want, field)), getattr(have, field)
        assert a.shape == b.shape
        scale = 1 + a.abs()
        assert ((a - b).abs() <= 20 * CLOSE[dtype] * scale).all(), field
    assert np.array_equal(want.wild, have.wild)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("uniform", (True, False))
def test_the_same_numbers(dtype, uniform):
    from ebm_samplers.fused.cuda.noise import fill_rows as fill_rows_cuda

    want, have = torch.empty(3, 11, dtype=dtype), torch.empty(3, 11, dtype=dtype)
    first = 2**34 - 3  # the index goes on into its second word
    fill_rows(want.numpy(), uniform, KEY, 2, FIRST, first)
    fill_rows_cuda(have, uniform, KEY, 2, FIRST, first)
    if uniform:
        assert torch.equal(want, have)
        n = np.arange(first, first + 11, dtype=np.uint64)
        block = n // 4
        counter = np.stack([np.full(11, FIRST), block % 2**32, block >> 32, np.full(11, 2)], 1)
        words = philox4x32(counter.astype(np.uint64), [KEY % 2**32, KEY >> 32])
        words = words[np.arange(11), n.astype(int) % 4]
        assert np.array_equal(have[0].numpy(), ((words >> 9) + 0.5) * 2.0**-23)
    else:
        torch.testing.assert_close(have, want, rtol=0, atol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize(
    ("step", "ahead", "length"), ((0, 0, 3), (5, 2, 7), (2**33, 1, 4), (3, 0, 1), (1, 1, 5))
)
def test_numbers_whose_place_lies_in_memory(step, ahead, length, dtype):
    from ebm_samplers.fused.cuda.noise import fill_placed, move

    key = 2**63 + KEY
    place = torch.tensor([key - 2**64, FIRST, step])
    first = (step + ahead) * length
    for uniform in (False, True):
        want, have = torch.empty(3, length, dtype=dtype), torch.full((3, length), 9.0, dtype=dtype)
        fill_rows(want.numpy(), uniform, key, 2, FIRST, first)
        fill_placed(have, uniform, 2, place, ahead)
        torch.testing.assert_close(have, want, rtol=0, atol=0 if uniform else CLOSE[dtype])
    x, velocity = torch.randn(2, 3, length, dtype=dtype)
    fill_rows(want.numpy(), False, key, 2, FIRST, first)
    torch.testing.assert_close(
        move(x, velocity, 0.3, 0.7, 2, place, ahead), x - 0.3 * velocity + 0.7 * want
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ENERGIES)
def test_the_same_chains(name, sampler):
    same(*runs(name, sampler))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ("double well", "funnel"))
def test_the_same_chains_in_float64(name, sampler):
    same(*runs(name, sampler, torch.float64), torch.float64)


def test_lengths_and_step_sizes_of_each_transition():
    sizes, lengths = np.linspace(0.01, 0.06, 6), np.array([1, 4, 2, 3, 1, 5])
    same(*runs("double well", "hmc", step_size=sizes, lengths=lengths))


@pytest.mark.parametrize("name", ("double well", "funnel", "dense gaussian"))
@pytest.mark.parametrize("dense", (True, False))
def test_masses(name, dense):
    d = int(np.prod(ENERGIES[name][1]))
    root = np.tril(np.full((d, d), 0.1, np.float32)) + np.eye(d, dtype=np.float32)
    mass = root @ root.T if dense else np.full((1, d), 1.5, np.float32)
    root = root if dense else mass**0.5
    inverse = np.linalg.inv(mass) if dense else 1 / mass
    given = {"inverse_mass": inverse.astype(np.float32), "mass_root": root}
    same(*runs(name, "hmc", **given))


@pytest.mark.parametrize("dense", (True, False))
def test_deep_trees(dense):
    """Beyond the uniforms that are made ahead."""
    mass = np.array([[1.2, 0.3], [0.3, 0.8]]) if dense else np.array([[1.2, 0.8]])
    inverse = np.linalg.inv(mass) if dense else 1 / mass
    root = np.linalg.cholesky(mass) if dense else mass**0.5
    given = {"inverse_mass": inverse, "mass_root": root, "lengths": 6, "step_size": 0.02}
    want, have = runs("double well", "nuts", torch.float64, n=2, **given)
    same(want, have, torch.float64)
    assert want.statistics[6].max() > 5


def test_temperatures_and_thinning():
    beta = np.linspace(0.2, 1.2, 5, dtype=np.float32).reshape(-1, 1)
    same(*runs("double well", "mala", beta=beta, thin=3, n=9))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_runs_in_pieces_are_the_run(sampler):
    _, x, _, cuda = energies("double well")
    friction = 0.7 if sampler == "underdamped" else None
    settings = {"step_size": 0.05, "key": KEY, "lengths": 3, "friction": friction}
    whole = cuda.run(sampler, x, n_steps=7, **settings)
    part = cuda.run(sampler, x, n_steps=3, **settings)
    rest = cuda.run(sampler, None, state=part.state, n_steps=4, first_step=3, **settings)
    assert torch.equal(whole.state, rest.state)


def test_one_chain():
    _, x, cpu, cuda = energies("double well")
    settings = {"step_size": 0.05, "key": KEY, "n_steps": 5}
    same(*(e.run("mala", e.flat(x[:1]), **settings) for e in (cpu, cuda)))


def test_energies_alike_share_a_kernel():
    class Tilted(DoubleWell):
        def forward(self, x):
            return super().forward(x) + 0.125 * x.sum(-1)

    kernels, compiled = [], counts["compiled"]
    for height in (2.0, 3.0):
        energy = Tilted(height)
        cuda = CudaEnergy(energy, torch.zeros(1, 2))
        values, _ = cuda.evaluate(x := torch.linspace(-1, 1, 6).view(3, 2))
        torch.testing.assert_close(values, energy(x))
        kernels.append(cuda.kernel("energy", 1))
    assert counts["compiled"] == compiled + 1
    assert [kernel.cached for kernel in kernels] == [False, True]
    assert kernels[0]._jitted is kernels[1]._jitted


def test_parameters_are_followed():
    energy, x, _, cuda = energies("double well")
    before, _ = cuda.evaluate(x)
    with torch.no_grad():
        energy.height.mul_(2)
    after, slopes = cuda.evaluate(x)
    torch.testing.assert_close(after, energy(x))
    torch.testing.assert_close(after, 2 * before)
    torch.testing.assert_close(slopes, energy.gradient(x))


def test_offsets_follow_too():
    energy = DoubleWell(shift=3.0)
    x = torch.zeros(2, 2)
    cuda = CudaEnergy(energy, x)
    assert cuda.parameters("mala", 1)[1] == 3
    energy.shift.fill_(5.0)
    assert cuda.parameters("mala", 1)[1] == 5


def test_states_that_are_not_finite():
    _, _, cpu, cuda = energies("double well")
    x = torch.tensor([[1e20, 0.0], [float("nan"), 1.0], [0.5, 0.5]])
    a, b = (e.run("hmc", e.flat(x), n_steps=3, step_size=0.1, key=1) for e in (cpu, cuda))
    assert np.array_equal(a.wild, b.wild)
    assert np.array_equal(a.notes[2], b.notes[2])


@pytest.mark.parametrize(
    "make",
    (
        lambda e: LangevinDynamics(e, 0.02),
        lambda e: UnderdampedLangevin(e, lambda step: 0.1 / (1 + step), 0.7),
        lambda e: MALA(e, lambda step: 0.05 / (1 + step)),
        lambda e: HamiltonianMonteCarlo(e, 0.1, 3),
        lambda e: HamiltonianMonteCarlo(e, 0.1, 3, mass=torch.tensor([1.0, 2.0])),
        lambda e: NUTS(e, 0.3, 3, mass=torch.tensor([1.0, 2.0])),
        lambda e: MALA(e, 0.05, target_acceptance=0.6),
    ),
)
@pytest.mark.parametrize("keep", ("final", "trajectory", "moments"))
def test_samplers_run_on_it(on_cuda, make, keep):
    x = torch.linspace(-1, 1, 6).view(3, 2)
    settings = {"n_steps": 6, "thin": 2, "keep": keep, "seed": 3}
    sampler = make(DoubleWell())
    assert sampler.explain(x).engine == "fused"
    have = sampler.sample(x, **settings)
    want = make(DoubleWell())
    want.engine = "torch"
    want = want.sample(x, **settings)
    torch.testing.assert_close(have.final, want.final, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(have.potential, want.potential, rtol=1e-3, atol=1e-4)
    assert have.stats.keys() == want.stats.keys()
    for name, values in want.stats.items():
        torch.testing.assert_close(have.stats[name], values, rtol=1e-3, atol=1e-4)
    if keep == "trajectory":
        torch.testing.assert_close(have.trajectory, want.trajectory, rtol=1e-4, atol=1e-5)


def test_fuse(on_cuda):
    energy, x = DoubleWell(), torch.linspace(-1, 1, 6).view(3, 2)
    values, slopes = fuse(energy)(x)
    torch.testing.assert_close(values, energy(x))
    torch.testing.assert_close(slopes, energy.gradient(x))
    x.requires_grad_()
    fuse(energy)(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, slopes)


def perceptron(width):
    torch.manual_seed(0)
    layers = (torch.nn.Linear(2, width), torch.nn.SiLU(), torch.nn.Linear(width, 1))
    net = torch.nn.Sequential(*layers)
    return as_energy(lambda x: net(x).squeeze(1), net)


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """What a trial finds of kernel and torch; notes how often it was asked."""
    from ebm_samplers.fused.cuda import trial

    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path))
    found, asked = [1.0, 2.0], []

    def seconds(kernel, other, on):
        kernel()
        other()
        asked.append(on)
        return tuple(found)

    monkeypatch.setattr(trial, "seconds", seconds)
    return found, asked


def test_auto_takes_what_a_trial_found_quicker(on_cuda, clock):
    found, asked = clock
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert LangevinDynamics(perceptron(300), 0.01).explain(x).engine == "fused"
    assert len(asked) == 1
    found.reverse()
    energy = perceptron(300)
    sampler = LangevinDynamics(energy, 0.01)
    assert sampler.explain(x).engine == "fused"  # found before, by another process perhaps
    assert len(asked) == 1
    explanation = sampler.explain(torch.cat([x, x]))
    assert explanation.engine == "torch"
    assert "torch evaluates 10 states in 1e+06 µs, its kernel in 2e+06" in str(explanation)
    for _ in range(3):
        sampler.sample_chain(torch.cat([x, x]), 2)
    assert len(asked) == 2
    insisting = LangevinDynamics(energy, 0.01, engine="fused")
    assert insisting.explain(torch.cat([x, x])).engine == "fused"
    assert len(asked) == 2
    assert MALA(energy, 0.01).explain(x).engine == "torch"  # another kernel, of more registers
    assert len(asked) == 3


def test_torch_without_graphs_is_not_asked(on_cuda, clock, monkeypatch):
    found, asked = clock
    found.reverse()
    x, energy = torch.zeros(5, 2), perceptron(300)
    assert NUTS(energy, 0.01).explain(x).engine == "fused"
    with without_graphs():
        assert LangevinDynamics(energy, 0.01).explain(x).engine == "fused"
    with monkeypatch.context() as context:
        context.setattr("ebm_samplers.captured.graph._failed", ["a graph"])
        assert LangevinDynamics(energy, 0.01).explain(x).engine == "fused"
    with monkeypatch.context() as context:
        context.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        assert LangevinDynamics(energy, 0.01).explain(x).engine == "fused"
    assert not asked
    assert LangevinDynamics(energy, 0.01).explain(x).engine == "torch"


def test_local_memory_has_a_limit(on_cuda, clock, monkeypatch):
    _, asked = clock
    x = torch.zeros(5, 2)
    monkeypatch.setattr(CudaEnergy, "_most_local", 3000.0)
    assert LangevinDynamics(perceptron(20), 0.01).explain(x).engine == "fused"
    explanation = LangevinDynamics(perceptron(300), 0.01).explain(x)
    assert explanation.engine == "torch"
    assert "bytes of local memory, and with more than 3,000" in str(explanation)
    assert not asked


@pytest.mark.parametrize(("sampler", "make"), (("langevin", LangevinDynamics), ("nuts", NUTS)))
def test_local_memory_is_that_of_the_compiled_kernel(on_cuda, monkeypatch, sampler, make):
    """As nox -s ptx recorded it."""
    recorded = json.loads((Path(__file__).parent / "resources.json").read_text())
    monkeypatch.setattr(CudaEnergy, "_most_local", 1.0)
    target, shape = TARGETS["perceptron"]
    explanation = make(target(torch.float32), 0.01).explain(torch.zeros(5, *shape))
    (told,) = re.findall(r"take ([\d,]+) bytes", str(explanation))
    stack = recorded[f"sm_90 perceptron {sampler}"]["stack"]
    assert abs(stack - int(told.replace(",", ""))) <= 16  # uniforms that are not used, and the like


def test_small_and_large_energies_are_not_tried(on_cuda, clock, monkeypatch):
    _, asked = clock
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert LangevinDynamics(perceptron(20), 0.01).explain(x).engine == "fused"
    monkeypatch.setattr("ebm_samplers.fused.cuda.energy.MOST", 3000)
    explanation = LangevinDynamics(perceptron(300), 0.01).explain(x)
    assert "beyond 3,000 many threads" in str(explanation)
    assert explanation.engine == "torch"
    assert not asked


def test_a_trial_times_both(on_cuda, monkeypatch, tmp_path):
    """Simulated kernels are slow indeed."""
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    explanation = LangevinDynamics(perceptron(300), 0.01).explain(x)
    assert explanation.engine == "torch"
    assert "tried on this device" in str(explanation)
