import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for targets


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Kernels of these tests, kept for the session, so that tests share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path_factory.mktemp("cache") / "kernels"))
        yield
    torch.set_num_threads(threads)
