"""Training steps on a CUDA device: contrastive divergence against TorchEBM's.

A step is what a user writes: the loss of a batch, its backward pass, Adam. Chains are ten steps of
unadjusted Langevin, from data (CD-10) or from a replay buffer (PCD-10). The network is the same
`torch.nn` module on all sides, in float32 with TF32 off. "ours, single steps" is ours without CUDA
graphs. All sides are prepared; then each is timed in turn, from a synchronised device to a
synchronised device, and medians count. A profile of some further steps tells how many kernels a
step runs, and how many launches the host makes for them.

    nox -s bench -- "*_cuda"                        # with chains_cuda.py; where there is no nox:
    PYTHONPATH=... python benchmarks/training_cuda.py

Results go to results/cuda.json, and from there to docs/cuda.md.
"""

import argparse
import contextlib
import copy
import importlib
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from harness import record
from torch import Tensor, nn

from ebm_core import as_energy
from ebm_losses import ContrastiveDivergence, PersistentContrastiveDivergence
from ebm_samplers import LangevinDynamics, without_graphs

K_STEPS, STEP_SIZE, BUFFER = 10, 0.01, 10_000
PROFILED = 10
Step = Callable[[], object]


class Network(nn.Module):
    """Layers that end in one number a state, beside half its squared norm."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """E(x), ``(batch,)``."""
        value: Tensor = self.layers(x).squeeze(1) + x.flatten(1).square().sum(1) / 2
        return value


def perceptron() -> Network:
    """2-128-128-1."""
    return Network(nn.Linear(2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))


def convolutional() -> Network:
    """Four layers on grey images of 28 × 28."""
    widths = (1, 32, 64, 64)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.SiLU()]
    return Network(*layers, nn.Flatten(), nn.Linear(64 * 16, 1))


MODELS: dict[str, tuple[Callable[[], Network], tuple[int, ...]]] = {
    "MLP 2-128-128-1": (perceptron, (256, 2)),
    "conv 28 × 28": (convolutional, (64, 1, 28, 28)),
}


def ours(network: Network, persistent: bool) -> Callable[[Tensor], Tensor]:
    """The loss of a batch, by this project."""
    energy = as_energy(network)
    sampler = LangevinDynamics(energy, STEP_SIZE)
    if persistent:
        loss: Any = PersistentContrastiveDivergence(energy, sampler, K_STEPS, buffer_size=BUFFER)
    else:
        loss = ContrastiveDivergence(energy, sampler, K_STEPS)
    return lambda x: loss(x)


def torchebms(network: Network, persistent: bool) -> Callable[[Tensor], Tensor]:
    """The loss of a batch, by TorchEBM."""
    core = importlib.import_module("torchebm.core")
    losses = importlib.import_module("torchebm.losses")
    samplers = importlib.import_module("torchebm.samplers")

    class Model(core.BaseModel):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)  # type: ignore[no-any-return]

    device = next(network.parameters()).device
    model = Model().to(device)
    sampler = samplers.LangevinDynamics(model, step_size=STEP_SIZE, device=device)
    loss = losses.ContrastiveDivergence(
        model, sampler, k_steps=K_STEPS, persistent=persistent, buffer_size=BUFFER, init_steps=0,
        new_sample_ratio=0.0, energy_reg_weight=0.0, device=device,
    )  # fmt: skip
    return lambda x: loss(x)[0]


def steps(name: str, persistent: bool, device: torch.device) -> dict[str, Callable[[], Step]]:
    """What makes a training step, for each side."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    network, x = make().to(device), torch.randn(shape, device=device)

    def prepared(side: Callable[..., Callable[[Tensor], Tensor]], within: Any) -> Step:
        own = copy.deepcopy(network)
        loss = side(own, persistent)
        optimizer = torch.optim.Adam(own.parameters(), 1e-4)

        def step() -> None:
            with within():
                optimizer.zero_grad()
                loss(x).backward()
                optimizer.step()

        return step

    return {
        "ours": lambda: prepared(ours, contextlib.nullcontext),
        "ours, single steps": lambda: prepared(ours, without_graphs),
        "torchebm": lambda: prepared(torchebms, contextlib.nullcontext),
    }


def seconds(step: Step, n: int, device: torch.device) -> float:
    """Of one of ``n`` steps."""
    start = perf_counter()
    for _ in range(n):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (perf_counter() - start) / n


def profile(step: Step) -> dict[str, float]:
    """Kernels and launches of a step, and the time that the device is at work."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
    calls = {"kernels": 0, "launches": 0, "graph launches": 0, "device seconds": 0.0}
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            calls["kernels"] += 1
            calls["device seconds"] += event.device_time * 1e-6
        elif "GraphLaunch" in event.name:
            calls["graph launches"] += 1
        elif event.name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync")):
            calls["launches"] += 1
    return {what: number / PROFILED for what, number in calls.items()}


def measured(
    name: str, persistent: bool, device: torch.device, wanted: float, repetitions: int
) -> dict[str, Any]:
    """Seconds of a step, by side."""
    found: dict[str, Any] = {}
    ready: dict[str, tuple[Step, int]] = {}
    for side, prepare in steps(name, persistent, device).items():
        try:
            step = prepare()
            first = seconds(step, 3, device)
            n = max(3, round(wanted / seconds(step, 5, device)))
            ready[side], found[side] = (step, n), {"first": first, "seconds": []}
        except Exception as error:
            found[side] = {"error": f"{type(error).__name__}: {error}"[:300]}
    for _ in range(repetitions):
        for side, (step, n) in ready.items():
            found[side]["seconds"].append(seconds(step, n, device))
    for side, (step, _) in ready.items():
        found[side]["step"] = statistics.median(found[side]["seconds"])
        if device.type == "cuda":
            found[side]["profile"] = profile(step)
    return found


def main() -> None:
    """Read the options, measure, keep everything after each cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("training_cuda: no CUDA device, nothing measured")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = record.section(device)
    for name in options.models:
        for persistent in (False, True):
            cell = f"{'PCD' if persistent else 'CD'}-{K_STEPS}, {name}"
            entry = measured(name, persistent, device, options.seconds, options.repetitions)
            found["cells"][cell] = entry
            times = (
                f"{side} {1e3 * e['step']:.3g} ms" if "step" in e else f"{side}: {e['error']}"
                for side, e in entry.items()
            )
            print(f"{cell:26} {', '.join(times)}", flush=True)
            record.keep("training", found, options.results)


if __name__ == "__main__":
    main()
