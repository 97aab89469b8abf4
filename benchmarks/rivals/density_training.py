"""The network and the loop that all sides of `benchmarks/density.py` share. torch alone.

`benchmarks/training.py` has the network, too.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from rivals.density_cells import BASE_SCALE, EMA_DECAY, INPUT_GAIN, LEARNING_RATES, WIDTHS
from rivals.protocol import Rival, serve

Loss = Callable[[Tensor], Tensor]
Build = Callable[["Network", dict[str, Any]], tuple[Loss, Iterable[nn.Parameter]]]


class Network(nn.Module):
    """Hidden layers of SiLU, and a Gaussian base term: what ``MLPEnergy`` is.

    Args:
        widths: Of the hidden layers.
        base_scale: Standard deviation of the base term.
        input_gain: So many times as large the first layer starts.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        base_scale: float = BASE_SCALE,
        input_gain: float = INPUT_GAIN,
    ) -> None:
        super().__init__()
        self.base_scale = base_scale
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((2, *widths)):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        with torch.no_grad():
            for parameter in self.layers[0].parameters():
                parameter.mul_(input_gain)

    def forward(self, x: Tensor) -> Tensor:
        """E(x): ``(batch, 2) -> (batch,)``."""
        energy: Tensor = self.layers(x).squeeze(1) + x.square().sum(1) / (2 * self.base_scale**2)
        return energy


def train(
    builders: Mapping[str, Build],
    objective: str,
    form: dict[str, Any],
    seed: int,
    data: str,
    out: str,
) -> dict[str, Any]:
    """Train one network, and save the running average of its parameters.

    Args:
        builders: Makes the loss, and what is trained, by objective.
        objective: Which.
        form: Settings of the loss.
        seed: Of the start and of all noise.
        data: File of the batches, ``(steps, batch, 2)``.
        out: File for the averaged parameters.

    Returns:
        Processor seconds of the loop; the step at which it broke off, and why, if it did.
    """
    batches = torch.load(data, weights_only=True)
    torch.manual_seed(seed)
    network = Network()
    loss, parameters = builders[objective](network, form)
    average = [p.detach().clone() for p in network.parameters()]
    first, last = LEARNING_RATES
    optimizer = torch.optim.Adam(parameters, lr=first)
    answer: dict[str, Any] = {}
    begin = process_time()
    for step, batch in enumerate(batches):
        cosine = (1 + math.cos(math.pi * step / len(batches))) / 2
        for group in optimizer.param_groups:
            group["lr"] = last + (first - last) * cosine
        optimizer.zero_grad()
        try:
            loss(batch).backward()
        except ArithmeticError as error:  # ours stops a run that blows up
            answer = {"broke_off": step + 1, "why": str(error)}
            break
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, list(network.parameters()), 1 - decay)
    answer["seconds"] = process_time() - begin
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), average, strict=True):
            parameter.copy_(value)
    torch.save(network.state_dict(), out)
    return answer


def work(builders: Mapping[str, Build], packages: Iterable[str]) -> None:
    """Answer requests to train."""
    torch.set_num_threads(1)
    operations = {"train": lambda **request: train(builders, **request)}
    serve(Rival(lambda cell: {}, tuple(packages), operations))
