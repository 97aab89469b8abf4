"""The torch engine's CUDA graphs, emulated on the CPU: against steps that are issued one by one."""

import pytest
import torch
from cases import SAMPLERS, Looking, Network, close, pair, plain, states

from ebm_core import ConfigurationError, NumericalError, ShapeError, as_energy
from ebm_samplers import (
    MALA,
    NUTS,
    BlockGibbs,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    without_graphs,
)
from ebm_samplers.captured import CapturedChains
from ebm_samplers.captured.chains import _leg
from ebm_samplers.chains import Plan, TorchChains


@pytest.mark.parametrize("name", SAMPLERS)
def test_training_steps_are_those_of_single_steps(name, opened):
    captured, single = pair(SAMPLERS[name])
    optimizer = torch.optim.SGD(captured.energy.parameters(), 0.1)
    x = y = states()
    for _ in range(4):
        x = captured.sample_chain(x, 5)
        y = plain(lambda y=y: single.sample_chain(y, 5))
        close(x, y)
        if captured.adjusted:
            close(captured.acceptance_rate, single.acceptance_rate)
        close(torch.tensor(captured.state_dict()["step_size"] or 0.0),
              torch.tensor(single.state_dict()["step_size"] or 0.0))  # fmt: skip
        optimizer.zero_grad()
        captured.energy(x).sum().backward()
        optimizer.step()
    assert opened[2::2] == [CapturedChains] * 3
    assert opened[1::2] == [TorchChains] * 4


@pytest.mark.parametrize("keep", ("final", "trajectory", "moments"))
@pytest.mark.parametrize("name", SAMPLERS)
def test_results_are_those_of_single_steps(name, keep, opened):
    captured, single = pair(SAMPLERS[name])
    settings = {"n_steps": 45, "thin": 4, "burn_in": 7, "keep": keep, "seed": 3, "first_chain": 9}
    have = captured.sample(states(), **settings)
    want = plain(lambda: single.sample(states(), **settings))
    assert opened == [CapturedChains, TorchChains]
    assert have.stats.keys() == want.stats.keys()
    pairs = [(have.final, want.final), (have.potential, want.potential)]
    pairs += [(have.stats[name], values) for name, values in want.stats.items()]
    if keep == "trajectory":
        pairs.append((have.trajectory, want.trajectory))
    if keep == "moments":
        pairs.append((have.moments.mean, want.moments.mean))
        pairs.append((have.moments.sum_of_squares, want.moments.sum_of_squares))
        assert have.moments.count == want.moments.count
    for a, b in pairs:
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ("langevin", "kicked", "adapting mala"))
def test_a_run_can_be_cut(name):
    captured, _ = pair(SAMPLERS[name])
    whole = captured.sample(states(), n_steps=70, burn_in=10, seed=1)
    part = captured.sample(states(), n_steps=33, burn_in=10, seed=1)
    close(captured.sample(n_steps=37, resume=part.resume).final, whole.final)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_dtypes(dtype):
    def run(engine=lambda call: call()):
        energy = Network().to(dtype)
        sampler = LangevinDynamics(energy, 0.05, engine="torch")
        return engine(lambda: sampler.sample(states().to(dtype), n_steps=40, seed=1).final)

    have, want = run(), run(plain)
    assert have.dtype == dtype
    torch.testing.assert_close(have, want, rtol=0.1 if dtype == torch.bfloat16 else 1e-9, atol=0.02)


@pytest.mark.parametrize("make", (lambda e: Looking(e, 0.3), lambda e: NUTS(e, 0.3)))
def test_steps_that_look_at_numbers_are_not_captured(make, opened):
    captured, single = pair(make)
    for _ in range(3):
        close(captured.sample_chain(states(), 5), plain(lambda: single.sample_chain(states(), 5)))
    assert set(opened) == {TorchChains}


def test_chains_inside_of_others(opened):
    captured, single = pair(SAMPLERS["langevin"])

    def run(sampler):
        inner = []
        result = sampler.sample(
            states(), n_steps=200, thin=50, seed=1,
            callback=lambda r: inner.append(sampler.sample(states(), n_steps=40, seed=2).final),
        )  # fmt: skip
        return result.final, *inner

    for a, b in zip(run(captured), plain(lambda: run(single)), strict=True):
        close(a, b)
    assert opened[0] == CapturedChains
    assert opened[1] == TorchChains


def test_a_callback_stops_at_its_draw():
    captured, single = pair(SAMPLERS["mala"])
    settings = {"n_steps": 1000, "thin": 2, "keep": "trajectory", "seed": 1}

    def run(sampler):
        return sampler.sample(states(), callback=lambda r: r.trajectory.shape[1] > 40, **settings)

    have, want = run(captured), plain(lambda: run(single))
    assert have.trajectory.shape == want.trajectory.shape
    torch.testing.assert_close(have.trajectory, want.trajectory, rtol=1e-3, atol=1e-4)


def test_a_schedule_that_fails_loses_no_step():
    def schedule(step):
        return 0.1 if step < 50 else 1 / 0

    captured, _ = pair(lambda e: LangevinDynamics(e, schedule))
    with pytest.raises(ZeroDivisionError) as raised:
        captured.sample(states(), n_steps=100, keep="trajectory", seed=1)
    assert raised.value.result.trajectory.shape[1] == 50


def test_an_interrupted_run_ends_with_its_last_draw():
    def schedule(step):
        return 0.1 if step < 47 else 1 / 0

    captured, _ = pair(lambda e: LangevinDynamics(e, schedule))
    with pytest.raises(ZeroDivisionError) as raised:
        captured.sample(states(), n_steps=100, thin=5, seed=1)
    close(raised.value.result.final, captured.sample(states(), n_steps=45, seed=1).final)


@pytest.mark.parametrize("thin", (1, 3, 5, 32, 50, 64))
@pytest.mark.parametrize("keep", ("final", "moments"))
@pytest.mark.parametrize("stop", (None, 1, 4))
def test_a_leg_with_draws_ends_with_one(thin, keep, stop):
    done, plan = 0, Plan(thin, keep, 400 // thin, stop)
    while done < 400:
        n = _leg(plan, done, min(32, 400 - done))
        draws = (done + n) // thin - done // thin
        assert n > 0
        assert draws == 0 or (done + n) % thin == 0
        assert draws <= 1 or keep == "final"
        if stop is not None:
            assert done // (thin * stop) == (done + n - 1) // (thin * stop)
        done += n


def test_starts_that_are_not_finite():
    captured, _ = pair(SAMPLERS["langevin"])
    captured.sample(states(), n_steps=40, seed=1)
    x = states()
    x[1] = float("nan")
    with pytest.raises(NumericalError, match="1 of 5 start states"):
        captured.sample(x, n_steps=40, seed=1)


def test_energies_too_large_for_accept_tests():
    energy = Network()
    captured, _ = pair(SAMPLERS["mala"], (lambda x: energy(x) + 1e7))
    with pytest.raises(NumericalError, match="float64"):
        captured.sample(states(), n_steps=40, seed=1)


def test_energies_that_become_too_large():
    captured, _ = pair(lambda e: MALA(e, 0.3), as_energy(lambda x: -1e3 * x.sum(1)))
    with pytest.raises(NumericalError, match="float64"):
        captured.sample(states(), n_steps=40, seed=1)


def test_schedules_are_asked_once():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.1

    captured, _ = pair(lambda e: HamiltonianMonteCarlo(e, schedule, 4))
    captured.sample(states(), n_steps=64, seed=1)
    assert len(asked) < 3 * 64


def test_numbers_that_do_not_fit_the_streams():
    captured, _ = pair(SAMPLERS["langevin"])
    with pytest.raises(ConfigurationError, match="first_chain"):
        captured.sample(states(), n_steps=40, seed=1, first_chain=2**32)


def test_a_missing_chain_axis():
    captured, _ = pair(SAMPLERS["langevin"])
    with pytest.raises(ShapeError, match="None"):
        captured.sample(torch.zeros(2), n_steps=40, seed=1)


def test_explanations(monkeypatch):
    captured, _ = pair(SAMPLERS["langevin"])
    assert "as CUDA graphs" in str(captured.explain(states()))
    looking, _ = pair(lambda e: Looking(e, 0.3))
    looking.sample(states(), n_steps=40, seed=1)
    assert "_local_scalar_dense waits" in str(looking.explain(states()))
    captured.numbers = {}
    assert "'numbers'" in captured.explain(states()).graphs


def test_autocast_is_left_to_single_steps(opened, monkeypatch):
    monkeypatch.setattr("torch.is_autocast_enabled", lambda device="cuda": device == "cuda")
    captured, _ = pair(SAMPLERS["langevin"])
    captured.sample(states(), n_steps=40, seed=1)
    assert opened == [TorchChains]


@pytest.mark.parametrize("dtype", (torch.int8, torch.float32))
@pytest.mark.parametrize("beta", (None, 0.5))
def test_block_gibbs_goes_step_by_step(opened, dtype, beta):
    """A step has several uniforms a chain, which graphs do not offer; integers are no obstacle."""

    class Machine(torch.nn.Module):
        support, event_shape = torch.distributions.constraints.boolean, torch.Size([4])

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(-2, 2, 12).view(3, 4))
            self.visible_bias = torch.nn.Parameter(torch.zeros(4))
            self.hidden_bias = torch.nn.Parameter(torch.ones(3))

        def forward(self, v):
            inputs = v.to(self.weight.dtype) @ self.weight.T + self.hidden_bias
            return -torch.nn.functional.softplus(inputs).sum(1)

    x = torch.zeros(9, 4, dtype=dtype)
    sampler = BlockGibbs(Machine())
    options = {"n_steps": 40, "seed": 0, "beta": beta, "keep": "trajectory"}
    result = sampler.sample(x, **options)
    with without_graphs():
        want = sampler.sample(x, **options)
    assert torch.equal(result.trajectory, want.trajectory)
    assert set(opened) == {TorchChains}
