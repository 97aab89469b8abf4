"""The step follows the acceptance rate, where and only where it should."""

import math

import pytest
import torch

from ebm_core import ConfigurationError
from ebm_core.testing import QuadraticEnergy
from ebm_samplers import MALA, HamiltonianMonteCarlo, LangevinDynamics, StepSizeAdaptation

pytestmark = pytest.mark.usefixtures("torch_engine")


def sampler(kind=MALA, step_size=0.01, target=0.6):
    return kind(QuadraticEnergy(torch.zeros(5), torch.ones(5)), step_size, target_acceptance=target)


@pytest.mark.parametrize("beta", (None, torch.linspace(0.5, 2, 200)))
@pytest.mark.parametrize(("kind", "target"), ((MALA, 0.6), (HamiltonianMonteCarlo, 0.8)))
@pytest.mark.parametrize("step_size", (0.2, 6.0))
def test_reaches_the_target_from_both_sides(kind, target, step_size, beta):
    adapting = sampler(kind, step_size, target)
    x = adapting.sample_chain(torch.randn(200, 5), 120, beta=beta)
    fixed = kind(adapting.energy, adapting.step_size)
    rate = fixed.sample(x, n_steps=20, seed=0, beta=beta).stats["acceptance_rate"].mean()
    assert abs(rate - target) < 0.08


@pytest.mark.parametrize("target", (0.1, 0.5, 0.6, 0.8, 0.9))
def test_a_factor_of_ten_takes_60_transitions_at_most(target):
    rule = StepSizeAdaptation(target)
    up = down = torch.tensor(1.0).double()
    for age in range(60):
        up, down = rule.moved(up, torch.ones(3), age), rule.moved(down, torch.zeros(3), age)
    assert up > 10
    assert down < 0.1
    still = rule.moved(torch.tensor(2.0), torch.tensor([0.0, 2 * target]), age=0)
    assert abs(still - 2) < 1e-6


@pytest.mark.parametrize("target", (0.6, 0.9))
@pytest.mark.parametrize("factor", (0.1, 10.0))
def test_is_quick_in_both_directions(target, factor):
    right = {0.6: 0.79, 0.9: 0.30}[target]  # where a long run settles
    adapting = sampler(MALA, factor * right, target)
    adapting.sample_chain(torch.randn(500, 5), 65)
    assert 1 / 1.25 < adapting.step_size / right < 1.25


def test_a_single_chain_keeps_the_target_and_its_step_steady():
    torch.manual_seed(0)
    adapting, steps, rates = sampler(MALA, 0.3, 0.9), [], []
    x = adapting.sample_chain(torch.randn(1, 5), 30)
    for _ in range(200):
        x = adapting.sample_chain(x, 2)
        steps.append(math.log(adapting.step_size))
        rates.append(adapting.acceptance_rate.item())
    assert torch.tensor(steps).std() < 0.25
    assert abs(sum(rates) / 200 - 0.9) < 0.02


def test_sample_adapts_in_burn_in_alone():
    adapting = sampler()
    adapting.sample(n_samples=50, n_steps=20)
    assert adapting.step_size == 0.01
    result = adapting.sample(n_samples=50, n_steps=2, burn_in=20)
    assert adapting.step_size > 0.012
    assert math.isclose(result.stats["step_size"][0].item(), adapting.step_size, rel_tol=1e-6)


def test_a_seeded_run_adapts_a_copy_and_resumes_with_it():
    adapting = sampler()
    whole = adapting.sample(n_samples=50, n_steps=8, burn_in=20, seed=1, keep="trajectory")
    assert adapting.step_size == 0.01
    assert (whole.stats["step_size"] > 0.012).all()
    cut = adapting.sample(n_samples=50, n_steps=3, burn_in=20, seed=1)
    rest = sampler().sample(resume=cut.resume, n_steps=5, keep="trajectory")
    assert torch.equal(rest.trajectory, whole.trajectory[:, 3:])
    assert torch.equal(rest.stats["step_size"], whole.stats["step_size"])


def test_states_carry_the_step():
    adapting, twin = sampler(), sampler()
    x = adapting.sample_chain(torch.randn(20, 5), 30)
    twin.load_state_dict(adapting.state_dict())
    assert twin.step_size == adapting.step_size != 0.01
    assert torch.equal(twin.sample_chain(x, 10), adapting.sample_chain(x, 10))
    with pytest.raises(ConfigurationError, match="target_acceptance"):
        MALA(twin.energy).load_state_dict(twin.state_dict())


def test_wrong_targets_are_refused():
    for target in (0, 1, -0.5, math.nan):
        with pytest.raises(ConfigurationError, match="target_acceptance"):
            sampler(target=target)
    with pytest.raises(ConfigurationError, match="schedule"):
        sampler(step_size=lambda step: 0.1)


def test_the_last_calls_acceptance_is_kept_for_losses():
    torch.manual_seed(0)
    fixed = MALA(QuadraticEnergy(torch.zeros(5)), step_size=0.5)
    assert fixed.acceptance_rate is None
    x = torch.randn(500, 5)
    final = fixed.sample_chain(x, 10)
    result = fixed.sample(final, n_steps=10, seed=0)
    expected = result.stats["acceptance_rate"].mean()
    assert abs(fixed.acceptance_rate - expected) < 5 * 0.3 / (5000 / 10) ** 0.5
    unadjusted = LangevinDynamics(QuadraticEnergy(torch.zeros(5)), step_size=0.5)
    unadjusted.sample_chain(x, 2)
    assert unadjusted.acceptance_rate is None
