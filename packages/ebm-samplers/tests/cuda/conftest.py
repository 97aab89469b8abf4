import sys
from pathlib import Path

import pytest

for folder in ("fused", "cuda"):  # for targets and resources
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))


@pytest.fixture(scope="module")
def emulated():
    """An emulated device (for `nox -s ptx`); gives the stream, grid and block of each launch."""
    from emulated import emulated_device

    with emulated_device() as launches:
        yield launches
