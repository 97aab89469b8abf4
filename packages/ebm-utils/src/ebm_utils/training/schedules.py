"""Learning-rate schedules: whatever ``torch.optim.lr_scheduler`` has, and the usual one by name."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ebm_core import ConfigurationError
from ebm_core.validation import check_integer, check_number

Schedule = str | LRScheduler | Callable[[Optimizer], LRScheduler]
"""``"cosine"``, ``"constant"``, a scheduler of the optimiser, or what makes one."""


def cosine_schedule(
    optimizer: Optimizer, n_steps: int, *, n_warm_up: int = 0, final: float = 0.01
) -> LambdaLR:
    """Half a cosine, from each group's learning rate down to a fraction of it, after a linear rise.

    Args:
        optimizer: The optimiser.
        n_steps: Steps of the whole run; the rate stays at its end afterwards.
        n_warm_up: Steps of the rise, less than ``n_steps``.
        final: The last rate, as a fraction of the first.

    Raises:
        ConfigurationError: If a number is out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = cosine_schedule(optimizer, n_steps=2, final=0.5)
        >>> rates = []
        >>> for _ in range(3):
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [1.0, 0.75, 0.5]
    """
    n_steps = check_integer("n_steps", n_steps, at_least=1)
    n_warm_up = check_integer("n_warm_up", n_warm_up)
    final = check_number("final", final, at_least=0.0, at_most=1.0)
    if n_warm_up >= n_steps:
        raise ConfigurationError(
            f"n_warm_up is {n_warm_up} of {n_steps} steps", "fewer", "lower n_warm_up"
        )

    def factor(step: int) -> float:
        if step < n_warm_up:
            return (step + 1) / (n_warm_up + 1)
        progress = min(1.0, (step - n_warm_up) / (n_steps - n_warm_up))
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def schedule_of(
    schedule: Schedule | None, optimizer: Optimizer, n_steps: int
) -> LRScheduler | None:
    """The scheduler that was asked for; None for a constant rate.

    Raises:
        ConfigurationError: If it is none, is of another optimiser, or needs a metric.
    """
    if schedule is None or schedule == "constant":
        return None
    if schedule == "cosine":
        return cosine_schedule(optimizer, n_steps)
    made = schedule
    if callable(schedule) and not isinstance(schedule, LRScheduler):
        made = schedule(optimizer)
    if not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau):
        raise ConfigurationError(
            f"schedule is {schedule!r:.120}",
            '"cosine", "constant", a scheduler that is stepped without a metric, or a callable '
            "optimizer -> scheduler",
            "pass schedule=lambda optimizer: StepLR(optimizer, 1000), for example",
        )
    if made.optimizer is not optimizer:
        raise ConfigurationError(
            "schedule is of another optimizer than the one that trains",
            "one and the same",
            "pass the scheduler together with its optimizer, or a callable optimizer -> scheduler",
        )
    return made
