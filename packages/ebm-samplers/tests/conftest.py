import sys
from pathlib import Path

import pytest
import torch

from ebm_samplers.fused import CannotFuse, FusedEnergy

sys.path.insert(0, str(Path(__file__).parent))  # for laws, makers

from makers import MAKERS


@pytest.fixture(scope="session", autouse=True)
def kernels(tmp_path_factory):
    """Compiled kernels of these tests, in a folder of their own that all tests share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path_factory.mktemp("cache") / "kernels"))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def lanes(request, monkeypatch):
    """One tile size for all numbers of chains, where tiles are not the matter: fewer kernels."""
    if "fused" not in request.path.parts:
        monkeypatch.setattr(FusedEnergy, "lanes", lambda self, n_chains: 8)


@pytest.fixture
def torch_engine(monkeypatch):
    """Every step in torch, whatever the engine: for tests of the step that torch makes."""

    def refuse(sampler):
        raise CannotFuse("this is a test of the torch engine")

    monkeypatch.setattr("ebm_samplers.engines.kernel_of", refuse)


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.fixture(params=[name for name in MAKERS if "fused" not in name])
def make_in_torch(request):
    """For tests in which the energy notes each of its calls."""
    return MAKERS[request.param]
