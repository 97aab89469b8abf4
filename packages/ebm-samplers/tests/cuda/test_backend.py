"""What stands in the way of CUDA kernels is told, and gone around where that is allowed."""

import importlib
import warnings
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ebm_samplers import MALA
from ebm_samplers import noise as noise_module
from ebm_samplers.engines import _warn_once
from ebm_samplers.fused.cuda import _backend
from ebm_samplers.fused.cuda._backend import CudaUnavailableError, numba_cuda, require_device

NVIDIA = SimpleNamespace(implementation="NVIDIA", cuda_error=lambda: "no libcuda")


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    _backend._tried.cache_clear()
    yield
    _backend._tried.cache_clear()


@pytest.fixture
def installed(monkeypatch):
    """Say what is installed: a version of numba-cuda, and modules by name."""

    def install(version, **modules):
        monkeypatch.setattr(metadata, "version", lambda name: version)
        named = {"numba.cuda": NVIDIA}
        named |= {f"numba.cuda.cudadrv.{name}": module for name, module in modules.items()}

        def load(name):
            if isinstance(named[name], Exception):
                raise named[name]
            return named[name]

        monkeypatch.setattr(importlib, "import_module", load)
        return named

    return install


def driver(version, available=True):
    found = SimpleNamespace(is_available=available, get_version=lambda: version)
    return SimpleNamespace(driver=found)


def toolkit(version):
    return SimpleNamespace(runtime=SimpleNamespace(get_version=lambda: version))


NVVM = SimpleNamespace(is_available=lambda: True)


def test_it_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    for _ in range(2):
        with pytest.raises(CudaUnavailableError, match=r"not installed.*\[cuda13\]"):
            numba_cuda()


@pytest.mark.parametrize("version", ("0.29.4", "0.4rc1"))
def test_it_is_too_old(installed, version):
    installed(version)
    with pytest.raises(CudaUnavailableError, match=f"numba-cuda is {version}"):
        numba_cuda()


def test_another_one_stands_in_its_place(installed):
    installed("0.30.4")["numba.cuda"] = SimpleNamespace(__file__="/numba/cuda/__init__.py")
    with pytest.raises(CudaUnavailableError, match="numba's own"):
        numba_cuda()


def test_it_does_not_import(installed):
    installed("0.30.4")["numba.cuda"] = AttributeError("np.something is gone")
    with pytest.raises(CudaUnavailableError, match=r"np\.something is gone.*NumPy"):
        numba_cuda()


def test_names_that_numpy_has_dropped_are_restored(installed, monkeypatch):
    monkeypatch.delattr(np, "row_stack", raising=False)
    installed("0.30.4")
    assert numba_cuda() is NVIDIA
    assert np.row_stack is np.vstack  # noqa: NPY201


def test_there_is_no_driver(installed):
    installed("0.30.4", driver=driver((13, 0), available=False))
    with pytest.raises(CudaUnavailableError, match="no CUDA driver.*no libcuda"):
        require_device()


def test_the_compiler_library_is_missing(installed):
    installed("0.30.4", driver=driver((13, 0)), nvvm=SimpleNamespace(is_available=lambda: False))
    with pytest.raises(CudaUnavailableError, match="nvvm"):
        require_device()


def test_the_driver_is_older_than_the_toolkit(installed):
    installed("0.30.4", driver=driver((12, 8)), nvvm=NVVM, runtime=toolkit((13, 0)))
    with pytest.raises(CudaUnavailableError, match=r"12\.8.*13\.0.*\[cuda12\]"):
        require_device()


def test_the_toolkit_fails_otherwise(installed):
    installed("0.30.4", driver=driver((13, 0)), nvvm=NVVM, runtime=RuntimeError("no nvrtc"))
    with pytest.raises(CudaUnavailableError, match="no nvrtc"):
        require_device()


def test_all_is_there(installed):
    installed("1.0.0", driver=driver((13, 0)), nvvm=NVVM, runtime=toolkit((13, 2)))
    require_device()


def test_auto_goes_to_torch_with_one_warning_and_fused_insists(monkeypatch):
    def unavailable(device):
        raise CudaUnavailableError("numba-cuda is not installed", "it", "install it")

    monkeypatch.setattr("ebm_samplers.fused.lookup.kernels_for", unavailable)
    _warn_once.cache_clear()
    x = torch.zeros(2, 2)
    sampler = MALA(lambda x: x.square().sum(1), 0.1)
    with pytest.warns(RuntimeWarning, match="run on the torch engine: .*install it"):
        sampler.sample_chain(x, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.sample_chain(x, 2)
    explanation = sampler.explain(x)
    assert explanation.engine == "torch"
    assert "install it" in explanation.reason
    with pytest.raises(CudaUnavailableError, match="install it"):
        MALA(lambda x: x.square().sum(1), 0.1, engine="fused").sample_chain(x, 2)


def test_noise_is_made_here_where_devices_cannot(monkeypatch):
    monkeypatch.setattr(noise_module, "_unable", set())
    out = torch.empty(2, 2)

    def broken(*args):
        raise OSError("it does not link")

    monkeypatch.setitem(
        __import__("sys").modules,
        "ebm_samplers.fused.cuda.noise",
        SimpleNamespace(fill_rows=broken),
    )
    with pytest.warns(RuntimeWarning, match="made on the CPU and copied: it does not link"):
        assert not noise_module._filled_there(out, torch.float32, (False, 0, 1, 0, 0))
    assert noise_module._unable
