"""Kernels kept on disk, and launched where torch works, on the emulated device: `nox -s ptx`."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from ebm_core import as_energy
from ebm_samplers.fused import cache
from ebm_samplers.fused.cuda import kernel, noise
from ebm_samplers.fused.cuda._backend import simulated
from ebm_samplers.fused.cuda.energy import CudaEnergy
from ebm_samplers.fused.kernel import counts

pytestmark = [
    pytest.mark.skipif(simulated() or not os.environ.get("EBM_PTX"), reason="run by nox -s ptx"),
    pytest.mark.usefixtures("emulated"),
]
KEY = 2**40 + 12345


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where kernels are kept; at first there are none."""
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget():
    """As in a new process."""
    kernel.jitted.cache_clear()
    noise._kernel.cache_clear()


def chains():
    """Chains of a new energy, and the kernel that ran them."""
    forget()
    energy, x = as_energy(lambda x: (x - 0.25).square().sum(1)), torch.linspace(-1, 1, 8).view(4, 2)
    cuda = CudaEnergy(energy, x)
    run = cuda.run("mala", cuda.flat(x), n_steps=3, step_size=0.3, key=KEY)
    return run.state, cuda.kernel("mala", 1)


def test_kernels_are_kept_on_disk(folder, monkeypatch):
    before = dict(counts)
    want, made = chains()
    assert not made.cached
    assert counts["compiled"] == before.get("compiled", 0) + 1
    have, loaded = chains()
    assert loaded.cached
    assert torch.equal(have, want)
    assert counts["cached"] == before.get("cached", 0) + 1
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda on: (8, 0))
    assert not chains()[1].cached  # it would be another device's
    assert len(list(folder.glob("fused_*.bin"))) == 2


def test_kept_kernels_are_machine_code(folder, monkeypatch):
    """Which numba.cuda loads, instead of linking them again."""
    library, codes = sys.modules["numba.cuda.codegen"].CUDACodeLibrary, []
    load = library.get_cufunc

    def linking(self):
        codes.append(self.get_cubin().code)
        return load(self)

    monkeypatch.setattr(library, "get_cufunc", linking)
    assert not chains()[1].cached
    monkeypatch.setattr(library, "_link_all", None)
    assert chains()[1].cached
    assert codes[-1] == codes[0]
    assert codes[0].startswith(b"\x7fELF")


def test_a_kept_kernel_that_cannot_be_used_is_made_anew(folder):
    want, _ = chains()
    (path,) = folder.glob("fused_*.bin")
    cache.write(path.stem.removeprefix("fused_"), {}, b"of another numba.cuda")
    have, made = chains()
    assert not made.cached
    assert torch.equal(have, want)
    assert chains()[1].cached


def test_the_torch_engines_kernels_are_kept(folder):
    numbers = []
    for _ in range(2):
        forget()
        out = torch.empty(3, 5)
        noise.fill_rows(out, False, KEY, 2, 0, 0)
        numbers.append(out)
    assert torch.equal(*numbers)
    assert len(list(folder.glob("fused_*.bin"))) == 1
    noise.fill_rows(torch.empty(3, 5), True, KEY, 2, 0, 0)
    assert len(list(folder.glob("fused_*.bin"))) == 2


def test_launches_are_on_torchs_stream(folder, emulated, monkeypatch):
    """Through Numba's own handling of streams."""
    for handle in (0, 4096, 8192):
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda on, h=handle: SimpleNamespace(cuda_stream=h)
        )
        chains()
        assert emulated[-1] == (handle, 128, 32)
