"""The step and its timing, that all sides of `benchmarks/training.py` share.

A step is what a user writes: the loss of a batch, its backward pass, Adam. torch alone.
"""

from collections.abc import Callable, Iterable, Mapping
from time import perf_counter, process_time
from typing import Any

import torch
from torch import nn

from rivals.density_training import Loss, Network
from rivals.protocol import THREADS, Rival, serve
from rivals.training_cells import BATCH, LEARNING_RATE, WIDTHS

Forms = Mapping[str, Callable[[nn.Module], tuple[Loss, Iterable[nn.Parameter]]]]


class Steps:
    """The training step that is being timed.

    Args:
        forms: Ways to make each objective's loss, by objective and name; the fastest counts.
    """

    def __init__(self, forms: Mapping[str, Forms]) -> None:
        self.forms = forms
        self.step: Callable[[], object] | None = None
        self.n = 1

    def ready(self, objective: str, seconds: float) -> dict[str, Any]:
        """Try all forms of an objective, and keep the fastest.

        Args:
            objective: Which.
            seconds: Wanted time of one repetition.
        """
        torch.set_num_threads(THREADS)
        self.step, tried, fastest = None, {}, float("inf")
        answer: dict[str, Any] = {}
        for name, make in self.forms.get(objective, {}).items():
            begin = perf_counter()
            try:
                step = training_step(make)
                step()
                first = perf_counter() - begin
                taken(step, 5)
                each = taken(step, max(5, round(0.3 * seconds / taken(step, 5))))
            except Exception as error:  # of a library: the other forms may work
                tried[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
                continue
            tried[name] = {"first": first, "step": each}
            if each < fastest:
                fastest, self.step, self.n = each, step, max(3, round(seconds / each))
                answer = {"form": name, "first": first}
        if self.step is None:
            return {"error": f"no form runs: {tried}" if tried else "not offered"}
        return {**answer, "tried": tried}

    def steps(self) -> dict[str, Any]:
        """Seconds of a step, and of processor time, over one repetition."""
        assert self.step is not None
        cpu, begin = process_time(), perf_counter()
        for _ in range(self.n):
            self.step()
        wall = perf_counter() - begin
        return {"step": wall / self.n, "cpu": (process_time() - cpu) / self.n}


def training_step(
    make: Callable[[nn.Module], tuple[Loss, Iterable[nn.Parameter]]],
) -> Callable[[], object]:
    """A step on a fixed batch, from a fixed start."""
    torch.manual_seed(0)
    network, x = Network(WIDTHS, 1.0, 1.0), torch.randn(BATCH, 2)
    loss, parameters = make(network)
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad()
        loss(x).backward()
        optimizer.step()

    return step


def taken(step: Callable[[], object], n: int) -> float:
    """Seconds of one of ``n`` steps."""
    begin = perf_counter()
    for _ in range(n):
        step()
    return (perf_counter() - begin) / n


def work(forms: Mapping[str, Forms], packages: Iterable[str]) -> None:
    """Answer requests to get ready and to be timed."""
    steps = Steps(forms)
    operations = {"ready": steps.ready, "steps": steps.steps}
    serve(Rival(lambda cell: {}, tuple(packages), operations))
