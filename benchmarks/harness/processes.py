"""The benchmark's side of `rivals.protocol`: one process for each rival, stopped while it waits.

A worker is stopped by a signal between requests, so that threads of a waiting rival (pools that
spin, collectors) take nothing from the one that is measured.
"""

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FOLDER = Path(__file__).parent.parent
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "BENCHMARK_THREADS",
)


class RivalError(Exception):
    """A rival did not answer, or answered with an error."""


class WorkerProcess:
    """A rival at work; started by the first request, and again after a failure.

    Args:
        rival: Its module in `rivals`.
        python: The interpreter of its environment.
        cores: The cores it may use; one thread for each.
        environment: Further variables.
    """

    def __init__(
        self, rival: str, python: str, cores: set[int], environment: dict[str, str] | None = None
    ) -> None:
        self.rival, self.python, self.cores = rival, python, cores
        threads = dict.fromkeys(THREAD_VARIABLES, str(len(cores)))
        self.environment = {**os.environ, **threads, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.errors: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def ask(self, operation: str, timeout: float = 60.0, **arguments: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            RivalError: If there is none in time, the process ends, or the answer is an error.
        """
        try:
            process = self._started()
        except OSError as error:
            raise RivalError(f"its interpreter does not start: {error}") from error
        request = json.dumps({"operation": operation, **arguments}) + "\n"
        process.send_signal(signal.SIGCONT)
        try:
            assert process.stdin is not None
            process.stdin.write(request.encode())
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._line(time.monotonic() + timeout))
        except (OSError, ValueError, RivalError) as error:
            self.stop()
            raise RivalError(f"{operation}: {type(error).__name__}: {error}") from error
        process.send_signal(signal.SIGSTOP)
        if "error" in answer:
            raise RivalError(f"{operation}: {answer['error']}")
        return answer

    def kill(self) -> None:
        """End the process while another thread waits for its answer: `ask` raises there."""
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.errors.close()
            self.process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            log = FOLDER / "results" / f"{self.rival}.log"
            log.parent.mkdir(exist_ok=True)
            self.errors = log.open("a")
            self.process = subprocess.Popen(
                (self.python, "-m", f"rivals.{self.rival}"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                cwd=FOLDER,
                env=self.environment,
                preexec_fn=lambda: os.sched_setaffinity(0, self.cores),
            )
        return self.process

    def _line(self, deadline: float) -> bytes:
        assert self.process is not None
        assert self.process.stdout is not None
        stream, received = self.process.stdout.fileno(), b""
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                raise RivalError("no answer in time")
            piece = os.read(stream, 2**16)
            if not piece:
                raise RivalError(f"the process ended; see results/{self.rival}.log")
            received += piece
        return received
