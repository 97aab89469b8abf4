"""Which products of matrices are saved, and that energies stay what they are."""

import copy

import numpy as np
import pytest
import torch
from interpreter import interpreted
from torch import nn

from ebm_core import EnergyFunction, as_energy
from ebm_samplers.fused.algebra import cost, simplified
from ebm_samplers.fused.lowering import lower
from ebm_samplers.fused.rules import RULES
from ebm_samplers.fused.trace import CannotFuse, trace

D = 12
G = torch.Generator().manual_seed(11)
P, Q, W = (torch.randn(D, D, generator=G, dtype=torch.float64) / 3 for _ in range(3))
THIN, CENTRE = P[:, :3].clone(), Q[0].clone()


class Whitened(EnergyFunction):
    """½|W(x - μ)|², as dense Gaussians are written."""

    def __init__(self, whitening=W):
        super().__init__()
        self.whitening = nn.Parameter(whitening.clone())
        self.register_buffer("centre", CENTRE)

    def forward(self, x):
        return 0.5 * ((x - self.centre) @ self.whitening.mT).square().sum(-1)


TRIANGLE = torch.linalg.cholesky(P @ P.T + torch.eye(D))
linear = nn.functional.linear
# the energy, multiplications as written (forward and backward), and as they should be
ENERGIES = {
    "sum of squares": (Whitened(), 2 * D**2, D**2),
    "as a row": (as_energy(lambda x: 0.5 * linear(x, W).pow(2).sum(1)), 2 * D**2, D**2),
    "form": (as_energy(lambda x: 0.5 * (x * (x @ P)).sum(1)), 2 * D**2, D**2),
    "einsum": (as_energy(lambda x: torch.einsum("bi,ij,bj->b", x, P, x)), 2 * D**2 + 3 * D, D**2),
    "of columns": (as_energy(lambda x: (x * (P @ x.T).T).sum(1)), 2 * D**2, D**2),
    "vmap": (as_energy(torch.vmap(lambda v: 0.5 * v @ P @ v)), 2 * D**2 + 3 * D, D**2),
    "tempered": (Whitened().tempered(3.0), 2 * D**2, D**2),
    "scaled twice": (2.5 * (0.5 * as_energy(lambda x: (x * (x @ P)).sum(1))), 2 * D**2, D**2),
    "sum of two": (Whitened() + Whitened(Q), 4 * D**2, D**2 * 2),
    "two forms": (as_energy(lambda x: (x * (x @ P - x @ Q / 2 + 3 * x)).sum(1)), 4 * D**2, D**2),
    "low rank": (as_energy(lambda x: (x @ THIN).square().sum(1)), 6 * D, 6 * D),
    "composed": (as_energy(lambda x: ((x @ P) @ Q).exp().sum(1)), 4 * D**2, 2 * D**2),
    "not composed": (as_energy(lambda x: ((x @ P).sin() @ Q).exp().sum(1)), 4 * D**2, 4 * D**2),
    "vector": (as_energy(lambda x: (x @ P) @ CENTRE), D**2 + D, D),
    "distribution": (
        as_energy(
            lambda x: (
                -torch.distributions.MultivariateNormal(
                    CENTRE, scale_tril=TRIANGLE, validate_args=False
                ).log_prob(x)
            )
        ),
        2 * D**2,
        D**2,
    ),
    "after a turn": (
        as_energy(lambda x: ((x @ P).view(-1, 3, 4).mT.exp().flatten(1) @ Q).sin().sum(1)),
        4 * D**2,
        4 * D**2,
    ),
    "two vectors": (as_energy(lambda x: (x @ P * (x.cos() @ Q)).sum(1)), 4 * D**2, 4 * D**2),
}


@pytest.mark.parametrize("name", tuple(ENERGIES))
def test_products_are_saved_and_energies_stay(name):
    energy, before, after = ENERGIES[name]
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    record = trace(energy, x[:1], RULES)
    new = simplified(record)
    assert cost(record) == before
    assert cost(new) <= after
    have = interpreted(*prepared(record), x.numpy())
    for a, b in zip(have, energy.energy_and_gradient(x), strict=True):
        np.testing.assert_allclose(a, b.detach(), rtol=1e-10, atol=1e-11)


def prepared(record):
    program, parameters = lower(record)
    return program, parameters.now()


def test_the_form_of_a_parameter_is_followed():
    energy = Whitened()
    x = torch.randn(5, D, dtype=torch.float64)
    program, parameters = lower(trace(energy, x[:1], RULES))
    before = parameters.now()
    assert parameters.now() is before
    energy.whitening.data.mul_(1.25)  # no version counter sees this
    have, _ = interpreted(program, parameters.now(), x.numpy())
    np.testing.assert_allclose(have, energy(x).detach(), rtol=1e-12)


def float32(record, x):
    """Energies as a kernel computes them in float32."""
    program, p = prepared(record)
    return np.concatenate([interpreted(program, p, row[None], np.float32)[0] for row in x])


@pytest.mark.parametrize(("ratio", "saved"), ((2, True), (6, False), (9, False)))
def test_sums_of_squares_keep_their_accuracy(ratio, saved):
    """In float32: cond(WᵀW) of 10^ratio."""
    root = torch.linalg.svd(torch.randn(D, D, generator=G, dtype=torch.float64))
    whitening = root.U @ torch.logspace(0, ratio / 2, D, dtype=torch.float64).diag() @ root.Vh
    energy = Whitened(whitening).float()
    exact = copy.deepcopy(energy).double()
    z = torch.randn(100, D, generator=G, dtype=torch.float64)
    x = (CENTRE + torch.linalg.solve(exact.whitening.detach(), z.mT).mT).float()
    record = trace(energy, x[:1], RULES)
    assert (cost(simplified(record)) < cost(record)) == saved
    have = float32(record, x.numpy())
    want = exact(x.double()).detach()
    if ratio < 9:  # beyond, x itself is too coarse
        assert np.abs(have - want.numpy()).max() < 0.02


def test_a_form_that_becomes_ill_conditioned_is_noticed():
    energy = Whitened().float()
    _, parameters = lower(trace(energy, torch.zeros(1, D), RULES))
    parameters.now()
    with torch.no_grad():
        energy.whitening[0] *= 1e-5
    with pytest.raises(CannotFuse, match="ill-conditioned"):
        parameters.now()
