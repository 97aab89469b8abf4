"""What is computed anew at a call, and what is not."""

import numpy as np
import pytest
import torch
from interpreter import interpreted
from torch import nn

from ebm_core import EnergyFunction, as_energy
from ebm_samplers.fused.lowering import lower, too_large
from ebm_samplers.fused.rules import RULES
from ebm_samplers.fused.trace import CannotFuse, trace


class Factored(EnergyFunction):
    """Leaves that are copied, turned, picked from, and computed with."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.covariance = nn.Parameter(torch.eye(3).double() + 0.2)
        self.weight = nn.Parameter(torch.randn(5, 3, generator=g, dtype=torch.float64))
        self.table = nn.Parameter(torch.randn(4, 3, generator=g, dtype=torch.float64))
        self.register_buffer("coarse", torch.ones(3, dtype=torch.bfloat16))

    def forward(self, x):
        root = torch.linalg.cholesky(self.covariance)
        hidden = (x @ self.weight.T).tanh() @ self.weight
        shifted = x - self.table[2] * self.coarse.double()
        return (hidden.sin() @ root).square().sum(1) + shifted.square().sum(1) * self.table[0, 1]


@pytest.fixture
def parts():
    energy = Factored()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    record = trace(energy, x[:1], RULES)
    program, parameters = lower(record)
    parameters.now()

    def agree():
        have, _ = interpreted(program, parameters.now(), x.numpy())
        np.testing.assert_allclose(have, energy(x).detach(), rtol=1e-12)

    return energy, parameters, agree


def test_all_ways_to_change_a_parameter_are_followed(parts):
    energy, parameters, agree = parts
    agree()
    unchanged = parameters.now()
    kept = unchanged.copy()
    assert parameters.now() is unchanged
    for tensor in (energy.covariance, energy.weight, energy.table):
        tensor.data[0, 0] += 0.25  # without the version counter
        agree()
        with torch.no_grad():
            tensor[-1, -1] += 0.125
        agree()
    assert np.array_equal(unchanged, kept)  # what was given out stays
    energy.covariance.data = energy.covariance.data.clone() + torch.eye(3).double()
    agree()
    energy.weight.data = energy.weight.data.T.contiguous().T * 2  # other strides
    agree()
    energy.weight = nn.Parameter(energy.weight.detach() - 1)
    agree()
    energy.coarse.mul_(3)
    agree()


def test_what_no_leaf_changes_is_kept(monkeypatch):
    """A matrix that forward makes stands beside leaves that all change."""
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = torch.randn(40, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def forward(x):
        waves = torch.arange(1600, dtype=x.dtype).view(40, 40).cos()
        return ((x @ weight).sin() @ waves).tanh().sum(1)

    energy = as_energy(forward)
    program, parameters = lower(trace(energy, x[:1], RULES))
    empty = parameters._empty
    monkeypatch.setattr(parameters, "_empty", lambda: np.full_like(empty(), np.nan))
    for _ in range(2):
        weight.mul_(0.9)
        have, _ = interpreted(program, parameters.now(), x.numpy())
        np.testing.assert_allclose(have, energy(x), rtol=1e-12)


def test_a_factor_is_computed_when_its_matrix_changes_and_not_otherwise(parts, monkeypatch):
    energy, parameters, agree = parts
    computed = []
    original = type(parameters)._tensor
    monkeypatch.setattr(
        type(parameters),
        "_tensor",
        lambda self, number, known: computed.append(number) or original(self, number, known),
    )
    energy.weight.data += 1
    agree()
    assert not computed
    energy.covariance.data += 1
    agree()
    assert computed


def test_a_tensor_of_another_kind_is_refused(parts):
    energy, parameters, _ = parts
    energy.weight = nn.Parameter(torch.zeros(6, 3).double())
    with pytest.raises(CannotFuse, match="'weight' was replaced"):
        parameters.now()


def test_the_limit_of_size_depends_on_the_number_of_chains():
    assert too_large(300_000, 10_000) is None
    assert too_large(1_000_000, 16) is None
    assert "1,000,000 scalar operations" in too_large(1_000_000, 4096)
    assert "beyond 400,000" in too_large(1_000_000, 4096)
    assert "one chain" in too_large(5_000_000, 1)
