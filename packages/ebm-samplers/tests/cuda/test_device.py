"""Chains on a CUDA device: `pytest -m cuda`."""

import math
from types import CellType, FunctionType

import pytest
import torch
from targets import TARGETS, DoubleWell

from ebm_core import ConfigurationError, as_energy
from ebm_samplers import (
    MALA,
    NUTS,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    UnderdampedLangevin,
    engines,
    fuse,
    without_graphs,
)
from ebm_samplers.captured import CapturedChains, graph
from ebm_samplers.fused.cuda import trial
from ebm_samplers.fused.cuda.trial import seconds
from ebm_samplers.noise import fill_normals, fill_uniforms

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA DEVICE: nothing was tested"),
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]
STEP = {"rosenbrock": 1e-4, "mixture": 0.01, "dense gaussian": 0.01, "logistic": 0.002}
SAMPLERS = {
    "langevin": lambda e, h, **more: LangevinDynamics(e, h, **more),
    "mala": lambda e, h, **more: MALA(e, h, **more),
    "hmc": lambda e, h, **more: HamiltonianMonteCarlo(e, math.sqrt(h), 5, **more),
    "underdamped": lambda e, h, **more: UnderdampedLangevin(e, math.sqrt(h), **more),
    "nuts": lambda e, h, **more: NUTS(e, math.sqrt(h), max_tree_depth=4, **more),
}


def states(name, n, dtype=torch.float32):
    shape = TARGETS[name][1]
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 0.7 * x.to("cuda", dtype)


def energy_of(name, dtype=torch.float32):
    """On the device, with the same numbers as on the CPU."""
    target = TARGETS[name][0](dtype)
    if isinstance(target, FunctionType):
        target = FunctionType(
            target.__code__, target.__globals__, closure=tuple(map(moved, target.__closure__ or ()))
        )
    return as_energy(target).to("cuda")


def moved(cell):
    value = cell.cell_contents
    return CellType(value.to("cuda") if isinstance(value, torch.Tensor) else value)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", TARGETS)
def test_as_on_the_cpu(name, sampler, dtype):
    x, h = states(name, 700, dtype), STEP.get(name, 0.02)
    make = SAMPLERS[sampler]
    have = make(energy_of(name, dtype), h, engine="fused").sample(x, n_steps=5, seed=3)
    cpu = as_energy(TARGETS[name][0](dtype))
    want = make(cpu, h, engine="fused").sample(x.cpu(), n_steps=5, seed=3)
    rounding = 1e-3 if dtype == torch.float32 else 1e-9
    apart = (have.final.cpu() - want.final).abs() > rounding * (1 + want.final.abs())
    assert apart.flatten(1).any(1).sum() <= 2  # accept tests within rounding of their uniforms


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_numbers(dtype):
    for fill, rounding in ((fill_uniforms, 0), (fill_normals, 2e-6)):
        have = fill(torch.empty(1000, 37, dtype=dtype, device="cuda"), 5, 2, 9, 2**34 - 5)
        want = fill(torch.empty(1000, 37, dtype=dtype), 5, 2, 9, 2**34 - 5)
        torch.testing.assert_close(have.cpu(), want, rtol=0, atol=rounding)


def test_on_the_current_stream():
    sampler = LangevinDynamics(DoubleWell().cuda(), 0.02, engine="fused")
    x = torch.randn(100_000, 2, device="cuda")
    want = sampler.sample(x + 1, n_steps=200, seed=1).final - 1
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        have = sampler.sample(x + 1, n_steps=200, seed=1).final - 1
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(have, want)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1)
        )

    def forward(self, x):
        return self.layers(x).squeeze(1) + x.square().sum(1) / 2


def torch_engine(name, energy):
    sampler = SAMPLERS[name](energy, 0.05, engine="torch")
    sampler.load_state_dict(sampler.state_dict() | {"key": 5})
    return sampler


@pytest.mark.parametrize("name", ("langevin", "mala", "hmc"))
def test_graphs(name, monkeypatch):
    """Launches see fresh noise, the same as single steps; and parameters as they are."""
    kinds = []
    original = engines.open_chains

    def noting(*args):
        kinds.append(type(chains := original(*args)))
        return chains

    monkeypatch.setattr("ebm_samplers.sampler.open_chains", noting)
    energy = as_energy(Network().cuda())
    captured, single = torch_engine(name, energy), torch_engine(name, energy)
    x = y = torch.randn(500, 2, device="cuda")
    start = x
    finals = []
    for _ in range(5):
        x = captured.sample_chain(x, 10)
        finals.append(captured.sample_chain(start, 10))
        with without_graphs():
            y = single.sample_chain(y, 10)
            single.sample_chain(start, 10)
        apart = (x - y).abs() > 1e-3 * (1 + y.abs())
        assert apart.any(1).sum() <= 2
        x = y
        with torch.no_grad():
            energy.function.layers[0].weight.mul_(1.05)
    assert not torch.equal(finals[-1], finals[-2])
    assert kinds[-3] == CapturedChains


def test_graphs_on_the_current_stream():
    sampler = torch_engine("langevin", as_energy(Network().cuda()))
    x = torch.randn(10_000, 2, device="cuda")
    want = sampler.sample(x + 1, n_steps=100, seed=1).final - 1
    for side in (torch.cuda.Stream(), torch.cuda.Stream()):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            have = sampler.sample(x + 1, n_steps=100, seed=1).final - 1
        torch.cuda.current_stream().wait_stream(side)
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def test_samplers_refuse_to_be_captured():
    sampler = LangevinDynamics(DoubleWell().cuda(), 0.02)
    x = torch.randn(10, 2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ConfigurationError, match="captured"), torch.cuda.graph(graph):
        x + 1  # an empty graph would be warned of, and never end
        sampler.sample_chain(x, 5)


class Looking(LangevinDynamics):
    def transition(self, state, context):
        assert float(state.x.sum()) < 1e9
        return super().transition(state, context)


def test_auto_takes_what_is_quicker(monkeypatch, tmp_path):
    """A narrow network's kernel is; in between, what a trial has found is taken again."""
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path))
    found, captured = [], []
    monkeypatch.setattr(trial, "seconds", lambda *how: found.append(seconds(*how)) or found[-1])
    original = graph.Graph

    def noting(*how):
        captured.append(original(*how))
        return captured[-1]

    monkeypatch.setattr(graph, "Graph", noting)
    x, taken = torch.randn(1000, 2, device="cuda"), {}
    for width, n_tried in ((16, 0), (200, 1), (100_000, 1)):
        layers = (torch.nn.Linear(2, width), torch.nn.SiLU(), torch.nn.Linear(width, 1))
        net = torch.nn.Sequential(*layers).cuda()
        for turn in range(2):
            energy = as_energy(lambda x, net=net: net(x).squeeze(1), net)
            taken[width, turn] = LangevinDynamics(energy, 0.01).explain(x).engine
            assert len(found) == n_tried
        assert taken[width, 0] == taken[width, 1]
    assert len(captured) == 2  # the kernel's and torch's
    assert not graph.failed()
    of_kernel, of_torch = found[0]
    assert 1e-7 < of_kernel < 1e-2
    assert 1e-6 < of_torch < 1e-2
    assert taken[200, 0] == ("torch" if of_torch < of_kernel else "fused")
    assert (taken[16, 0], taken[100_000, 0]) == ("fused", "torch")


def test_trials_time_the_device():
    on = torch.device("cuda", 0)
    short, long = seconds(
        lambda: torch.cuda._sleep(1_000_000), lambda: torch.cuda._sleep(10_000_000), on
    )
    assert 7 < long / short < 13
    x = torch.ones(1000, device=on)
    assert 0 < seconds(lambda: x.sum(), lambda: x.sum().item(), on)[1] < 1  # issued anew each time
    assert not graph.failed()


def test_steps_that_wait_for_the_device_leave_no_harm():
    energy, x = as_energy(Network().cuda()), torch.randn(100, 2, device="cuda")
    stream = torch.cuda.current_stream()
    sampler = Looking(energy, 0.05, engine="torch")
    for _ in range(2):
        sampler.sample(x, n_steps=40, seed=1)
    assert "anew" in str(sampler.explain(x))
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    captured = torch_engine("langevin", energy)
    captured.sample(x, n_steps=40, seed=1)
    assert "as CUDA graphs" in str(captured.explain(x))


def test_images():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, stride=2), torch.nn.SiLU(), torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 1),
    ).cuda()  # fmt: skip
    sampler = torch_engine("langevin", as_energy(lambda x: net(x).squeeze(1), net))
    x = torch.randn(64, 1, 14, 14, device="cuda")
    with without_graphs():
        want = sampler.sample(x, n_steps=40, seed=1).final
    have = sampler.sample(x, n_steps=40, seed=1).final
    assert "as CUDA graphs" in str(sampler.explain(x))
    torch.testing.assert_close(have, want, rtol=1e-2, atol=1e-2)


def test_memory_stays_as_it_is():
    sampler = torch_engine("langevin", as_energy(Network().cuda()))
    x = torch.randn(1000, 2, device="cuda")
    used = []
    for _ in range(20):
        x = sampler.sample_chain(x, 10)
        used.append(torch.cuda.memory_reserved())
    assert used[-1] <= used[4]


def test_a_million_chains_and_memory_flat_in_steps():
    sampler = LangevinDynamics(DoubleWell().cuda(), 0.02, engine="fused")
    x = torch.randn(10**6, 2, device="cuda")
    peaks = []
    for n in (10, 1000):
        torch.cuda.reset_peak_memory_stats()
        sampler.sample(x, n_steps=n, seed=1)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= peaks[0] + 2**20


def test_moments():
    n = 200_000
    sampler = MALA(as_energy(lambda x: x.square().sum(1) / 2), 0.5, engine="fused")
    x = sampler.sample(torch.randn(n, 2, device="cuda"), n_steps=50, seed=2).final
    for power, value, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        z = (x**power).mean(0).sub(value) * math.sqrt(n / variance)
        assert z.abs().max() < 5


def test_powers_of_negative_numbers():
    x = torch.linspace(-2, 2, 400, device="cuda").view(-1, 2)
    energy = as_energy(lambda x: ((0.5 * x) ** 18).sum(1))
    values, slopes = fuse(energy)(x)
    torch.testing.assert_close(values, energy(x), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(slopes, energy.gradient(x), rtol=1e-4, atol=1e-6)


def test_fuse():
    x = states("mixture", 1000)
    values, slopes = fuse(energy_of("mixture"))(x)
    want, slope = energy_of("mixture").energy_and_gradient(x)
    torch.testing.assert_close(values, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slopes, slope, rtol=1e-3, atol=1e-3)
    x.requires_grad_()
    fuse(energy_of("mixture"))(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, slopes)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="ONE CUDA DEVICE: nothing was tested")
def test_the_device_of_the_states():
    sampler = LangevinDynamics(as_energy(lambda x: x.square().sum(1)), 0.02, engine="fused")
    x = torch.randn(100, 2, device="cuda:1")
    final = sampler.sample(x, n_steps=5, seed=1).final
    assert final.device == x.device
    assert torch.cuda.current_device() == 0
