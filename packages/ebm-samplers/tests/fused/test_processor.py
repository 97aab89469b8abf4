import textwrap

import numpy as np
import pytest
import torch
from machine import machine

from ebm_samplers import MALA, HamiltonianMonteCarlo, LangevinDynamics, fuse
from ebm_samplers.fused import compiler, processor
from ebm_samplers.fused.processor import FLUSHES


@pytest.mark.skipif(not FLUSHES, reason="another way of telling the processor")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_tiny_numbers_are_zero_within_kernels_alone(dtype):
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([[0.5], [2.0]], dtype=dtype)
    energy, gradient = fuse(lambda x: (x * (tiny * 2.0**60) * x).sum(1))(x)
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
    """Where an energy takes many operations, and in MALA."""
    text = """
    def run(x: Reals, n: Int):
        use_long_registers()
        for i in range(n):
            x[i] *= 2.0
    """
    head = "from ebm_samplers.fused.processor import use_long_registers"
    x = np.ones(1000, np.float32)
    machine(text, head=head)(x, 999)
    assert x.tolist() == [2.0] * 999 + [1.0]
    space = {"Reals": "float32*", "Int": "int64"}
    source = textwrap.dedent(text)
    exec(f"{head}\n{source}", space)
    assert '"prefer-vector-width"="512"' in str(compiler.compiled(source, "run", space))

    def small(x):
        return x.square().sum(1)

    def large(x):
        return sum((i * x).sin().sum(1) for i in range(30))

    for kind, energy, long in (
        (LangevinDynamics, small, False),
        (LangevinDynamics, large, True),
        (HamiltonianMonteCarlo, small, False),
        (HamiltonianMonteCarlo, large, True),
        (MALA, small, True),
    ):
        source = kind(energy, 0.1, engine="fused").explain(torch.ones(30, 2)).source
        assert ("use_long_registers()" in source) == long


@pytest.mark.parametrize(
    ("features", "want"),
    (({"avx512f": True, "avx": True}, (32, 64)), ({"avx": True}, (16, 32)), ({}, (16, 16))),
)
def test_registers_are_those_of_the_processor(monkeypatch, features, want):
    monkeypatch.setattr(processor.llvm, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(processor, "FLUSHES", True)
    assert processor.registers.__wrapped__() == want


def test_other_processors_have_the_registers_of_arm(monkeypatch):
    monkeypatch.setattr(processor, "FLUSHES", False)
    assert processor.registers.__wrapped__() == (32, 16)
