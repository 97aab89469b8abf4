"""Generated modules on disk, so that a kernel is compiled once for all processes.

A module's file is named by a hash of everything it depends on: its text, the sources of the functions it imports, the
versions of Numba, LLVM and Python, and the CPU. Numba's own cache lies beside it and can therefore never be stale. The
folder belongs to the user alone. Where it cannot be written, kernels live in memory, after one warning.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import llvmlite
import llvmlite.binding
import numba
import numpy as np

FOLDER_VARIABLE = "EBM_SAMPLERS_CACHE_DIR"

_modules: dict[str, ModuleType] = {}


def cache_folder() -> Path:
    """Where generated modules are kept: ``$EBM_SAMPLERS_CACHE_DIR``, else the user's cache folder."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or (
        Path.home() / "Library" / "Caches" if sys.platform == "darwin" else Path.home() / ".cache"
    )
    return Path(base) / "ebm-samplers"


def clear_cache() -> int:
    """Delete all compiled kernels from disk; gives the number of generated modules deleted.

    Kernels that this process has loaded stay in use.
    """
    folder = cache_folder()
    sources = list(folder.glob("fused_*.py"))
    for source in sources:
        source.unlink(missing_ok=True)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return len(sources)


def load(source: str, keep: bool = True) -> ModuleType:
    """The module of a generated source; the same object for the same source.

    Args:
        source: Python source.
        keep: Whether to keep it on disk.
    """
    name = "fused_" + hashlib.sha256("\0".join((source, *_environment())).encode()).hexdigest()[:32]
    known = f"{name} {keep}"
    if known not in _modules:
        path = _written(name, source) if keep else None
        _modules[known] = _from_memory(name, source) if path is None else _from_file(name, path)
    return _modules[known]


def _written(name: str, source: str) -> Path | None:
    folder = cache_folder()
    path = folder / f"{name}.py"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid"):
            status = folder.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                raise OSError(f"{folder} can be written by others")
        if path.exists() and path.read_text() == source:
            _require_writable(folder, path)
            return path
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".new_")
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(source)
            # A file that is already there stays: its time stamp is a part of Numba's index. A damaged one goes.
            if path.exists() and path.read_text() != source:
                os.replace(temporary, path)
            else:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    pass
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        warn_once(f"compiled kernels are not kept on disk: {error}")
        return None
    return path


def _require_writable(folder: Path, path: Path) -> None:
    compiled = any((folder / "__pycache__").glob(f"{path.stem}.*.nbi"))
    if not compiled and not os.access(folder, os.W_OK):
        raise OSError(f"{folder} is read-only")


@cache
def warn_once(message: str) -> None:
    """Warn, once a message and process."""
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _from_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    previous, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = previous
    return module


def _from_memory(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    return module


@cache
def _environment() -> tuple[str, ...]:
    from ebm_samplers import philox

    from . import arithmetic, noise

    sources = [Path(str(module.__file__)).read_text() for module in (philox, arithmetic, noise)]
    features: Any = llvmlite.binding.get_host_cpu_features().flatten()
    versions = (sys.version, numba.__version__, llvmlite.__version__, np.__version__, platform.machine())
    return (*sources, *versions, llvmlite.binding.get_host_cpu_name(), features)
