"""Kernels are functions that Numba compiles too, and then gives the same numbers."""

import dataclasses

import numpy as np
import pytest
import torch
from targets import TARGETS

from ebm_core import as_energy
from ebm_samplers.fused import fused_energy, native, noise
from ebm_samplers.fused.with_numba import compiled_by_numba


def by_numba(source, name="chains"):
    space = {}
    exec(compile(source, "<module>", "exec"), space)
    found = native._linked(*compiled_by_numba(name, space, space["OPTIONS"]["fastmath"]))
    assert found is not None
    call, _, engine = found
    return call, engine


@pytest.mark.parametrize(
    ("sampler", "target", "dtype", "n"),
    (
        ("hmc", "double well", torch.float32, 70),
        ("mala", "double well", torch.float64, 1),
        ("langevin", "perceptron", torch.float32, 5),
        ("nuts", "funnel", torch.float64, 5),
    ),
)
def test_chains_are_the_same(sampler, target, dtype, n, monkeypatch):
    make, shape = TARGETS[target]
    energy = as_energy(make(dtype))
    x = torch.randn(n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    fused = fused_energy(energy, x, sampler)
    kernel = fused.kernel(sampler, fused.lanes_for(sampler, n))

    def run():
        settings = {"n_steps": 9, "step_size": 0.05, "lengths": 3, "key": 5, "thin": 3}
        return fused.run(sampler, x.reshape(n, -1).numpy(), keep_draws=True, **settings)

    have = run()
    call, engine = by_numba(kernel.source)
    function = dataclasses.replace(kernel._function, call=call)
    monkeypatch.setattr(kernel, "_function", function)
    want = run()
    # one rounding apart at most: LLVM may reassociate as it finds the code
    for a, b in ((have.draws, want.draws), (have.statistics, want.statistics)):
        assert np.allclose(a, b, rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=1e-6)
    del engine


@pytest.mark.parametrize("double", (False, True))
def test_noise_is_the_same(double):
    words, dtype = np.zeros(4 * 32, np.uint32), np.float64 if double else np.float32
    source = noise.module_of_fill(double)
    found, _ = native.native(source, "fill")
    call, engine = by_numba(source, "fill")
    results = []
    for function in (found.call, call):
        z = np.zeros(4 * 32, dtype)
        args = (z.ctypes.data, words.ctypes.data, 32, 8, 3, 7, 2**33, 14, 3, 1, 2**63 + 5, False)
        function(*args)
        results.append(z)
    assert np.array_equal(*results)
    del engine


def test_numba_is_asked_for_what_the_compiler_refuses(monkeypatch):
    def refuse(*_):
        raise native.CannotCompile("all")

    monkeypatch.setattr(native, "compiled", refuse)
    monkeypatch.setattr(native.cache, "read", lambda _: None)
    source = """
OPTIONS = {"fastmath": set()}


def put(out: "float64*", n: "int64"):
    for i in range(n):
        out[i] = i / 2
"""
    out = np.zeros(3)
    native.native(source, "put")[0].call(out.ctypes.data, 3)
    assert out.tolist() == [0.0, 0.5, 1.0]
