import re

import numba
import numpy as np
import pytest
import torch

from ebm_samplers import LangevinDynamics, fuse
from ebm_samplers.fused.processor import FLUSHES, work_as_before, work_fast


@pytest.mark.skipif(not FLUSHES, reason="another way of telling the processor")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_tiny_numbers_are_zero_within_kernels_alone(dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([[0.5], [2.0]], dtype=dtype)
    energy, gradient = fuse(lambda x: (x * tiny * x * 2**60).sum(1))(x)
    assert (energy == torch.tensor([tiny * 2.0**58, tiny * 2.0**62], dtype=dtype)).all()
    energy, gradient = fuse(lambda x: ((x * tiny * 0.25).abs() * 2**60).sum(1))(x)
    assert energy.tolist() == [0, 0]
    assert gradient.tolist() != [0, 0]

    def still_there():
        return float(torch.tensor([tiny], dtype=dtype).mul_(0.5)[0]) == tiny / 2

    assert still_there()
    LangevinDynamics(lambda x: x.square().sum(1), 0.1, engine="fused").sample_chain(x, 3)
    assert still_there()


def test_long_registers():
    @numba.njit
    def doubled(x):
        before = work_fast()
        for i in range(len(x)):
            x[i] *= 2
        work_as_before(before)

    doubled(np.ones(1000))
    (text,) = doubled.inspect_llvm().values()
    assert re.search(r'"prefer-vector-width"="512"', text)
