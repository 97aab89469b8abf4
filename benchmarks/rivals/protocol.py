"""The worker's side: a process that runs cells of one rival when asked to, and is idle otherwise.

Requests and answers are lines of JSON on standard input and output; whatever a library prints goes
to standard error. A request names an operation, and the answer holds its outcome or an ``error``:

- ``prepare`` a cell: builds each of the rival's forms of it, times the first call (compilation) and
  keeps the fastest form, with as many steps as fill the wanted time;
- ``check``: statistics of the states a few steps from the common start;
- ``time``: one repetition of the prepared cell;
- operations of the rival's own.

Standard library only.
"""

import gc
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from time import perf_counter, process_time
from typing import Any

from rivals.cells import CHECK_STEPS, Cell

THREADS = int(os.environ.get("BENCHMARK_THREADS", "1"))
SLOWEST = 5.0
"""A form whose shortest run takes longer than this many seconds is not repeated."""


@dataclass
class Program:
    """A cell that is ready to run; its chains go on from call to call.

    Attributes:
        run: Advances the chains by a number of units, and returns when the result is there.
        reset: Puts all chains at the start.
        states: The chains' states, ``(chain, dim)``.
        unit: Transitions of one unit.
    """

    run: Callable[[int], object]
    reset: Callable[[], object]
    states: Callable[[], Sequence[Sequence[float]]]
    unit: int = 1


Build = Callable[[], Program]


@dataclass
class Rival:
    """What a worker offers.

    Attributes:
        forms: Ways to run a cell, by name, or none if the rival cannot; the fastest counts.
        packages: Distributions whose versions are noted.
        operations: Further operations.
        note: Something to keep with a prepared cell.
    """

    forms: Callable[[Cell], Mapping[str, Build]]
    packages: Sequence[str]
    operations: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    note: Callable[[Program], str] = lambda _: ""


class Worker:
    """Answers requests for a rival."""

    def __init__(self, rival: Rival) -> None:
        self.rival = rival
        self.program: Program | None = None
        self.units = 1
        self.chains = 0

    def info(self) -> dict[str, Any]:
        """Versions."""
        return {"versions": {name: version_of(name) for name in self.rival.packages}}

    def prepare(self, cell: list[Any], seconds: float) -> dict[str, Any]:
        """Build all forms of a cell, and keep the fastest.

        Args:
            cell: Method, target, number of chains.
            seconds: Wanted time of one repetition.
        """
        wanted = Cell(*cell)
        self.program, self.chains = None, wanted.chains
        gc.collect()
        tried: dict[str, Any] = {}
        best = 0.0
        for name, build in self.rival.forms(wanted).items():
            try:
                begin = perf_counter()
                program = build()
                program.run(1)
                first = perf_counter() - begin
                rate, units = calibrated(program, seconds)
            except Exception as error:  # of a library: the other forms may work
                tried[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
                continue
            rate *= wanted.chains
            tried[name] = {"first_call": first, "rate": rate}
            if rate > best:
                best, self.program, self.units = rate, program, units
                answer = {"form": name, "first_call": first, "steps": units * program.unit}
        if self.program is None:
            return {"error": f"no form of {wanted} runs: {tried}" if tried else "not offered"}
        return {**answer, "tried": tried, "note": self.rival.note(self.program)}

    def check(self) -> dict[str, Any]:
        """Means and squared standard errors, over chains, of some functions of the state."""
        assert self.program is not None
        steps = CHECK_STEPS[self.chains]
        units, rest = divmod(steps, self.program.unit)
        if rest:
            return {"error": f"{self.program.unit} steps a unit do not divide {steps}"}
        self.program.reset()
        self.program.run(units)
        columns = zip(*map(_features, self.program.states()), strict=True)
        return {"moments": [_mean_and_error(column) for column in columns]}

    def time(self) -> dict[str, Any]:
        """Seconds of one repetition, and of processor time in it."""
        assert self.program is not None
        gc.collect()
        gc.disable()
        cpu = process_time()
        seconds = seconds_of(self.program.run, self.units)
        cpu = process_time() - cpu
        gc.enable()
        return {"seconds": seconds, "cpu": cpu}


def serve(rival: Rival) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(rival)
    operations: dict[str, Callable[..., Any]] = {
        "info": worker.info,
        "prepare": worker.prepare,
        "check": worker.check,
        "time": worker.time,
        **rival.operations,
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = operations[request.pop("operation")](**request)
        except Exception:  # told to the benchmark, which goes on
            answer = {"error": traceback.format_exc(limit=-3)}
        answers.write(json.dumps(answer) + "\n")


def version_of(distribution: str) -> str:
    """As installed, or of the module on the path."""
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from the checkout
        module = import_module(distribution.replace("-", "_"))
        return f"{module.__version__} (checkout)"


def seconds_of(run: Callable[..., object], *arguments: object) -> float:
    """The time of a call."""
    begin = perf_counter()
    run(*arguments)
    return perf_counter() - begin


def repeated(once: Callable[[], tuple[float, float, Any]], patience: float) -> Any:
    """A job with two parts, done up to five times while that takes less than a second.

    Args:
        once: Does it; gives the seconds of both parts, and what it made.
        patience: Seconds after which it is not done again.

    Returns:
        The medians, and what the first made.
    """
    runs = [once()]
    while len(runs) < 5 and sum(a + b for a, b, _ in runs) < min(1.0, patience):
        runs.append(once())
    return median(a for a, *_ in runs), median(b for _, b, _ in runs), runs[0][2]


def calibrated(program: Program, seconds: float) -> tuple[float, int]:
    """Steps per second of one chain, roughly, and the units that fill the wanted time.

    Long enough is only what was so three times: the first call of a kind may compile something.
    """
    units = 1
    while True:
        taken = seconds_of(program.run, units)
        for _ in range(2):
            if 0.2 * seconds <= taken < SLOWEST:
                taken = min(taken, seconds_of(program.run, units))
        if taken >= 0.2 * seconds:
            return units * program.unit / taken, max(1, round(units * seconds / taken))
        units = max(2 * units, min(16 * units, int(0.4 * units * seconds / max(taken, 1e-6))))


def _features(x: Sequence[float]) -> tuple[float, ...]:
    square = sum(value * value for value in x) / len(x)
    return x[0], x[-1], x[0] * x[0], (x[0] - x[1]) ** 2, square


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    n = len(values)
    mean = math.fsum(values) / n
    return mean, math.fsum((value - mean) ** 2 for value in values) / (n * max(n - 1, 1))
