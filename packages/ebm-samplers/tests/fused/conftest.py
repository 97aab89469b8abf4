import sys
from pathlib import Path

import pytest

from ebm_samplers.fused import FusedEnergy, trainable

sys.path.insert(0, str(Path(__file__).parent))  # for targets


@pytest.fixture(autouse=True)
def however_few_operations(monkeypatch):
    """Kernels of terms are asked for small ones, too."""
    monkeypatch.setattr(trainable, "PAYS", 0)


@pytest.fixture
def eight_lanes(monkeypatch):
    """Several tiles for few chains."""
    monkeypatch.setattr(FusedEnergy, "lanes", lambda self, n_chains: 8)
