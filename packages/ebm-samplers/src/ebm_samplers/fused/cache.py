"""Machine code on disk, so that a kernel is compiled, or tried, once for all processes.

A file is named by a hash of all that its code depends on: the text of the generated module, the
sources of the functions that it calls, the versions of Python, Numba and LLVM, and the CPU; so it
can never be stale. It begins with a hash of its own content; one that was cut off or damaged counts
as absent, and is written again. Files come into being whole, as links or by a rename, so that
processes do not disturb one another. The folder belongs to the user alone. Where it cannot be used,
kernels live in memory, after one warning.
"""

import functools
import hashlib
import json
import os
import platform
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numpy as np

FOLDER_VARIABLE = "EBM_SAMPLERS_CACHE_DIR"

_warned: set[Path] = set()


def cache_folder() -> Path:
    """Where machine code is kept: ``$EBM_SAMPLERS_CACHE_DIR``, else the user's cache."""
    given = os.environ.get(FOLDER_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or (
        Path.home() / "Library" / "Caches" if sys.platform == "darwin" else Path.home() / ".cache"
    )
    return Path(base) / "ebm-samplers"


def clear_cache() -> int:
    """Delete all compiled kernels, and what trials found, from disk; gives the number of files.

    Kernels that this process has loaded stay in use.
    """
    folder = cache_folder()
    kept = list(folder.glob("fused_*.bin"))
    for path in (*kept, *folder.glob(".new_*")):
        path.unlink(missing_ok=True)
    return len(kept)


def key(source: str) -> str:
    """What identifies the code of a generated module."""
    return hashlib.sha256("\0".join((source, *environment())).encode()).hexdigest()[:32]


def read(key: str) -> tuple[dict[str, Any], bytes] | None:
    """What was written under a key, or None."""
    try:
        content = (_folder(create=False) / f"fused_{key}.bin").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn(error)
        return None
    digest, _, rest = content.partition(b"\n")
    if digest != _digest(rest):
        return None
    about, _, code = rest.partition(b"\n")
    return json.loads(about), code


def write(key: str, about: dict[str, Any], code: bytes, replace: bool = True) -> None:
    """Keep machine code, and what is to be known about it; one warning where that fails.

    Args:
        key: The name.
        about: What is to be known.
        code: Machine code.
        replace: Whether to write over what another process has written whole meanwhile.
    """
    rest = json.dumps(about).encode() + b"\n" + code
    try:
        folder = _folder(create=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".new_")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(rest) + b"\n" + rest)
            if replace or not _linked(Path(temporary), folder / f"fused_{key}.bin"):
                os.replace(temporary, folder / f"fused_{key}.bin")
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        _warn(error)


def _linked(temporary: Path, final: Path) -> bool:
    """Give a file its name unless another is there, and whole; False if it has still to be moved.

    Without links (on some network drives) the last of two processes decides.
    """
    try:
        os.link(temporary, final)
    except OSError:
        return read(final.stem.removeprefix("fused_")) is not None
    return True


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _folder(create: bool) -> Path:
    """The folder, if nobody else can write there: its files are run."""
    folder = cache_folder()
    if create:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid"):
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise OSError(f"{folder} can be written by others")
    return folder


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
def environment() -> tuple[str, ...]:
    """All that machine code depends on beside the text of its module."""
    package = Path(__file__).parent
    names = (
        "../philox.py",
        "arithmetic.py",
        "values.py",
        "operations.py",
        "compiler.py",
        "with_numba.py",
        "intrinsics.py",
        "loops.py",
        "processor.py",
        "products.py",
        "native.py",
    )
    files = (package / name for name in names)
    features: Any = llvmlite.binding.get_host_cpu_features()
    return (
        *(file.read_text() for file in files),
        sys.version,
        metadata.version("numba"),
        llvmlite.__version__,
        np.__version__,
        platform.machine(),
        llvmlite.binding.get_host_cpu_name(),
        features.flatten(),
    )
