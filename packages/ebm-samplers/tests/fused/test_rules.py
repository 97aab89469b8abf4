"""Each rule against torch, on ordinary and on awkward states, without compiling.

Generated functions are plain Python: they run here on whole arrays of lanes, one lane at a time, in
float64, with NumPy's functions in place of the compiled ones. Both forms of a program are run.
"""

import numpy as np
import pytest
import torch
from interpreter import interpreted
from torch import nn

from ebm_core import as_energy
from ebm_samplers.fused import lowering
from ebm_samplers.fused.rules import RULES
from ebm_samplers.fused.trace import CannotFuse, trace

f = nn.functional
INDEX = torch.tensor([1, 0, 1])

ENERGIES = {
    "add": lambda x: torch.add(x, x.exp(), alpha=2).sum(1) + torch.add(x, 3.0, alpha=2).sum(1),
    "sub": lambda x: torch.sub(x, x * x, alpha=3).sum(1) + torch.rsub(x, 2.0, alpha=3)[:, 1],
    "cat": lambda x: (torch.cat([x, x.square()], 1) * torch.arange(4.0).double()).sum(1),
    "stack": lambda x: torch.stack([x[:, 1], x[:, 0]], -1).cumsum(1).square().sum(1),
    "running": lambda x: (x[:, :, None] * MATRIX).cumsum(1).sin().sum((1, 2))
    + x.repeat(1, 5).cumsum(1).exp().sum(1),
    "powers": lambda x: (x**3).sum(1) + (x.abs() + 1).pow(-2).sum(1) + (x**17).sum(1),
    "roots": lambda x: (x.abs() ** 1.5 + x.abs() ** 0.5 + (x.abs() + 1) ** -0.5).sum(1),
    "real power": lambda x: (x.abs() + 0.1).pow(1.7).sum(1) + torch.pow(2.0, x).sum(1),
    "clamp": lambda x: x.clamp(-0.5, 0.5).sum(1) + (x.clamp(min=0.1) + x.clamp(max=1)).sum(1),
    "extrema": lambda x: torch.maximum(x[:, 0], x[:, 1]) + torch.minimum(x[:, 0], x[:, 1] ** 2),
    "gelu": lambda x: f.gelu(x).sum(1) + f.gelu(x, approximate="tanh").sum(1),
    "relu": lambda x: f.relu(x).sum(1) + f.leaky_relu(x, 0.2).sum(1) + f.elu(x, 0.7).sum(1),
    "silu": lambda x: (f.silu(x) + torch.sigmoid(x) + torch.tanh(x)).sum(1),
    "softplus": lambda x: f.softplus(x).sum(1) + f.softplus(x, 2.0, threshold=1.0).sum(1),
    "logsigmoid": lambda x: f.logsigmoid(x).sum(1) - f.logsigmoid(-x).sum(1),
    "functions": lambda x: (x.log1p() + x.expm1() + x.sin() * x.cos() + x.erf() + x.atan()).sum(1),
    "logarithm": lambda x: (x.log() + x.sqrt() + (x + 1).rsqrt() + x.reciprocal()).sum(1),
    "signs": lambda x: (x.sign() * x.square() + x.abs() + (x * x.floor()).neg()).sum(1),
    "flip": lambda x: (x.flip(1) * x.exp()).sum(1) + (x.roll(1, 1) * MATRIX[0])[:, 1],
    "index": lambda x: (x[:, INDEX] ** torch.tensor([1.0, 2.0, 3.0]).double()).sum(1),
    "gather": lambda x: x.gather(1, torch.tensor([[1, 1, 0]]).expand(len(x), 3)).exp().sum(1),
    "index select": lambda x: (x.index_select(1, INDEX) * x[:, :1]).sum(1),
    "where": lambda x: torch.where((x > 0) & ~(x > 1) | (x == -1), x, x.exp()).sum(1),
    "mask": lambda x: (x * (x > 0.3)).sum(1) + x.masked_fill(x < 0, 2.0).sum(1),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1) + torch.linalg.vector_norm(x, 1, dim=1),
    "logsumexp": lambda x: torch.logsumexp(3 * x, 1) + torch.logsumexp(-x, 1, keepdim=True)[:, 0],
    "softmax": lambda x: torch.softmax(30 * x, 1)[:, 0] + torch.log_softmax(1e4 * x, 1)[:, 1],
    "product": lambda x: torch.where(x.isnan(), 0.1, x.clamp(-9, 9)).prod(1),
    "means": lambda x: x.square().mean(1) + x.exp().mean((0, 1)),
    "matrices": lambda x: torch.einsum("bi,ij,bj->b", x, MATRIX, x) + (x @ MATRIX.T).exp().sum(1),
    "triangular": lambda x: torch.distributions.MultivariateNormal(
        torch.ones(2).double(), scale_tril=MATRIX.tril() + 0, validate_args=False
    ).log_prob(x),
    "triangular from the right": lambda x: torch.linalg.solve_triangular(
        MATRIX.triu(), x, upper=True, left=False).exp().sum(1),
    "truth": lambda x: torch.where((x > 0).any(1) & (x < 3).all(1), x[:, 0], x[:, 1].exp())
    + (x > 0.3).sum(1) * x[:, 0],
    "amax": lambda x: x.clamp(-9, 9).nan_to_num(0.3).amax(1) + (x * x).nan_to_num(0, 9, 9).amin(1),
    "maximum": lambda x: x.max(1).values + (x * x[:, :1]).min(1, keepdim=True)[0].squeeze(1),
    "hyperbolic": lambda x: (x.cosh() + x.sinh().tanh() + (0.01 * x).sinh()).sum(1),
    "other logarithms": lambda x: (x.log2() + x.log10() + x.exp2() + x.tan()).sum(1),
    "erfc": lambda x: x.erfc().sum(1) - x.clamp(-3, 26).erfc().log().sum(1),
    "integers": lambda x: (x * (x.round() + x.ceil() - 2 * x.trunc())).sum(1) + HALVES(x),
    "large integers": lambda x: (x * (5e6 * x - (5e6 * x).round())).sum(1) + HALVES(4e6 * x + 0.25),
    "empty": lambda x: torch.cat([x[:, :0], x], 1).sin().sum(1) + f.pad(x[:, :1], (-1, 3)).sum(1)
    + (x[:, :0] @ MATRIX[:0]).sum(1) + x[:, :0].cumsum(1).sum(1) + (x @ MATRIX[:, :0]).sum(1),
    "turned": lambda x: (x @ MATRIX[:, :1].flip(0)).sin().sum(1),
    "norms": lambda x: torch.linalg.vector_norm(x, 3, dim=1) + x.norm(torch.inf, 1) + x.norm(4, 1),
    "spread": lambda x: x.clamp(-9, 9).var(1) + (x + x.flip(1).exp().clamp(max=9)).std(1),
    "clipped": lambda x: f.hardtanh(x, -0.4, 2.0).exp().sum(1) + f.relu6(x).sum(1),
    "diagonal": lambda x: (x[:, :, None] * x[:, None]).diagonal(dim1=1, dim2=2).exp().sum(1),
    "repeat": lambda x: (x.repeat(1, 3) * torch.arange(6.0).double()).exp().sum(1),
    "xlogy": lambda x: torch.xlogy(x, x.abs()).sum(1) + torch.xlogy(2.0, x * x).sum(1),
    "outer": lambda x: (x[:, :, None] * x[:, None, :] @ MATRIX).flatten(1).square().sum(1),
    "slices": lambda x: ((x[:, 1:] - x[:, :-1]) ** 2).sum(1),
    "padding": lambda x: f.pad(x, (1, 2), value=0.5).exp().sum(1) + f.pad(x, (-1, 1)).sum(1),
    "split": lambda x: x.split(1, 1)[0].squeeze(1) * x.unbind(1)[1] + x.chunk(2, 1)[1][:, 0].sin(),
    "views": lambda x: (x.view(-1, 1, 2).transpose(1, 2).reshape(len(x), 2) * x.t().t()).sum(1),
    "in place": lambda x: _written(x).square().sum(1),
    "distribution": lambda x: torch.distributions.Normal(0.5, 2.0, validate_args=False)
    .log_prob(x)
    .sum(1),
}  # fmt: skip
REARRANGED = ("matrices", "triangular", "triangular from the right")
ONLY_STRAIGHT = ("maximum",)
MATRIX = torch.tensor([[1.0, 0.3], [-0.2, 2.0]], dtype=torch.float64)
AWKWARD = (0.0, 0.5, 1.0, -1.0, 25.0, -40.0, np.inf, -np.inf, np.nan)


def HALVES(x):  # noqa: N802
    return ((x * 2).round() / 2).round().sum(1)


def _written(x):
    y = x.clone()
    y[:, 0] += x[:, 1].exp()
    return y


def states():
    ordinary = torch.randn(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    awkward = torch.tensor([(a, b) for a in AWKWARD for b in (0.7, a, np.nan)], dtype=torch.float64)
    return torch.cat([ordinary, 3 * ordinary, awkward])


@pytest.mark.parametrize("limit", (1500, 0), ids=("straight", "looped"))
@pytest.mark.parametrize("name", tuple(ENERGIES))
def test_rules_agree_with_torch_everywhere(name, limit, monkeypatch):
    monkeypatch.setattr(lowering, "STRAIGHT_LIMIT", limit)
    energy, x = as_energy(ENERGIES[name]), states()
    record = trace(energy, x[:1], RULES)
    if limit == 0 and name in ONLY_STRAIGHT:
        with pytest.raises(CannotFuse, match="of this size"):
            lowering.lower(record)
        return
    program, layout = lowering.lower(record)
    assert program.straight == (limit > 0)
    have, slopes = interpreted(program, layout.now(), x.numpy())
    if not program.straight:  # the form for one lane
        for many, one in zip(
            (have, slopes), interpreted(program, layout.now(), x.numpy(), lanes=1), strict=True
        ):
            np.testing.assert_allclose(many, one, rtol=1e-12, atol=1e-12)
    # Torch one state at a time: energies of these tests may look at their whole batch.
    wanted = [energy.energy_and_gradient(state[None]) for state in x]
    want = torch.cat([e for e, _ in wanted]).numpy()
    gradients = torch.cat([g for _, g in wanted]).numpy()
    if name in REARRANGED:  # then 0 · ∞ may come up where it did not
        kept = np.isfinite(x.numpy()).all(1)
        have, want, slopes, gradients = (a[kept] for a in (have, want, slopes, gradients))
    np.testing.assert_allclose(have, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(slopes, gradients, rtol=1e-9, atol=1e-9)
