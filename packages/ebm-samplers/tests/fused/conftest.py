import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Kernels of the tests, kept for the session; EBM_TEST_CACHE keeps them for longer."""
    import os

    torch.set_num_threads(1)
    folder = os.environ.get("EBM_TEST_CACHE") or str(tmp_path_factory.mktemp("kernels"))
    os.environ["EBM_SAMPLERS_CACHE_DIR"] = folder
    yield folder
