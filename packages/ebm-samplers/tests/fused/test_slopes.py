"""Activations of looped programs, whose derivative is computed with them in the argument's rows."""

import numpy as np
import pytest
import torch
from interpreter import interpreted
from torch import nn

from ebm_core import as_energy
from ebm_samplers.fused import lowering, slopes
from ebm_samplers.fused.codegen import energy_function
from ebm_samplers.fused.program import Nest
from ebm_samplers.fused.rules import RULES
from ebm_samplers.fused.trace import trace

f = nn.functional
N = 24
generator = torch.Generator().manual_seed(0)
A, B = (torch.randn(N, n, generator=generator, dtype=torch.float64) / n**0.5 for n in (3, N))
AT = A.T.contiguous()
C = torch.randn(N, generator=generator, dtype=torch.float64)


def layers(x, activation=f.silu):
    return activation(f.linear(activation(f.linear(x, A, C)), B, C)).sum(1)


def skipped(x):
    """An argument that is used once more."""
    sums = f.linear(x, A, C)
    return (f.silu(sums) + sums.square()).sum(1)


def seen_again(x):
    """An argument that a view shares."""
    sums = f.linear(x, A, C)
    return f.silu(sums[:, None]).sum((1, 2)) + sums.sin().sum(1)


def twice(x):
    """Equal layers, which are one array."""
    first, second = torch.addmm(C, x, AT), torch.addmm(C, x, AT)
    return f.silu(first).sum(1) + (f.silu(second) * C).sum(1)


def twice_in_turn(x):
    first = f.silu(torch.addmm(C, x, AT))
    return (first * f.silu(torch.addmm(C, x, AT)[:, None])[:, 0]).sum(1)


def two_activations(x):
    sums = f.linear(x, A, C)
    return (f.silu(sums) + f.gelu(sums)).sum(1)


def of_the_state(x):
    """No layer: the argument's rows are the state's."""
    return f.silu(x.repeat(1, 8)).sum(1) + f.silu(x * C[:3]).sum(1)


def grouped(x):
    """A layer on parts of the state, with a bias of its own."""
    return f.silu(x[:, :, None].expand(-1, -1, 3) @ A.T[:, :8] + C[:8]).sum((1, 2))


def turned(x):
    return (f.silu(f.linear(x, A, C).view(-1, 4, 6).mT).flatten(1) * C).sum(1)


SHARED = {
    "silu": (layers, 2),
    "gelu": (lambda x: layers(x, f.gelu), 2),
    "gelu by tanh": (lambda x: layers(x, lambda a: f.gelu(a, approximate="tanh")), 2),
    "a bias of its own": (grouped, 1),
    "twice": (lambda x: layers(x, lambda a: f.silu(f.silu(a))), 4),
    "of a multiple": (lambda x: layers(x, lambda a: f.silu(2 * a)), 2),
}
NOT_SHARED = (
    skipped, seen_again, twice, twice_in_turn, two_activations, of_the_state, turned,
)  # fmt: skip
FUNCTION = {"gelu": "erf", "gelu by tanh": "tanh"}


def lowered(energy, monkeypatch):
    monkeypatch.setattr(lowering, "STRAIGHT_LIMIT", 0)
    monkeypatch.setattr(lowering, "simplified", lambda trace: trace)  # it joins equal values
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, *lowering.lower(trace(as_energy(energy), x[:1], RULES))


def check(energy, monkeypatch):
    x, program, parameters = lowered(energy, monkeypatch)
    stored = [
        store.row for nest in program.nests if isinstance(nest, Nest) for store in nest.stores
    ]
    assert min(getattr(row, "constant", row) for row in stored) >= x.shape[1]  # the state stays
    for lanes in (None, 1):
        options = {} if lanes is None else {"lanes": lanes}
        found = interpreted(program, parameters.now(), x.numpy(), **options)
        for have, want in zip(found, as_energy(energy).energy_and_gradient(x), strict=True):
            np.testing.assert_allclose(have, want.numpy(), rtol=1e-10, atol=1e-10)
    return program


@pytest.mark.parametrize("name", SHARED)
def test_each_elementary_function_is_computed_once(name, monkeypatch):
    energy, n_layers = SHARED[name]
    program = check(energy, monkeypatch)
    names = {op: op for op in ("sigmoid", "erf", "tanh", "exp")}
    assert (
        energy_function(program, names, 64).count(f"{FUNCTION.get(name, 'sigmoid')}(") == n_layers
    )


def test_a_derivative_takes_no_rows(monkeypatch):
    _, program, _ = lowered(layers, monkeypatch)
    monkeypatch.setattr(slopes, "SLOPES", {})
    _, apart, _ = lowered(layers, monkeypatch)
    assert program.n_rows <= apart.n_rows + N  # the last activation, which was only added up


@pytest.mark.parametrize("energy", NOT_SHARED)
def test_rows_that_others_read_are_left_alone(energy, monkeypatch):
    check(energy, monkeypatch)


def test_derivatives_are_kept_only_where_asked_for(monkeypatch):
    monkeypatch.setattr(lowering, "STRAIGHT_LIMIT", 0)
    record = trace(as_energy(layers), torch.zeros(1, 3, dtype=torch.float64), RULES)
    names = {"sigmoid": "sigmoid"}
    calls = [
        energy_function(lowering.lower(record, keep)[0], names, 64).count("sigmoid(")
        for keep in (True, False)
    ]
    assert calls == [2, 4]
