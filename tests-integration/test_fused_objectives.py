"""Objectives of ebm-losses, evaluated by kernels of ebm-samplers."""

import copy

import pytest
import torch

from ebm_core import ConfigurationError
from ebm_energies import Gaussian
from ebm_losses import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    EquilibriumMatching,
    NoiseContrastiveEstimation,
    PersistentContrastiveDivergence,
    ScoreMatching,
    SlicedScoreMatching,
)
from ebm_models import MLPEnergy
from ebm_samplers import FusedEvaluator, LangevinDynamics
from ebm_samplers.fused import counts
from ebm_utils import fit


def noise():
    return Gaussian(torch.zeros(2, dtype=torch.float64), covariance=4.0 * torch.ones(2).double())


def chains(energy):
    sampler = LangevinDynamics(energy, step_size=0.01)
    sampler.load_state_dict({"key": 1, "counter": 0, "step_size": None})
    return sampler


OBJECTIVES = {
    "contrastive": lambda e: ContrastiveDivergence(e, chains(e), 3),
    "persistent": lambda e: PersistentContrastiveDivergence(e, chains(e), 3, buffer_size=64),
    "noise-contrastive": lambda e: NoiseContrastiveEstimation(e, noise()),
    "energy discrepancy": lambda e: EnergyDiscrepancy(e, n_negatives=4),
    "denoising": lambda e: DenoisingScoreMatching(e, 0.1),
    "denoising, levels": lambda e: DenoisingScoreMatching(e, (0.1, 0.5)),
    "denoising, tempered": lambda e: DenoisingScoreMatching(e, (0.1, 0.5), reference_scale=0.2),
    "sliced": lambda e: SlicedScoreMatching(e),
    "sliced, plain, three directions": lambda e: SlicedScoreMatching(e, 3, False),
    "exact": lambda e: ScoreMatching(e),
    "equilibrium": lambda e: EquilibriumMatching(e),
}


def energy_of(event_shape=(2,)):
    torch.manual_seed(0)
    return MLPEnergy(event_shape, (32, 32)).double()


def step(loss_fn, x):
    """Value, metrics and gradients of a call."""
    torch.manual_seed(1)
    loss = loss_fn(x)
    loss.backward()
    parameters = dict(loss_fn.named_parameters())
    return loss.detach(), loss_fn.metrics, {n: p.grad for n, p in parameters.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_kernels_give_the_loss_its_metrics_and_its_gradients(name):
    energy = energy_of()
    x = torch.randn(80, 2, generator=torch.Generator().manual_seed(2)).double()
    plain, fused = OBJECTIVES[name](copy.deepcopy(energy)), OBJECTIVES[name](energy)
    fused.evaluator = FusedEvaluator("fused")
    want, have = step(plain, x), step(fused, x)
    torch.testing.assert_close(have[:2], want[:2], rtol=1e-9, atol=1e-9)
    assert {n for n, slope in have[2].items() if slope is None} == {
        n for n, slope in want[2].items() if slope is None
    }
    for parameter, slope in want[2].items():
        if slope is not None:
            torch.testing.assert_close(have[2][parameter], slope, rtol=1e-8, atol=1e-10)


def test_images_too():
    energy = energy_of((2, 3, 2))
    x = torch.randn(70, 2, 3, 2, generator=torch.Generator().manual_seed(2)).double()
    for make in (DenoisingScoreMatching, SlicedScoreMatching):
        plain, fused = make(energy), make(energy, evaluator=FusedEvaluator("fused"))
        torch.testing.assert_close(step(fused, x)[0], step(plain, x)[0], rtol=1e-9, atol=1e-9)


def test_flat_energies_are_refused_with_kernels_too():
    flat = MLPEnergy(2, (8,), activation=torch.relu, base_scale=None)
    loss_fn = SlicedScoreMatching(flat, evaluator=FusedEvaluator())
    with pytest.raises(ValueError, match="smooth"):
        loss_fn(torch.randn(2000, 2))


def test_what_has_no_kernel_is_told_by_contrastive_objectives_too():
    energy, x = energy_of(), torch.randn(20, 2).double()
    hook = energy.hidden[0].register_forward_hook(lambda *_: None)
    loss_fn = ContrastiveDivergence(energy, chains(energy), 1)
    loss_fn.evaluator = FusedEvaluator("fused")
    with pytest.raises(ConfigurationError, match="does more in forward"):
        loss_fn(x)
    hook.remove()
    with torch.no_grad():
        loss_fn(x)  # a validation, which torch evaluates
    calls = []
    energy.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    loss_fn.evaluator = FusedEvaluator()
    loss_fn(x)
    assert calls[-1] == 40  # data and negatives together, as before


def test_a_noise_scale_may_be_annealed():
    loss_fn = DenoisingScoreMatching(energy_of(), 0.1, evaluator=FusedEvaluator("fused"))
    x, traced = torch.randn(64, 2).double(), []
    for scale in (0.1, 0.2, 0.3):
        loss_fn.noise_scale = scale
        loss_fn(x).backward()
        traced.append(counts["traced"])
    assert traced[0] == traced[-1]


def test_training_by_kernels_ends_where_torchs_does():
    data = torch.randn(2000, 2, generator=torch.Generator().manual_seed(3)).double()
    ends = []
    for evaluator in (None, FusedEvaluator("fused")):
        energy = energy_of()
        torch.manual_seed(4)
        loss_fn = SlicedScoreMatching(energy, evaluator=evaluator)
        fit(loss_fn, data, n_steps=40, batch_size=100, progress=False)
        ends.append(torch.cat([p.detach().flatten() for p in energy.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)
