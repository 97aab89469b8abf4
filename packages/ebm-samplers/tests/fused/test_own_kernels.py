"""Kernels in files of one's own."""

from pathlib import Path

import torch

from ebm_samplers import MALA
from ebm_samplers.fused import kernels

FILE = str(Path(kernels.__file__).with_name("mala.py"))


def energy(x):
    return (x.square() - 1).square().sum(1)


class Own(MALA):
    kernel = FILE


class Changed(Own):
    def transition(self, state, context):
        return super().transition(state, context)


def test_a_kernel_by_its_path():
    x = torch.linspace(-1, 1, 10).view(5, 2)
    own = Own(energy, 0.1)
    assert own.explain(x).engine == "fused"
    runs = [sampler.sample(x, n_steps=9, seed=0).final for sampler in (own, MALA(energy, 0.1))]
    assert torch.equal(*runs)


def test_a_class_that_changes_the_step_has_no_kernel():
    explanation = Changed(energy, 0.1).explain(torch.zeros(5, 2))
    assert explanation.engine == "torch"
    assert "its own transition" in explanation.reason
