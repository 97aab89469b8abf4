"""Losses train energies of any make with samplers of any make."""

import copy

import pytest
import torch
from torch import nn

from ebm_core import EnergyFunction, as_energy
from ebm_core.testing import LossConformance, ReferenceLangevin
from ebm_energies import Gaussian, Harmonic
from ebm_losses import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastiveEstimation,
    ParallelTemperingContrastiveDivergence,
    PersistentContrastiveDivergence,
)
from ebm_models import MLPEnergy, ModuleEnergy
from ebm_samplers import MALA, HamiltonianMonteCarlo, LangevinDynamics
from ebm_utils import EightGaussians, log_partition


class NoisyDescent:
    """A stranger's sampler: one method, none of our classes."""

    def __init__(self, energy):
        self.energy = as_energy(energy)

    def sample_chain(self, x_init, n_steps):
        x = x_init
        for _ in range(n_steps):
            x = x - 0.01 * self.energy.gradient(x) + 0.02**0.5 * torch.randn_like(x)
        return x


class StrangeNetwork(nn.Module):
    """A stranger's energy: a module with the right call."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.1), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        return self.layers(x).squeeze(1) + 0.1 * x.square().sum(1)


class Bowl(EnergyFunction):
    """A user's subclass, one parameter."""

    def __init__(self, stiffness=1.0):
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(stiffness))

    def forward(self, x):
        return 0.5 * self.stiffness * x.square().sum(1)


ENERGIES = {
    "MLPEnergy": lambda: MLPEnergy(2, hidden=(16,), base_scale=3.0),
    "ModuleEnergy": lambda: ModuleEnergy(nn.Linear(2, 1), event_shape=2, base_scale=3.0),
    "sum": lambda: MLPEnergy(2, hidden=(16,)) + Harmonic(0.5, dim=2),
    "tempered": lambda: MLPEnergy(2, hidden=(16,), base_scale=3.0).tempered(2.0),
    "subclass": Bowl,
    "module": StrangeNetwork,
}
SAMPLERS = {
    "LangevinDynamics": lambda energy: LangevinDynamics(energy, step_size=0.01),
    "MALA": lambda energy: MALA(energy, step_size=0.1),
    "MALA, adapting": lambda energy: MALA(energy, step_size=0.1, target_acceptance=0.6),
    "HMC": lambda energy: HamiltonianMonteCarlo(energy, step_size=0.1, n_leapfrog_steps=3),
    "ReferenceLangevin": lambda energy: ReferenceLangevin(energy, step_size=0.01),
    "stranger": NoisyDescent,
}
CONTRASTIVE = {
    "CD": lambda energy, sampler: ContrastiveDivergence(energy, sampler, k_steps=2),
    "PCD": lambda energy, sampler: PersistentContrastiveDivergence(
        energy, sampler, k_steps=2, buffer_size=48
    ),
}
SAMPLER_FREE = {
    "DSM": lambda energy: DenoisingScoreMatching(energy, noise_scale=0.1),
    "NCE": lambda energy: NoiseContrastiveEstimation(
        energy, noise=Gaussian(torch.zeros(2), covariance=4 * torch.eye(2))
    ),
}


def train(energy: nn.Module, loss_fn: nn.Module, n_steps: int = 3) -> None:
    """A few steps, each of which must find a finite gradient and move every parameter."""
    data = EightGaussians(32 * n_steps, seed=0).data
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-2)
    before = copy.deepcopy(energy.state_dict())
    for batch in data.split(32):
        optimizer.zero_grad()
        loss_fn(batch).backward()
        optimizer.step()
    for name, parameter in energy.named_parameters():
        assert torch.isfinite(parameter).all()
        shift_invariant = parameter.shape == (1,) and "bias" in name  # the constant of an energy
        assert shift_invariant or not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("loss", CONTRASTIVE)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("energy", ENERGIES)
def test_every_contrastive_loss_trains_every_energy_with_every_sampler(energy, sampler, loss):
    torch.manual_seed(0)
    model = ENERGIES[energy]()
    loss_fn = CONTRASTIVE[loss](model, SAMPLERS[sampler](model))
    train(model, loss_fn)
    assert loss_fn.negatives.shape == (32, 2)
    assert not loss_fn.negatives.requires_grad
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("loss", SAMPLER_FREE)
@pytest.mark.parametrize("energy", ENERGIES)
def test_every_sampler_free_loss_trains_every_energy(energy, loss):
    torch.manual_seed(0)
    model = ENERGIES[energy]()
    train(model, SAMPLER_FREE[loss](model))


@pytest.mark.parametrize(
    ("sampler", "exact"),
    (
        (lambda energy: MALA(energy, step_size=0.5), True),
        (lambda energy: HamiltonianMonteCarlo(energy, step_size=0.7, n_leapfrog_steps=3), True),
        (lambda energy: LangevinDynamics(energy, step_size=0.5), False),
    ),
    ids=("MALA", "HMC", "unadjusted"),
)
def test_the_gradient_vanishes_at_the_truth_with_exact_samplers_alone(sampler, exact):
    """Data are exact draws, so that one transition of an invariant chain changes no expectation."""
    energy = Bowl(1.0)
    data = Gaussian(torch.zeros(2)).exact_sample(20_000, seed=0)
    loss_fn = ContrastiveDivergence(energy, sampler(energy), k_steps=1)
    torch.manual_seed(1)
    loss_fn(data).backward()
    changes = 0.5 * (data.square() - loss_fn.negatives.square()).sum(1)
    assert energy.stiffness.grad == pytest.approx(changes.mean().item(), abs=1e-4)
    z_score = changes.mean() / (changes.std() / len(changes) ** 0.5)
    assert (z_score.abs() < 4.5) == exact


def test_persistent_chains_learn_the_stiffness_of_the_data():
    torch.manual_seed(0)
    energy = Bowl(0.5)
    data = Gaussian(torch.zeros(2), covariance=0.25 * torch.eye(2)).exact_sample(4096, seed=0)
    sampler = HamiltonianMonteCarlo(energy, step_size=0.4, n_leapfrog_steps=3)
    loss_fn = PersistentContrastiveDivergence(energy, sampler, k_steps=1, buffer_size=1024)
    optimizer = torch.optim.SGD(energy.parameters(), lr=2.0)
    tail = []
    for step in range(200):
        optimizer.zero_grad()
        loss_fn(data).backward()
        optimizer.step()
        if step >= 100:
            tail.append(energy.stiffness.item())
    expected = 2 / data.square().sum(1).mean().item()  # the maximum likelihood estimate, about 4
    assert sum(tail) / len(tail) == pytest.approx(expected, rel=0.04)


def test_noise_contrast_learns_the_normaliser():
    torch.manual_seed(0)
    energy = Bowl(1.0)
    data = Gaussian(torch.zeros(2), covariance=0.25 * torch.eye(2)).exact_sample(8192, seed=0)
    noise = Gaussian(torch.zeros(2), covariance=0.5 * torch.eye(2))
    loss_fn = NoiseContrastiveEstimation(energy, noise=noise)
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        loss_fn(data).backward()
        optimizer.step()
    exact = log_partition(energy, bounds=[(-6, 6)] * 2, n_points=200)
    assert loss_fn.log_normalizer.item() == pytest.approx(exact, abs=0.1)
    assert energy.stiffness.item() == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(
    "objective",
    (
        lambda energy, sampler: PersistentContrastiveDivergence(
            energy, sampler, k_steps=2, buffer_size=64
        ),
        lambda energy, sampler: ParallelTemperingContrastiveDivergence(
            energy, sampler, buffer_size=48, adapt_betas=2
        ),
    ),
    ids=("PCD", "PT-CD"),
)
@pytest.mark.parametrize("sampler", ("MALA", "HMC"))
def test_training_resumes_bit_for_bit(sampler, objective):
    """Energy, loss (buffer and sampler with it) and optimiser, saved half way."""
    data = EightGaussians(32 * 6, seed=0).data.split(32)

    def build():
        torch.manual_seed(0)
        energy = MLPEnergy(2, hidden=(16,), base_scale=3.0)
        adapting = {
            "MALA": lambda: MALA(energy, step_size=0.1, target_acceptance=0.6),
            "HMC": lambda: HamiltonianMonteCarlo(
                energy, step_size=0.1, n_leapfrog_steps=3, target_acceptance=0.8
            ),
        }[sampler]()
        loss_fn = objective(energy, adapting)
        return energy, loss_fn, torch.optim.Adam(energy.parameters(), lr=1e-2)

    def advance(parts, batches):
        _, loss_fn, optimizer = parts
        for batch in batches:
            optimizer.zero_grad()
            loss_fn(batch).backward()
            optimizer.step()

    whole = build()
    advance(whole, data[:3])
    saved = copy.deepcopy([part.state_dict() for part in whole])
    random_state = torch.get_rng_state()
    advance(whole, data[3:])

    half = build()
    for part, state in zip(half, saved, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(random_state)
    advance(half, data[3:])
    for name, value in whole[1].state_dict().items():  # with the energy's
        same = half[1].state_dict()[name]
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same, name


class TestContrastiveDivergenceWithMALA(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: ContrastiveDivergence(energy, MALA(energy, step_size=0.1), k_steps=2)


class TestPersistentContrastiveDivergenceWithHMC(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: PersistentContrastiveDivergence(
            energy,
            HamiltonianMonteCarlo(energy, step_size=0.1, n_leapfrog_steps=2),
            k_steps=2,
            buffer_size=16,
        )
