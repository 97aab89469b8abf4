"""The guard: what it stops, what it lets pass, and the runs it is made for."""

import copy

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, NumericalError
from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
from ebm_losses import (
    ContrastiveDivergence,
    PersistentContrastiveDivergence,
    RunawayGuard,
)


def metrics(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("gaps", "n_elements", "stops"),
    (
        ([1.0, 19.0, -19.0], 2, False),  # below the limit, however fast
        ([18.0, 22.0, 60.0, 87.0], 2, False),  # not yet four times as large
        ([18.0, 22.0, 60.0, 89.0], 2, True),
        ([-22.0, -89.0], 1, True),  # one element counts as two
        ([5000.0, 2000.0, 500.0, 25.0, 1.0], 2, False),  # falls
        ([5000.0, 400.0, 1600.0], 2, True),  # falls, then grows
        ([22.0, 15.0, 89.0], 2, False),  # began below the limit again
        ([1100.0, 7800.0], 784, False),  # as large as the event allows
        ([8000.0, 40_000.0], 784, True),
    ),
)
def test_a_gap_that_is_large_and_grows_stops_the_run(gaps, n_elements, stops):
    guard = RunawayGuard(energy_limit=None)
    for gap in gaps[:-1]:
        guard(metrics(energy_gap=gap), n_elements)
    if not stops:
        guard(metrics(energy_gap=gaps[-1]), n_elements)
        return
    knob = "MALA" if gaps[-1] > 0 else "EnergyMagnitude"
    with pytest.raises(NumericalError, match=rf"energy gap.*grown from.*{knob}.*guard=False"):
        guard(metrics(energy_gap=gaps[-1]), n_elements)
    RunawayGuard(gap_limit=None)(metrics(energy_gap=gaps[-1]), n_elements)


@pytest.mark.parametrize("name", ("data_energy", "negative_energy"))
def test_energies_that_drift_stop_the_run(name):
    guard = RunawayGuard()
    for value in (-2900.0, -3300.0, -13_000.0):
        guard(metrics(**{name: value}), 3)
    with pytest.raises(NumericalError, match=r"mean energy, 1.35e\+04, is above 3000.*constant"):
        guard(metrics(**{name: -13_500.0}), 3)
    constant = RunawayGuard()
    for _ in range(3):  # a large constant in the energy is no drift
        constant(metrics(**{name: 1e6}), 3)


@pytest.mark.parametrize("name", ("data_energy", "energy_gap", "acceptance_rate"))
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
def test_a_metric_that_is_not_finite_stops_the_run(name, value):
    guard = RunawayGuard(gap_limit=None, energy_limit=None, min_acceptance=None)
    with pytest.raises(NumericalError, match=rf"{name.replace('_', ' ')}.*learning rate"):
        guard(metrics(**{name: value}))


def test_chains_that_are_stuck_stop_the_run():
    guard = RunawayGuard(patience=5)
    for rate in [0.09] * 4 + [0.11] + [0.09] * 4:
        guard(metrics(acceptance_rate=rate))
    with pytest.raises(NumericalError, match=r"0.09, has been below 0.1 in 5 calls.*step size"):
        guard(metrics(acceptance_rate=0.09))
    off = RunawayGuard(patience=1, min_acceptance=None)
    off(metrics(acceptance_rate=0.0))


def test_metrics_that_are_absent_are_not_watched():
    RunawayGuard()({})
    RunawayGuard()(metrics(loss=float("nan")))


@pytest.mark.parametrize(
    "options",
    (
        {"gap_limit": 0.0},
        {"energy_limit": -1.0},
        {"min_acceptance": 1.5},
        {"min_acceptance": float("nan")},
        {"patience": 0},
    ),
)
def test_impossible_limits_are_refused(options):
    with pytest.raises(ConfigurationError):
        RunawayGuard(**options)


# In an objective


def steep():
    """A density that unadjusted steps of 0.3 cannot follow: they need h · precision < 2."""
    energy = QuadraticEnergy(torch.zeros(2), torch.full((2,), 20.0))
    return energy, ReferenceLangevin(energy, 0.3)


def test_chains_that_fly_off_are_noticed_while_all_is_finite():
    torch.manual_seed(0)
    energy, sampler = steep()
    loss_fn = PersistentContrastiveDivergence(energy, sampler, k_steps=1, buffer_size=16)
    with pytest.raises(NumericalError, match="energy gap.*step size"):
        for _ in range(20):
            loss_fn(torch.zeros(16, 2))
    assert torch.isfinite(loss_fn.buffer.states).all()
    assert loss_fn.metrics["energy_gap"] < 1e6
    unguarded = PersistentContrastiveDivergence(
        energy, sampler, k_steps=1, buffer_size=16, guard=False
    )
    for _ in range(20):
        unguarded(torch.zeros(16, 2))
    assert unguarded.metrics["energy_gap"] > 1e20


def test_a_call_that_is_stopped_leaves_the_chains_where_they_were():
    energy, sampler = steep()
    guard = RunawayGuard(gap_limit=0.01)
    loss_fn = PersistentContrastiveDivergence(
        energy, sampler, k_steps=1, buffer_size=16, guard=guard
    )
    assert loss_fn.guard is guard
    loss_fn(torch.zeros(16, 2))
    before = loss_fn.buffer.states.clone()
    with pytest.raises(NumericalError):
        loss_fn(torch.zeros(16, 2))
    assert torch.equal(loss_fn.buffer.states, before)


def test_an_ordinary_start_far_from_the_data_passes():
    """Energies of thousands of nats that fall, as the model finds the data."""
    torch.manual_seed(0)
    energy = QuadraticEnergy(torch.zeros(4), torch.full((4,), 4.0))
    sampler = ReferenceLangevin(energy, 0.05)
    loss_fn = PersistentContrastiveDivergence(energy, sampler, buffer_size=64)
    optimizer = torch.optim.SGD([energy.location], lr=0.05)
    gaps = []
    for _ in range(60):
        optimizer.zero_grad()
        loss_fn(40.0 + 0.5 * torch.randn(64, 4)).backward()
        optimizer.step()
        gaps.append(loss_fn.metrics["energy_gap"].item())
    assert abs(gaps[0]) > 10_000
    assert abs(gaps[-1]) < 1


def test_what_was_seen_is_saved_and_restored():
    def objective():
        energy = QuadraticEnergy(torch.zeros(2))
        guard = RunawayGuard(patience=3)

        class Stuck(ReferenceLangevin):
            acceptance_rate = torch.tensor(0.01)

        return ContrastiveDivergence(energy, Stuck(energy), guard=guard)

    loss_fn, x = objective(), torch.zeros(4, 2)
    for _ in range(2):
        loss_fn(x)
    loss_fn(x, x)  # given negatives are not watched
    restored = objective()
    restored.load_state_dict(copy.deepcopy(loss_fn.state_dict()))
    for run in (loss_fn, restored):
        with pytest.raises(NumericalError, match="stuck"):
            run(x)


@pytest.mark.parametrize("guard", (None, 1, "on", RunawayGuard))
def test_anything_but_a_guard_is_refused(guard):
    with pytest.raises(ConfigurationError, match="RunawayGuard"):
        ContrastiveDivergence(lambda x: x.sum(1), ReferenceLangevin(lambda x: x), guard=guard)


def test_a_run_can_be_restored_with_a_guard_or_without():
    """What the guard's message offers; nested as in a trainer, and alone."""

    def objective(guard):
        energy = QuadraticEnergy(torch.zeros(2))
        return ContrastiveDivergence(energy, ReferenceLangevin(energy), guard=guard)

    guarded = objective(True)
    guarded(torch.zeros(4, 2))
    objective(False).load_state_dict(guarded.state_dict())
    nn.Sequential(objective(False)).load_state_dict(nn.Sequential(guarded).state_dict())
    objective(RunawayGuard(gap_limit=1.0)).load_state_dict(guarded.state_dict())
    guarded.load_state_dict(objective(False).state_dict())
    assert guarded.guard.get_extra_state() == RunawayGuard().get_extra_state()
    nn.Sequential(objective(True)).load_state_dict(nn.Sequential(objective(False)).state_dict())


def test_limits_are_those_of_the_events_elements():
    class Recorder(RunawayGuard):
        def forward(self, metrics, n_elements=1):
            self.n_elements = n_elements

    energy, guard = QuadraticEnergy(torch.zeros(2, 3)), Recorder()
    ContrastiveDivergence(energy, ReferenceLangevin(energy), guard=guard)(torch.zeros(4, 2, 3))
    assert guard.n_elements == 6
