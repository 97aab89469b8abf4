"""What scripts share: options, workers, the file of what was found, and the pages made from it."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.processes import RivalError, WorkerProcess

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SETTINGS = ("one core", "all cores")


def common_options(
    description: str, quick: str, *, rivals: bool = True, settings: bool = False
) -> argparse.ArgumentParser:
    """A parser of the options that scripts share.

    Args:
        description: Of the script.
        quick: What ``--quick`` does.
        rivals: Whether there are rivals in environments of their own.
        settings: Whether all is measured on one core, then on all.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--resume", action="store_true", help="only what is not yet in the results")
    parser.add_argument("--report", action="store_true", help="only write the page")
    if rivals:
        parser.add_argument(
            "--environments", default=".nox/bench-rival-{}", help="where a rival's environment is"
        )
    if settings:
        parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    return parser


class Benchmark:
    """A run: its options and what it has found so far, kept in ``results/NAME.json``.

    Args:
        options: Those of `common_options`, and the script's own.
        name: Of the script.
        choices: By option, everything that can be chosen. A run that chooses less keeps the rest
            of what was found, and one that chooses all begins anew; without choices all is kept.
    """

    def __init__(
        self, options: argparse.Namespace, name: str, choices: Mapping[str, Collection[Any]] | None
    ) -> None:
        self.options, self.name = options, name
        self.file = RESULTS / f"{name}{'-quick' if options.quick else ''}.json"
        some = choices is None or any(
            set(getattr(options, option)) != set(every) for option, every in choices.items()
        )
        kept = (options.resume or options.report or some) and self.file.exists()
        self.found: dict[str, Any] = json.loads(self.file.read_text()) if kept else {}
        cores = sorted(os.sched_getaffinity(0))
        self.settings = dict(zip(SETTINGS, ({cores[-1]}, set(cores)), strict=True))
        self.began = time.monotonic()

    def run(self) -> None:
        """Measure everything that the options ask for."""
        raise NotImplementedError

    def main(self, write_pages: Callable[[dict[str, Any], Path], None]) -> None:
        """Measure, and write the pages, as far as the options ask for it."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # workers end with it
        if not self.options.report:
            self.run()
            self.say(f"done in {self.minutes:.1f} minutes: {self.file}")
        if not self.options.quick:
            write_pages(self.found, ROOT / "docs")

    def worker(
        self,
        module: str,
        side: str,
        cores: set[int],
        environment: dict[str, str] | None = None,
    ) -> WorkerProcess:
        """A process for a side; ours has the environment of the benchmark."""
        python = sys.executable
        if side != "ours":
            python = str(ROOT / self.options.environments.format(side) / "bin" / "python")
        return WorkerProcess(module, python, cores, environment)

    @contextmanager
    def started(
        self,
        workers: Mapping[str, WorkerProcess],
        check: Callable[[str, WorkerProcess], None] = lambda side, worker: None,
    ) -> Iterator[dict[str, WorkerProcess]]:
        """The workers, by side, that answer and pass a check; their versions are noted."""
        with ExitStack() as stack:
            able = {}
            for side, worker in workers.items():
                stack.enter_context(worker)
                try:
                    answer = worker.ask("info", 300)  # imports may take a while
                    self.found.setdefault("versions", {})[side] = answer["versions"]
                    check(side, worker)
                    able[side] = worker
                except RivalError as error:
                    self.say(f"{side} is left out: {error}")
            yield able

    def save(self) -> None:
        """Keep what is known."""
        write(self.file, self.found)

    def say(self, line: str) -> None:
        """Tell how far it is."""
        print(f"[{self.minutes:5.1f} min] {line}", flush=True)

    @property
    def minutes(self) -> float:
        """Since the run began."""
        return (time.monotonic() - self.began) / 60


def write(file: Path, found: Any, indent: int | None = 1) -> None:
    """Write a JSON in one piece, so that a run that stops leaves the old one or the new one."""
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found, indent=indent) + "\n")
    part.replace(file)


def last_line(error: str) -> str:
    """What an error says; the lines before tell where it was raised."""
    return "".join(error.strip().splitlines()[-1:])[:160]
