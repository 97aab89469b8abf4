"""`numba.cuda`, found and checked in one place.

It comes from the distribution numba-cuda (extras ``cuda12`` and ``cuda13``), not from numba. What
stands in its way is told with what to install. ``NUMBA_ENABLE_CUDASIM=1`` makes it a simulator, in
which kernels run as Python on a CPU: slowly, and for tests.
"""

import functools
import importlib
import os
import re
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from ebm_core import ConfigurationError

LOWEST = (0, 30)
INSTALL = "pip install 'ebm-samplers[cuda13]' (or [cuda12], for drivers before 580)"


class CudaUnavailableError(ConfigurationError):
    """Kernels cannot be compiled for, or run on, CUDA devices here."""


def simulated() -> bool:
    """Whether numba.cuda is, or will be, its simulator."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def numba_cuda() -> Any:
    """The module `numba.cuda`, able to compile.

    Raises:
        CudaUnavailableError: If it is missing, too old, or without what it needs.
    """
    return _checked(_import)


def require_device() -> None:
    """Check that kernels can run on the devices that torch sees.

    Raises:
        CudaUnavailableError: If the driver is missing or too old, or the toolkit's wheels are.
    """
    _checked(_examine)


@functools.cache
def _tried(step: Callable[[], Any]) -> tuple[Any, tuple[str, str, str] | None]:
    """What a step gives, or why it fails: found out once."""
    try:
        return step(), None
    except _Missing as reason:
        found, wanted, remedy = reason.args
        return None, (found, wanted, remedy)
    except Exception as error:
        found = f"numba.cuda fails ({type(error).__name__}: {error})"
        return None, (found, "a working driver and toolkit", INSTALL)


def _checked(step: Callable[[], Any]) -> Any:
    result, reason = _tried(step)
    if reason is not None:
        raise CudaUnavailableError(*reason)
    return result


class _Missing(Exception):  # noqa: N818 - a reason
    """What was found, what was wanted, and what to do."""


def _import() -> Any:
    try:
        version = metadata.version("numba-cuda")
    except metadata.PackageNotFoundError:
        raise _Missing(
            "numba-cuda is not installed", "numba-cuda, for kernels on CUDA states", INSTALL
        ) from None
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LOWEST:
        raise _Missing(f"numba-cuda is {version}", f"{LOWEST[0]}.{LOWEST[1]} or newer", INSTALL)
    if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5 has dropped it
        np.row_stack = np.vstack  # noqa: NPY201
    try:
        with warnings.catch_warnings():  # NumPy 2.5 warns of what is done at its import
            warnings.simplefilter("ignore", DeprecationWarning)
            module = importlib.import_module("numba.cuda")
    except Exception as error:
        raise _Missing(
            f"numba-cuda {version} does not import ({type(error).__name__}: {error})",
            "a working numba.cuda (NumPy 2.5 or newer may be too new for it)",
            f"{INSTALL}, which brings a NumPy that suits",
        ) from error
    if getattr(module, "implementation", None) != "NVIDIA":
        raise _Missing(
            f"numba.cuda is numba's own, in {module.__file__}",
            "that of the distribution numba-cuda",
            f"{INSTALL} again: something has been installed over it",
        )
    return module


def _examine() -> None:
    cuda = numba_cuda()
    if simulated():
        return
    driver = importlib.import_module("numba.cuda.cudadrv.driver").driver
    if not driver.is_available:
        raise _Missing(
            f"numba.cuda finds no CUDA driver ({cuda.cuda_error()})",
            "a driver and a device",
            "install NVIDIA's driver, or use engine='torch'",
        )
    if not importlib.import_module("numba.cuda.cudadrv.nvvm").is_available():
        raise _Missing(
            "the compiler library of the CUDA toolkit (nvvm) is missing", "its wheels", INSTALL
        )
    newest = driver.get_version()
    toolkit = importlib.import_module("numba.cuda.cudadrv.runtime").runtime.get_version()
    if newest[0] < toolkit[0]:
        raise _Missing(
            f"the driver is for CUDA {newest[0]}.{newest[1]}, the toolkit is {toolkit[0]}."
            f"{toolkit[1]}",
            "a driver that is as new as the toolkit",
            f"update the driver, or pip install 'ebm-samplers[cuda{newest[0]}]'",
        )
