import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for emulation

import pytest
from emulation import EmulatedGraph, emulate

from ebm_samplers import engines


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    emulate(monkeypatch)
    EmulatedGraph.count = 0


@pytest.fixture
def opened(monkeypatch):
    """The kinds of chains that were made, in order."""
    kinds = []

    def noting(*args):
        chains = original(*args)
        kinds.append(type(chains))
        return chains

    original = engines.open_chains
    monkeypatch.setattr("ebm_samplers.sampler.open_chains", noting)
    return kinds
