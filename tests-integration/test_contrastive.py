"""Contrastive objectives with the samplers of ebm-samplers and the models of ebm-models."""

import pytest
import torch
from torch import nn

from ebm_core import EnergyFunction, NumericalError
from ebm_core.testing import LossConformance
from ebm_energies import Gaussian, GaussianMixture
from ebm_losses import (
    JointEnergyLoss,
    ParallelTemperingContrastiveDivergence,
    PersistentContrastiveDivergence,
    ShortRunContrastiveDivergence,
)
from ebm_models import MLPEnergy
from ebm_samplers import MALA, NUTS, HamiltonianMonteCarlo, LangevinDynamics, UnderdampedLangevin
from ebm_utils import TwoMoons

SAMPLERS = {
    "LangevinDynamics": lambda energy: LangevinDynamics(energy, step_size=0.01),
    "UnderdampedLangevin": lambda energy: UnderdampedLangevin(energy, step_size=0.1),
    "MALA": lambda energy: MALA(energy, step_size=0.05),
    "MALA, adapting": lambda energy: MALA(energy, step_size=0.05, target_acceptance=0.6),
    "HMC": lambda energy: HamiltonianMonteCarlo(energy, step_size=0.1, n_leapfrog_steps=3),
    "NUTS": lambda energy: NUTS(energy, step_size=0.3),
}


class Quadratic(EnergyFunction):
    """½ xᵀ P x with every element of P free."""

    def __init__(self, dim):
        super().__init__()
        self.precision = nn.Parameter(torch.eye(dim))

    def forward(self, x):
        return 0.5 * torch.einsum("ni,ij,nj->n", x, self.precision, x)


def minimise(loss_fn, batch, n_steps, lr, keep=()):
    """Plain Adam; gives what ``keep`` says after each step."""
    optimizer = torch.optim.Adam(loss_fn.energy.parameters(), lr=lr)
    kept = []
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss_fn(batch()).backward()
        optimizer.step()
        kept.extend(f() for f in keep)
    return kept


@pytest.mark.parametrize(
    "make",
    (
        lambda energy, sampler: PersistentContrastiveDivergence(
            energy, sampler, k_steps=2, buffer_size=1024
        ),
        lambda energy, sampler: ParallelTemperingContrastiveDivergence(
            energy, sampler, k_steps=2, buffer_size=1024, betas=[1.0, 0.7, 0.5]
        ),
    ),
    ids=("PCD", "PT-CD"),
)
def test_the_precision_of_a_gaussian_in_ten_dimensions_is_recovered(make):
    torch.manual_seed(0)
    factor = torch.eye(10) + 0.15 * torch.randn(10, 10)
    data = Gaussian(torch.zeros(10), covariance=factor @ factor.T).exact_sample(8192, seed=0)
    estimate = torch.linalg.inv(data.T @ data / len(data))  # of maximum likelihood
    energy = Quadratic(10)
    loss_fn = make(energy, HamiltonianMonteCarlo(energy, step_size=0.4, n_leapfrog_steps=3))
    optimizer = torch.optim.SGD(energy.parameters(), lr=0.5)
    tail = []
    for step in range(250):
        optimizer.zero_grad()
        loss_fn(data).backward()
        optimizer.step()
        if step >= 100:
            tail.append(energy.precision.detach().clone())
    found = torch.stack(tail).mean(0)
    assert (estimate - torch.eye(10)).abs().max() > 0.5
    # 150 averaged gradients of 1024 chains, as good as independent after a step or two.
    assert (found - estimate).abs().max() < 0.03 * estimate.diagonal().max()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_parallel_tempering_takes_every_sampler(sampler):
    torch.manual_seed(0)
    energy = MLPEnergy(2, hidden=(16,), base_scale=3.0)
    loss_fn = ParallelTemperingContrastiveDivergence(
        energy, SAMPLERS[sampler](energy), buffer_size=32, betas=[1.0, 0.5, 0.2]
    )
    data = TwoMoons(1)
    minimise(loss_fn, lambda: data.sample(32), 3, 1e-2)
    assert loss_fn.buffer.states.shape == (32, 3, 2)
    assert ((loss_fn.swap_rates > 0.4) & (loss_fn.swap_rates <= 1.0)).all()


def test_swaps_carry_chains_between_modes_that_mala_alone_never_leaves():
    """Two modes 10 standard deviations apart, one with three times the weight of the other."""
    torch.manual_seed(0)
    energy = GaussianMixture(
        torch.tensor([[-3.0, 0.0], [3.0, 0.0]]),
        torch.full((2, 2), 0.36),
        weights=torch.tensor([0.75, 0.25]),
    )
    x = torch.tensor([3.0, 0.0]).expand(400, 2)

    def begin(size, *, device, dtype):
        return x[0].expand(size).clone()

    alone = PersistentContrastiveDivergence(
        energy, MALA(energy, 0.1), k_steps=5, buffer_size=400, initializer=begin
    )
    tempered = ParallelTemperingContrastiveDivergence(
        energy, MALA(energy, 0.1), k_steps=5, buffer_size=400, initializer=begin, betas=None
    )
    share = []
    for step in range(500):
        tempered(x)
        if step < 60:
            alone(x)
        if step >= 300:
            share.append((tempered.negatives[:, 0] < 0).float().mean())
    assert (alone.negatives[:, 0] > 0).all()
    assert abs(torch.stack(share).mean() - 0.75) < 0.06


# The guard on real runs: what diverges is stopped early, what does not is left alone.


def persistent(sampler, lr, n_steps):
    torch.manual_seed(0)
    energy = MLPEnergy(2, hidden=(32, 32), base_scale=2.0, input_gain=4.0)
    loss_fn = PersistentContrastiveDivergence(energy, sampler(energy), k_steps=5, buffer_size=128)
    data = TwoMoons(1)
    gaps = []
    return minimise(
        loss_fn,
        lambda: data.sample(128),
        n_steps,
        lr,
        keep=[lambda: gaps.append(loss_fn.metrics["energy_gap"].abs().item()) or max(gaps)],
    )


def test_unadjusted_chains_that_blow_up_are_stopped():
    with pytest.raises(NumericalError, match=r"blows up.*(step size|learning rate)"):
        persistent(lambda energy: LangevinDynamics(energy, step_size=0.05), 5e-2, 400)


def test_adjusted_chains_are_left_alone():
    largest = persistent(
        lambda energy: MALA(energy, step_size=0.02, target_acceptance=0.6), 2e-3, 200
    )
    assert largest[-1] < 5.0  # nats; the default limit is 20


# JEM and short runs


class Classifier(EnergyFunction):
    """Class scores of a small network as an energy."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 2))

    def logits(self, x):
        return self.network(x) - x.square().sum(1, keepdim=True) / 8

    def forward(self, x):
        return -self.logits(x).logsumexp(1)


def test_jem_classifies_and_generates():
    """Two blobs: the classifier tells them apart, its energy has both and nothing in between."""
    torch.manual_seed(0)
    energy = Classifier()
    sampler = MALA(energy, step_size=0.1, target_acceptance=0.6)
    loss_fn = JointEnergyLoss(energy, sampler, k_steps=10, buffer_size=256)
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-2)
    for _ in range(200):
        y = torch.randint(2, (256,))
        x = 0.4 * torch.randn(256, 2) + torch.stack([3.0 * y - 1.5, 0.0 * y], 1)
        optimizer.zero_grad()
        loss_fn(x, y).backward()
        optimizer.step()
    assert loss_fn.metrics["accuracy"] > 0.98
    means = energy(torch.tensor([[-1.5, 0.0], [1.5, 0.0], [0.0, 0.0], [0.0, 1.5]]))
    assert means[:2].max() + 1.0 < means[2:].min()


class TestShortRunsWithMALA(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: ShortRunContrastiveDivergence(energy, MALA(energy, 0.1), k_steps=2)


class TestParallelTemperingWithHMC(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: ParallelTemperingContrastiveDivergence(
            energy,
            HamiltonianMonteCarlo(energy, step_size=0.1, n_leapfrog_steps=2),
            buffer_size=16,
            betas=[1.0, 0.5],
        )
