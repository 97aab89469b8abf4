"""Runs of kernels in legs: where they are cut, and what ends them."""

import numpy as np
import pytest
import torch
from agreement import X, assert_agree, both
from targets import DoubleWell

from ebm_samplers import MALA, HamiltonianMonteCarlo, LangevinDynamics
from ebm_samplers.fused import FusedEnergy
from ebm_samplers.fused import chains as fused_chains

pytestmark = pytest.mark.usefixtures("eight_lanes")


@pytest.mark.parametrize("keep", ("final", "trajectory", "moments"))
@pytest.mark.parametrize("thin", (1, 3, 8))
def test_where_legs_are_cut_changes_nothing(keep, thin, monkeypatch):
    energy = DoubleWell()

    def run(seconds):
        monkeypatch.setattr(fused_chains, "SECONDS", seconds)
        return HamiltonianMonteCarlo(energy, 0.1, 3, engine="fused").sample(
            X, n_steps=20, thin=thin, burn_in=4, keep=keep, seed=3, beta=[0.5, 1, 1, 2, 1, 1]
        )

    whole, cut = run(10.0), run(1e-9)
    for a, b in ((whole.final, cut.final), (whole.trajectory, cut.trajectory)):
        assert (a is None and b is None) or torch.equal(a, b)
    for name in whole.stats:
        assert torch.allclose(whole.stats[name].double(), cut.stats[name].double(), atol=1e-6), name
    assert torch.equal(whole.potential, cut.potential)
    if keep == "moments":
        assert whole.moments.count == cut.moments.count == 20 // thin
        assert torch.allclose(whole.moments.mean, cut.moments.mean, atol=1e-6)
        assert torch.allclose(whole.moments.variance, cut.moments.variance, atol=1e-6)
    assert_agree(
        *both(
            lambda engine: HamiltonianMonteCarlo(energy, 0.1, 3, engine=engine),
            n_steps=20, thin=thin, burn_in=4, keep=keep,
        )
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("keep", ("final", "trajectory", "moments"))
def test_legs_of_any_lengths_in_turn(keep, seed, monkeypatch):
    """Shorter than a draw's interval, then longer, as on a busy machine."""
    sampler = MALA(DoubleWell(), 0.05, engine="fused")
    settings = {"n_steps": 50, "thin": 4, "keep": keep, "seed": 3}
    whole = sampler.sample(X, **settings)
    paces, end = np.random.default_rng(seed), fused_chains.FusedChains._end

    def some(self, done, n, plan):
        self._pace = float(paces.choice([1, 2, 3, 5, 9]))
        return end(self, done, n, plan)

    monkeypatch.setattr(fused_chains.FusedChains, "_end", some)
    cut = sampler.sample(X, **settings)
    assert torch.equal(whole.final, cut.final)
    assert torch.equal(whole.potential, cut.potential)
    if keep == "trajectory":
        assert torch.equal(whole.trajectory, cut.trajectory)
    for name in whole.stats:
        assert torch.allclose(whole.stats[name].double(), cut.stats[name].double(), atol=1e-6), name


@pytest.mark.parametrize("thin", (1, 4))
def test_callbacks_see_the_draws_so_far_and_stop(thin):
    seen = []

    def callback(result):
        seen.append(result.trajectory.shape[1])
        assert torch.isfinite(result.trajectory).all()
        return len(seen) == 7

    sampler = MALA(DoubleWell(), 0.05, engine="fused")
    result = sampler.sample(
        X, n_steps=300 * thin, thin=thin, keep="trajectory", seed=0, callback=callback
    )
    assert seen == [3, 6, 9, 12, 15, 18, 21]
    assert result.trajectory.shape[1] == 21
    whole = sampler.sample(X, n_steps=21 * thin, thin=thin, keep="trajectory", seed=0)
    assert torch.equal(result.trajectory, whole.trajectory)


def test_an_interrupt_loses_no_leg(monkeypatch):
    monkeypatch.setattr(fused_chains, "SECONDS", 1e-9)
    calls = []
    run = FusedEnergy.launch

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    sampler = MALA(DoubleWell(), 0.05, engine="fused")
    sampler.sample_chain(X, 1)
    monkeypatch.setattr(FusedEnergy, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        sampler.sample(X, n_steps=50, keep="trajectory", seed=0)
    partial = caught.value.result
    monkeypatch.undo()
    monkeypatch.setattr(FusedEnergy, "lanes", lambda self, n_chains: 8)
    n = partial.trajectory.shape[1]
    assert 1 <= n < 50
    whole = sampler.sample(X, n_steps=50, keep="trajectory", seed=0)
    assert torch.equal(partial.trajectory, whole.trajectory[:, :n])
    rest = sampler.sample(resume=partial.resume, n_steps=50 - n, keep="trajectory")
    assert torch.equal(rest.final, whole.final)


def test_a_schedule_that_fails_loses_no_step_before():
    def schedule(step):
        if step == 5:
            raise RuntimeError("no more")
        return 0.05

    sampler = MALA(DoubleWell(), schedule, engine="fused")
    with pytest.raises(RuntimeError, match="no more") as caught:
        sampler.sample(X, n_steps=20, keep="trajectory", seed=0)
    assert caught.value.result.trajectory.shape[1] == 5


def test_a_call_is_one_launch(monkeypatch):
    """The first leg is that in which energies are compared: what a training step pays for."""
    launches = []
    run = FusedEnergy.launch

    def counted(self, *args, **settings):
        launches.append(settings["n_steps"])
        return run(self, *args, **settings)

    energy = DoubleWell()
    MALA(energy, 0.05, engine="fused").sample_chain(X, 3)
    monkeypatch.setattr(FusedEnergy, "launch", counted)
    MALA(energy, 0.05, engine="fused").sample_chain(X, 3)
    assert launches == [3]


def test_legs_grow_where_the_first_is_one_transition(monkeypatch):
    monkeypatch.setattr(FusedEnergy, "seconds", lambda self, n_chains: 10.0)
    launches = []
    run = FusedEnergy.launch
    monkeypatch.setattr(
        FusedEnergy, "launch", lambda *a, **k: launches.append(k["n_steps"]) or run(*a, **k)
    )
    LangevinDynamics(DoubleWell(), 0.01, engine="fused").sample_chain(X, 2000)
    assert launches[-1] > 100
