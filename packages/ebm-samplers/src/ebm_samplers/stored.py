"""Draws that go to files while they are made: ``sample(..., keep="trajectory", out="draws.npy")``.

Every column of a result is a file: ``draws.npy`` has the states, ``draws.potential.npy``,
``draws.diverging.npy``, … what goes with them. In the files the first axis is the draw, ``(draw,
chain, ...)``, so that they grow at their ends, and hold what was drawn whenever somebody looks or
the process is killed; `numpy.load` reads them, ``swapaxes(0, 1)`` gives the axes of a result.
``draws.resume.pt`` says where the chains stand, and after how many draws.

What is written in which order: rows, then the position (in one move of a file), then the lengths in
the headers. Rows beyond the position are written again by a run that goes on from there, with the
same numbers.
"""

import io
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from ebm_core import ConfigurationError
from ebm_samplers.arguments import refuse

Array = NDArray[Any]
PathLike = str | os.PathLike[str]

SECONDS = 1.0
"""How far the lengths in the files may be behind the draws."""


class Store:
    """The files of one run.

    Args:
        path: Of the states, with the suffix ``.npy``.
        n_before: Draws of runs before that are there.
    """

    def __init__(self, path: Path, n_before: int = 0) -> None:
        self.path, self.n_before = path, n_before
        self.resumed = False
        self._columns: dict[str, _Column] = {}
        self._time = time.monotonic()

    @classmethod
    def new(cls, out: PathLike, columns: Iterable[str] = ()) -> "Store":
        """Files to be made.

        Args:
            out: Of the states.
            columns: What else there will be.

        Raises:
            ConfigurationError: If they cannot be there, or are.
        """
        path = _npy_path("out", out)
        store = cls(path)
        for file in (path, *map(store._path, columns), path.with_suffix(".resume.pt")):
            if file.exists():
                raise ConfigurationError(
                    f"out is {str(path)!r}, and {file.name} exists",
                    "a path of files to come",
                    f"pass resume={str(path)!r} to go on with the run that it is of, or another "
                    "path",
                )
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigurationError(
                f"out is {str(path)!r}, in a folder that cannot be written to",
                "a path in a folder that exists",
                "make the folder, or pass another path",
            )
        return store

    def begin(self, x: Tensor) -> None:
        """Make the file for draws of states like ``x``, ``(chain, *event)``, if there is none.

        Raises:
            ConfigurationError: If such files cannot be made, or hold no such numbers.
        """
        if x.dtype == torch.bfloat16:
            raise ConfigurationError(
                "out was given, and states are bfloat16",
                "a dtype that NumPy has",
                "sample in float32, or leave out out",
            )
        if self._columns:
            return
        try:
            self._write("x", 0, x[:, None][:, :0])
        except OSError as error:
            raise ConfigurationError(
                f"out is {str(self.path)!r}, and to write there failed ({error})",
                "a path that can be written to",
                "pass another path",
            ) from error

    @classmethod
    def reopened(cls, path: PathLike) -> "tuple[Store, Mapping[str, Any]]":
        """The files of an earlier run, and where it stands, to go on with it.

        Raises:
            ConfigurationError: If they are not there, or not those of a run.
        """
        path = _npy_path("resume", path)
        where = path.with_suffix(".resume.pt")
        try:
            state = torch.load(where, weights_only=True)
            store, resume = cls(path, state["n_draws"]), state["resume"]
            store.resumed = True
            store._columns = {name: _Column(store._path(name)) for name in state["columns"]}
            if any(not column.holds(store.n_before) for column in store._columns.values()):
                raise ValueError("it is shorter than its run")
        except Exception as error:
            raise ConfigurationError(
                f"resume is {str(path)!r}, with which no run can go on "
                f"({type(error).__name__}: {error})",
                f"the `out` of an earlier run, with {where.name} and its other files beside it",
                "pass the path as it was given as out, or the resume of a result",
            ) from error
        return store, resume

    @property
    def is_due(self) -> bool:
        """Whether it is time to `commit`."""
        return time.monotonic() > self._time + SECONDS

    def write(self, first: int, columns: Mapping[str, Tensor]) -> None:
        """Write draws.

        Args:
            first: The number of the first of them in this run.
            columns: By name, ``(chain, draw, ...)``.
        """
        for name, values in columns.items():
            self._write(name, self.n_before + first, values)

    def commit(self, n_draws: int, resume: Mapping[str, Any]) -> None:
        """Make the files those of a run that has come so far.

        Args:
            n_draws: Draws of this run.
            resume: Where it stands after them.
        """
        n_draws += self.n_before
        where = self.path.with_suffix(".resume.pt")
        new = where.with_suffix(".new")
        state = {"n_draws": n_draws, "columns": list(self._columns), "resume": dict(resume)}
        torch.save(state, new)
        new.replace(where)
        for column in self._columns.values():
            column.set_length(n_draws)
        self._time = time.monotonic()

    def tensors(self, n_draws: int) -> dict[str, Tensor]:
        """All draws, ``(chain, draw, ...)``, in memory that is the files; changes stay private.

        Args:
            n_draws: Draws of this run.
        """
        n = self.n_before + n_draws
        return {name: column.tensor(n) for name, column in self._columns.items()}

    def _path(self, name: str) -> Path:
        return self.path if name == "x" else self.path.with_suffix(f".{name}.npy")

    def _write(self, name: str, first: int, values: Tensor) -> None:
        rows = values.detach().movedim(1, 0).contiguous().cpu().numpy()
        if name not in self._columns:
            self._columns[name] = _Column(self._path(name), rows, new=not self.resumed)
        self._columns[name].write(first, rows)


def opened(
    keep: str,
    out: PathLike | None,
    resume: Mapping[str, Any] | PathLike | None,
    columns: Iterable[str],
) -> tuple[Store | None, Mapping[str, Any] | None]:
    """Where draws go (None for memory), and where the run to go on with stands.

    Args:
        keep: As in ``sample``.
        out: Likewise.
        resume: Likewise.
        columns: What there will be beside states.

    Raises:
        ConfigurationError: If paths are wrong, or do not fit the rest.
    """
    store: Store | None = None
    if isinstance(resume, str | os.PathLike):
        refuse("a path as resume", {"out": out})
        store, resume = Store.reopened(resume)
    elif out is not None:
        store = Store.new(out, columns)
    if store is not None and keep != "trajectory":
        raise ConfigurationError(
            f"keep is {keep!r}, and draws are to go to a file",
            "keep='trajectory'",
            "pass it, or no path",
        )
    return store, resume


class _Column:
    """An array ``(draw, chain, ...)`` in a .npy file whose first axis grows.

    Args:
        path: Where.
        like: Rows like those to come, to make a new file; None for one that exists.
        new: Refuse to make it in the place of another; else that is replaced, and stays what it is
            for those who have it in memory.
    """

    def __init__(self, path: Path, like: Array | None = None, new: bool = True) -> None:
        self.path = path
        if like is not None:
            self.dtype, self.shape = like.dtype, like.shape[1:]
            self.offset = len(self._header(0))
            place = path if new else path.with_suffix(".partial")
            with place.open("xb" if new else "wb") as file:
                file.write(self._header(0))
            place.replace(path)
            return
        with path.open("rb") as file:
            npy.read_magic(file)
            shape, by_columns, self.dtype = npy.read_array_header_1_0(file)
            self.shape, self.offset = shape[1:], file.tell()
        if by_columns or len(self._header(shape[0])) != self.offset:
            raise ValueError(f"{path.name} was not written by this library")

    @property
    def _row(self) -> int:
        """Bytes of a draw."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def _header(self, n: int) -> bytes:
        """Of an array of ``n`` rows; NumPy leaves room for more, so that its length is constant."""
        memory = io.BytesIO()
        descr = npy.dtype_to_descr(self.dtype)
        contents = {"descr": descr, "fortran_order": False, "shape": (n, *self.shape)}
        npy.write_array_header_1_0(memory, contents)
        return memory.getvalue()

    def holds(self, n: int) -> bool:
        """Whether the file has so many rows."""
        return self.path.stat().st_size >= self.offset + n * self._row

    def set_length(self, n: int) -> None:
        """Let readers see ``n`` rows."""
        self._put(0, self._header(n))

    def write(self, first: int, rows: Array) -> None:
        """Write rows from number ``first`` on.

        Raises:
            ConfigurationError: If they are of another kind than those in the file.
        """
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape:
            raise ConfigurationError(
                f"draws for {self.path.name} are {rows.dtype} of shape {rows.shape[1:]}",
                f"{self.dtype} of shape {self.shape}, as in the file",
                "go on with the sampler, energy and dtype that began it",
            )
        if rows.size:
            self._put(self.offset + first * self._row, rows.reshape(-1).view(np.uint8).data)

    def tensor(self, n: int) -> Tensor:
        """The first ``n`` rows, as ``(chain, draw, ...)``."""
        rows: Array = np.empty((0, *self.shape), self.dtype)
        if n:
            rows = np.memmap(self.path, self.dtype, "c", self.offset, (n, *self.shape))
        return torch.from_numpy(rows).movedim(0, 1)

    def _put(self, at: int, data: bytes | memoryview) -> None:
        with self.path.open("r+b", buffering=0) as file:
            file.seek(at)
            while data:
                data = data[file.write(data) :]


def _npy_path(name: str, value: PathLike) -> Path:
    if not isinstance(value, str | os.PathLike) or Path(value).suffix != ".npy":
        raise ConfigurationError(
            f"{name} is {value!r}", "a path that ends in .npy", f"pass {name}='draws.npy'"
        )
    return Path(value).absolute()  # whatever becomes of the working directory
