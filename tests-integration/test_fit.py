"""`fit`, a plain loop and Lightning around the same objectives: no adapter, the same numbers."""

import logging
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ebm_core import NumericalError
from ebm_energies import Gaussian
from ebm_losses import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastiveEstimation,
    PersistentContrastiveDivergence,
)
from ebm_models import MLPEnergy
from ebm_samplers import MALA, FusedEvaluator, HamiltonianMonteCarlo, LangevinDynamics
from ebm_utils import EightGaussians, TwoMoons, exact_kl, fit

BATCH, N_STEPS = 32, 24


def network():
    torch.manual_seed(0)
    return MLPEnergy(2, hidden=(16, 16), base_scale=3.0)


def persistent(energy, sampler):
    return PersistentContrastiveDivergence(energy, sampler, k_steps=2, buffer_size=64)


LOSSES = {
    "PCD, adapting MALA": lambda e: persistent(e, MALA(e, step_size=0.05, target_acceptance=0.6)),
    "PCD, HMC": lambda e: persistent(
        e, HamiltonianMonteCarlo(e, step_size=0.1, n_leapfrog_steps=3, target_acceptance=0.8)
    ),
    "PCD, Langevin, re-initialised": lambda e: PersistentContrastiveDivergence(
        e, LangevinDynamics(e, step_size=0.01), k_steps=2, buffer_size=64, reinit_probability=0.2
    ),
    "CD": lambda e: ContrastiveDivergence(e, MALA(e, step_size=0.05), k_steps=2),
    "NCE": lambda e: NoiseContrastiveEstimation(
        e, Gaussian(torch.zeros(2), covariance=4 * torch.eye(2))
    ),
    "DSM": lambda e: DenoisingScoreMatching(e, noise_scale=0.1),
    "DSM by kernels": lambda e: DenoisingScoreMatching(
        e, noise_scale=0.1, evaluator=FusedEvaluator("fused")
    ),
}


def data():
    return EightGaussians(BATCH * 6, seed=0).data


def assert_same(first, second):
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cut", (1, 13))
def test_a_resumed_run_equals_the_uncut_one(loss, cut, tmp_path):
    options = {"batch_size": BATCH, "schedule": "cosine", "ema_decay": 0.9}
    torch.manual_seed(1)
    whole = fit(LOSSES[loss](network()), data(), n_steps=N_STEPS, **options)

    def cut_short(step):
        return step == cut

    torch.manual_seed(1)
    options["checkpoint"] = tmp_path / "run.pt"
    first = LOSSES[loss](network())
    fit(first, data(), n_steps=N_STEPS, evaluate=cut_short, evaluate_every=1, **options)
    torch.manual_seed(7)
    resumed = fit(LOSSES[loss](network()), data(), n_steps=N_STEPS, resume=True, **options)
    assert resumed.step == N_STEPS
    assert_same(whole.loss, resumed.loss)
    assert_same(whole.energy, resumed.energy)
    assert whole.history["loss"] == resumed.history["loss"]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_plain_loop_equals_fit(loss):
    x = data()
    torch.manual_seed(1)
    fitted = LOSSES[loss](network())
    fit(fitted, lambda step: x[BATCH * (step % 6) :][:BATCH], n_steps=N_STEPS, learning_rate=0.01)

    torch.manual_seed(1)
    loss_fn = LOSSES[loss](network())
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=0.01)
    for _ in range(4):
        for batch in x.split(BATCH):
            optimizer.zero_grad()
            loss_fn(batch).backward()
            optimizer.step()
    assert_same(fitted, loss_fn)


@pytest.fixture
def lightning(monkeypatch):
    """Lightning, silent; what it warns of concerns its own imports and loaders without workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

        for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
            monkeypatch.setattr(logging.getLogger(name), "level", logging.ERROR)
        yield lightning


@pytest.mark.parametrize("loss", LOSSES)
def test_lightning_trains_as_a_plain_loop_does(loss, lightning, tmp_path):
    class Module(lightning.LightningModule):
        def __init__(self, loss_fn):
            super().__init__()
            self.loss_fn = loss_fn

        def training_step(self, batch, index):
            (x,) = batch
            value = self.loss_fn(x)
            self.log_dict(self.loss_fn.metrics)
            return value

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    torch.manual_seed(1)
    module = Module(LOSSES[loss](network()))
    plain = LOSSES[loss](network())
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    torch.manual_seed(1)
    trainer.fit(module, DataLoader(TensorDataset(data()), BATCH))
    assert trainer.global_step == 12
    assert trainer.logged_metrics.keys() == module.loss_fn.metrics.keys()

    torch.manual_seed(1)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for _ in range(2):
        for (batch,) in DataLoader(TensorDataset(data()), BATCH):
            optimizer.zero_grad()
            plain(batch).backward()
            optimizer.step()
    assert_same(module.loss_fn, plain)


def test_fit_learns_two_moons_and_gives_back_the_averaged_energy():
    torch.manual_seed(0)
    moons = TwoMoons(1)
    energy = MLPEnergy(2, hidden=(64, 64), base_scale=2.0, input_gain=4.0)
    noise = Gaussian(torch.zeros(2), covariance=4 * torch.eye(2))

    def judge(model):
        return exact_kl(model, moons.log_density, [(-10, 10)] * 2, 200)

    result = fit(
        NoiseContrastiveEstimation(energy, noise),
        lambda step: moons.sample(256),
        n_steps=600,
        learning_rate=3e-3,
        schedule="cosine",
        ema_decay=0.99,
        evaluate=lambda step: {"kl": judge(energy)},
        evaluate_every=300,
    )
    assert result.evaluation_steps == [300, 600]
    assert judge(result.energy) == result.evaluations["kl"][-1] < 0.3
    assert judge(energy) != result.evaluations["kl"][-1]


def test_a_sampler_that_blows_up_ends_the_run_at_its_step():
    energy = network()
    loss = persistent(energy, LangevinDynamics(energy, step_size=1e30))
    with pytest.raises(NumericalError, match="step 1: "):
        fit(loss, data(), n_steps=3)
