"""Generated modules on disk, so that a kernel is compiled once for all processes.

A module's file is named by a hash of everything it depends on: its text, the sources of the
functions that it imports, the versions of Python, Numba and LLVM, and the CPU. Numba's own cache
lies beside it and can therefore never be stale. Files come into being whole, by a link or a rename,
so that processes do not disturb one another. The folder belongs to the user alone. Where it cannot
be used, kernels live in memory, after one warning.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import llvmlite
import llvmlite.binding
import numba
import numpy as np

FOLDER_VARIABLE = "EBM_SAMPLERS_CACHE_DIR"

_modules: dict[tuple[str, Path | None], ModuleType] = {}
_warned: set[Path] = set()


def cache_folder() -> Path:
    """Where generated modules are kept: ``$EBM_SAMPLERS_CACHE_DIR``, else the user's cache."""
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
    for path in (*sources, *folder.glob("__pycache__/fused_*"), *folder.glob(".new_*")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / "__pycache__").rmdir()
    return len(sources)


def load(source: str) -> ModuleType:
    """The module of a generated source; the same object for the same source.

    Args:
        source: Python source; what it imports must be a part of `_environment`.
    """
    digest = hashlib.sha256("\0".join((source, *_environment())).encode()).hexdigest()
    name, folder = f"fused_{digest[:32]}", cache_folder()
    known = _modules.get((name, folder))
    if known is None:
        try:
            known = _executed(name, source, _written(folder, name, source))
        except (OSError, RuntimeError) as error:  # Numba's, where it finds no folder
            _warn(error)
            known = _executed(name, source, None)
        _modules[name, folder] = known
    return known


def _written(folder: Path, name: str, source: str) -> Path:
    path = folder / f"{name}.py"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise OSError(f"{folder} can be written by others")
    if path.exists() and path.read_text() == source:
        compiled = any((folder / "__pycache__").glob(f"{name}.*.nbi"))
        if not compiled and not os.access(folder, os.W_OK):
            raise OSError(f"{folder} is read-only")
        return path
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".new_")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(source)
        # A file that is there stays: its time stamp is in Numba's index. A damaged one goes.
        if path.exists() and path.read_text() != source:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _executed(name: str, source: str, path: Path | None) -> ModuleType:
    """The module, run from its file, or from memory."""
    if path is None:
        module = ModuleType(name)
        exec(compile(source, f"<{name}>", "exec"), module.__dict__)
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Numba's files name the module that they belong to
    exec(compile(source, str(path), "exec"), module.__dict__)
    for function in vars(module).values():
        _tolerant(function)
    return module


def _tolerant(function: Any) -> None:
    """Let a compiled function stay in memory where its files cannot be read or written."""
    kept: Any = getattr(function, "_cache", None)
    if not hasattr(kept, "save_overload") or "save_overload" in vars(kept):
        return

    def guarded(access: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(access)
        def guard(*args: Any) -> Any:
            try:
                return access(*args)
            except Exception as error:  # damaged files fail in any way
                _warn(error)
                return None

        return guard

    kept.save_overload = guarded(kept.save_overload)
    kept.load_overload = guarded(kept.load_overload)


def _warn(error: Exception) -> None:
    folder = cache_folder()
    if folder not in _warned:
        _warned.add(folder)
        warnings.warn(
            f"compiled kernels are not kept on disk in {folder}: {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )


@functools.cache
def _environment() -> tuple[str, ...]:
    package = Path(__file__).parent
    files = (
        package.parent / "philox.py",
        package / "arithmetic.py",
        package / "loops.py",
        package / "products.py",
        package / "kernels" / "noise.py",
    )
    features: Any = llvmlite.binding.get_host_cpu_features()
    return (
        *(file.read_text() for file in files),
        sys.version,
        numba.__version__,
        llvmlite.__version__,
        np.__version__,
        platform.machine(),
        llvmlite.binding.get_host_cpu_name(),
        features.flatten(),
    )
