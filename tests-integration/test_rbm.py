"""The Boltzmann machine of ebm-models, drawn by ebm-samplers and trained by ebm-losses."""

import itertools
import math

import pytest
import torch

from ebm_losses import (
    ContrastiveDivergence,
    ParallelTemperingContrastiveDivergence,
    PersistentContrastiveDivergence,
)
from ebm_models import BernoulliRBM
from ebm_samplers import BlockGibbs

N_CHAINS = 20_000


def states(n):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)))


def machine(n_visible=4, n_hidden=3):
    """Weights of order 2, centred on something."""
    torch.manual_seed(0)
    rbm = BernoulliRBM(n_visible, n_hidden, weight_scale=2.0)
    rbm.recentre(torch.randint(0, 2, (10, n_visible)))
    return rbm


def z_scores(final, rbm, beta=1.0):
    """Frequencies of all states against exp(-beta F), in standard errors."""
    every = states(rbm.n_visible)
    law = (-beta * rbm(every)).softmax(0).detach().double()
    found = (final[:, None] == every[None].to(final.dtype)).all(2).double().mean(0)
    return (found - law) / (law * (1 - law) / len(final)).sqrt()


@pytest.mark.parametrize("beta", (None, 0.3))
@pytest.mark.parametrize("dtype", (torch.int8, torch.float32))
def test_chains_have_the_machines_law(beta, dtype):
    rbm = machine()
    x = torch.zeros(N_CHAINS, 4, dtype=dtype)
    result = BlockGibbs(rbm).sample(x, n_steps=40, seed=0, beta=beta)
    factor = 1.0 if beta is None else beta
    assert z_scores(result.final, rbm, factor).abs().max() < 4.5
    assert z_scores(result.final, rbm, factor + 0.2).abs().max() > 4.5
    torch.testing.assert_close(result.potential[:, 0], rbm(result.final).detach())


def test_replicas_that_swap_keep_their_laws():
    """Swaps by (beta_i - beta_j)(F_i - F_j), as parallel tempering has them."""
    rbm, betas = machine(), torch.tensor([1.0, 0.5, 0.2])
    sampler, n = BlockGibbs(rbm), 4000
    torch.manual_seed(1)
    x = torch.zeros(n, 3, 4, dtype=torch.int8)
    for step in range(40):
        x = sampler.sample_chain(x.flatten(0, 1), 1, beta=betas.repeat(n)).reshape(n, 3, 4)
        i = step % 2
        energy = rbm(x.flatten(0, 1)).detach().reshape(n, 3)
        delta = (betas[i] - betas[i + 1]) * (energy[:, i] - energy[:, i + 1])
        swap = torch.rand(n) < delta.exp()
        x[swap, i], x[swap, i + 1] = x[swap, i + 1], x[swap, i]
    for i, beta in enumerate(betas):
        assert z_scores(x[:, i], rbm, beta).abs().max() < 4.5


def test_the_gradient_with_exact_negatives_is_that_of_the_likelihood():
    """Chains that have converged give ∇ log Z: z-scores against the sum over all states."""
    rbm = machine()
    data = states(4)[[1, 5, 6, 15, 15]].to(torch.int8)
    torch.manual_seed(2)
    loss_fn = PersistentContrastiveDivergence(
        rbm, BlockGibbs(rbm), k_steps=40, buffer_size=N_CHAINS, n_negatives=N_CHAINS
    )
    loss_fn(data)
    assert loss_fn.negatives.dtype == torch.int8
    each = torch.func.vmap(
        torch.func.grad(
            lambda parameters, v: torch.func.functional_call(rbm, parameters, (v[None],))[0]
        ),
        in_dims=(None, 0),
    )(dict(rbm.named_parameters()), loss_fn.negatives.float())
    exact = torch.autograd.grad(rbm.log_normalizer(), list(rbm.parameters()))
    for (name, _), want in zip(rbm.named_parameters(), exact, strict=True):
        error = each[name].std(0) / math.sqrt(N_CHAINS)
        assert ((each[name].mean(0) + want) / error).abs().max() < 4.5


@pytest.mark.parametrize(
    "make",
    (
        lambda rbm, sampler: ContrastiveDivergence(rbm, sampler, k_steps=10),
        lambda rbm, sampler: PersistentContrastiveDivergence(
            rbm, sampler, k_steps=5, buffer_size=128, n_negatives=128
        ),
        lambda rbm, sampler: ParallelTemperingContrastiveDivergence(
            rbm, sampler, k_steps=1, buffer_size=64, betas=[1.0, 0.7, 0.4], n_negatives=64
        ),
    ),
    ids=("CD-10", "PCD", "PT-CD"),
)
def test_a_machine_learns_patterns(make):
    """Four patterns of six units: exact log-likelihood near its bound, -log 4."""
    data = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0] * 6])
    data = data.to(torch.int8)
    torch.manual_seed(0)
    rbm = BernoulliRBM(6, 8)
    rbm.initialize_from(data)
    loss_fn = make(rbm, BlockGibbs(rbm))
    optimizer = torch.optim.Adam(rbm.parameters(), lr=0.02)

    def log_likelihood():
        with torch.no_grad():
            return (-rbm(data).mean() - rbm.log_normalizer()).item()

    before = log_likelihood()
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 600)
        rbm.recentre(data, 0.01)
        optimizer.zero_grad()
        loss_fn(data.repeat(16, 1)).backward()
        optimizer.step()
    assert before < -3
    assert -math.log(4) - 0.4 < log_likelihood() <= -math.log(4)
