"""Settings that are changed after construction, copies, and states to load."""

import copy

import pytest
import torch

from ebm_core import ConfigurationError
from ebm_samplers import (
    MALA,
    NUTS,
    AnnealedLangevin,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    MarkovSampler,
    sample,
    warm_up,
)
from ebm_samplers.streams import Stream


def energy(x):
    return x.square().sum(1) / 2


@pytest.mark.parametrize(
    ("sampler", "name", "wrong", "right"),
    (
        (HamiltonianMonteCarlo(energy), "n_leapfrog_steps", -3, 7),
        (HamiltonianMonteCarlo(energy), "jitter", 3.0, 0.5),
        (NUTS(energy), "max_tree_depth", 0, 5),
        (NUTS(energy), "max_tree_depth", 20, 5),
    ),
)
def test_settings_are_checked_whenever_they_are_set(sampler, name, wrong, right):
    before = getattr(sampler, name)
    with pytest.raises(ConfigurationError, match=name):
        setattr(sampler, name, wrong)
    assert getattr(sampler, name) == before
    setattr(sampler, name, right)
    assert getattr(sampler, name) == right


@pytest.mark.parametrize(
    ("name", "value"), (("ladder", (9.0, 1.0)), ("steps_per_level", 5), ("levels", "noise"))
)
def test_a_ladder_that_schedules_were_made_from_stays(name, value):
    sampler = AnnealedLangevin(energy, [3.0, 2.0, 1.0], steps_per_level=100)
    with pytest.raises(ConfigurationError, match="make another one"):
        setattr(sampler, name, value)
    assert sampler.n_annealing_steps == 200


def test_a_copy_has_settings_of_its_own():
    first = LangevinDynamics(energy, 0.1, noise_scale=1.0)
    second = copy.copy(first)
    second.step_size, second.noise_scale = 0.7, 0.0
    assert (first.step_size, first.noise_scale) == (0.1, 1.0)
    assert (second.step_size, second.noise_scale) == (0.7, 0.0)


@pytest.mark.parametrize(
    "state",
    (
        None,
        {"key": 5, "counter": -1, "step_size": 0.2},
        {"key": "abc", "counter": 0, "step_size": 0.2},
        {"key": 1.9, "counter": 0, "step_size": 0.2},
        {"key": 5, "counter": 0, "step_size": -1.0},
    ),
)
def test_a_state_that_is_refused_changes_nothing(state):
    sampler = MALA(energy, 0.1, target_acceptance=0.6)
    before = sampler.state_dict()
    with pytest.raises(ConfigurationError):
        sampler.load_state_dict(state)
    assert sampler.state_dict() == before


def test_mistakes_are_told_by_name():
    with pytest.raises(ConfigurationError, match="callback is 3"):
        MALA(energy, 0.1).sample(torch.zeros(2, 2), n_steps=3, callback=3)
    for x in ("a", torch.ones(0, 2)):
        with pytest.raises(ValueError, match="x has"):
            MALA(energy, 0.1).explain(x)

    class Unadjusted(MarkovSampler):
        adjusted = False

        def transition(self, state, context):
            return self.evaluate(0.9 * state.x + context.normals(Stream.NOISE)), {}

    with pytest.raises(ConfigurationError, match="reports no acceptance_rate"):
        Unadjusted(energy, 0.1, target_acceptance=0.5).sample_chain(torch.zeros(5, 2), 5)


def test_states_of_another_dtype_are_told_what_to_do():
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    with pytest.raises(ConfigurationError, match=r"x\.to\('cpu', torch.float32\)"):
        sample(network, x_init=torch.randn(64, 2).double())


@pytest.mark.parametrize(
    ("scale", "shape", "dtype"),
    ((100.0, (4, 100), torch.float32), (1e7, (1, 40), torch.float64), (1e-4, (4, 50), None)),
)
def test_a_dense_mass_of_few_draws_is_one_at_any_scale(scale, shape, dtype):
    x = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler = HamiltonianMonteCarlo(lambda x: (x / scale).square().sum(1) / 2)
    warm = warm_up(sampler, x.to(dtype or torch.float32), 200, mass="dense", seed=0)
    assert 0.05 < warm.step_size < 5.0
