"""Calls of `sample_chain` that are made again: the same numbers, with less work."""

import copy
import gc
import math
import pickle
import threading
import weakref

import pytest
import torch
from targets import DoubleWell

from ebm_core import NumericalError, as_energy
from ebm_samplers import MALA, NUTS, HamiltonianMonteCarlo, LangevinDynamics, sampler
from ebm_samplers.schedules import Setting

N = 6


class Tilted(DoubleWell):
    """Has a number that is no buffer, and parts that work in training alone."""

    def __init__(self):
        super().__init__()
        self.tilt, self.dropout = 0.5, torch.nn.Dropout(0.5)

    def forward(self, x):
        return super().forward(x) + self.tilt * self.dropout(x[:, 0])


def states(n=N, dtype=torch.float32):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=dtype)


MAKERS = (
    lambda energy: LangevinDynamics(energy, 0.02, noise_scale=0.7),
    lambda energy: MALA(energy, 0.1),
    lambda energy: HamiltonianMonteCarlo(energy, 0.2, n_leapfrog_steps=4),
    lambda energy: HamiltonianMonteCarlo(energy, 0.2, n_leapfrog_steps=4, jitter=0),
    lambda energy: NUTS(energy, 0.2, max_tree_depth=4),
)
IDS = ("langevin", "mala", "hmc", "fixed", "nuts")


def called(chains, x, n_calls, forget=False, n_steps=3):
    """Several calls, each from where the last one ended."""
    torch.manual_seed(0)
    seen = []
    for _ in range(n_calls):
        if forget:
            chains._last.repeat = None
        x = chains.sample_chain(x, n_steps)
        seen.append((x, chains.acceptance_rate, chains.state_dict()["counter"]))
    return seen


@pytest.mark.parametrize("n_steps", (1, 2, 7))
@pytest.mark.parametrize("make", MAKERS[:2], ids=IDS[:2])
def test_positions_do_not_need_the_energy_at_their_end(make, n_steps):
    """A network's last gradient is left out where nobody asks for it, and no other one."""
    torch.manual_seed(4)
    network = torch.nn.Sequential(torch.nn.Linear(2, 400), torch.nn.SiLU(), torch.nn.Linear(400, 1))
    chains = make(as_energy(lambda x: network(x).squeeze(1) + x.square().sum(1), network))
    chains.engine = "fused"
    torch.manual_seed(0)
    x = chains.sample_chain(states(), n_steps)
    y = chains.sample_chain(x, n_steps)
    torch.manual_seed(0)
    whole = chains.sample(states(), n_steps=2 * n_steps, seed=chains.state_dict()["key"])
    torch.testing.assert_close(y, whole.final, atol=1e-6, rtol=1e-5)


def test_langevin_leaves_out_the_last_gradient_of_a_network():
    layers = torch.nn.Sequential(torch.nn.Linear(2, 400), torch.nn.SiLU(), torch.nn.Linear(400, 1))
    energy = as_energy(lambda x: layers(x).squeeze(1), layers)
    chains, x = LangevinDynamics(energy, 0.1, engine="fused"), states()
    final = chains.sample_chain(x, 1)
    repeat = chains._last.repeat
    assert repeat.fused.form == "looped"
    kept = repeat.fused.tensor(repeat.fused.gradients(repeat.launch.run.state)).view_as(x)
    torch.testing.assert_close(kept, energy.gradient(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(kept, energy.gradient(final), atol=1e-5, rtol=1e-4)


@pytest.fixture
def opened(monkeypatch):
    """How many calls were made the general way."""
    found = []
    general = sampler.open_chains
    monkeypatch.setattr(sampler, "open_chains", lambda *a: found.append(a) or general(*a))
    return found


@pytest.mark.parametrize("make", MAKERS, ids=IDS)
@pytest.mark.parametrize(
    ("n", "dtype"), ((1, torch.float32), (70, torch.float32), (N, torch.float64))
)
def test_calls_are_those_made_the_general_way(make, n, dtype, opened):
    x, energy = states(n, dtype), DoubleWell()
    want = called(make(energy), x, 5, forget=True)
    assert len(opened) == 5
    have = called(make(energy), x, 5)
    assert len(opened) == 6  # the first
    for (x, rate, counter), (y, same_rate, same_counter) in zip(want, have, strict=True):
        assert torch.equal(x, y)
        assert counter == same_counter
        assert (rate is None) == (same_rate is None)
        assert rate is None or torch.allclose(rate, same_rate, rtol=1e-5, atol=0)


def test_energies_that_are_quicker_than_guessed_get_their_calls_repeated(opened):
    layers = [torch.nn.Linear(2, 128), torch.nn.SiLU(), torch.nn.Linear(128, 256)]
    network = torch.nn.Sequential(*layers, torch.nn.SiLU(), torch.nn.Linear(256, 1))
    energy = as_energy(lambda x: network(x)[:, 0] + x.square().sum(1) / 2, event_shape=2)
    chains = LangevinDynamics(energy, 0.01, engine="fused")
    called(chains, states(128), 4, n_steps=20)  # the guess is two legs and more
    assert len(opened) < 4


@pytest.mark.parametrize(
    "kind",
    (
        lambda x: x.t().contiguous().t(),
        lambda x: x.clone().requires_grad_(),
        lambda x: torch.complex(x, -x).conj().imag,  # negated only later
    ),
)
def test_states_of_all_kinds_of_memory(kind, opened):
    mala = MALA(DoubleWell(), 0.1)
    (start, _, counter), (want, _, _) = called(mala, states(), 2)
    vars(mala)["_counter"] = counter
    opened.clear()
    have = mala.sample_chain(kind(start), 3)
    assert not opened
    assert torch.equal(have, want)
    assert not have.requires_grad


def test_results_have_memory_of_their_own():
    mala = MALA(DoubleWell(), 0.1)
    _, second, third = (mala.sample_chain(states(), 3) for _ in range(3))
    kept = second.clone()
    mala.sample_chain(states(), 3)
    assert torch.equal(second, kept)
    assert not torch.equal(second, third)


def change(name, value):
    return lambda chains: setattr(chains, name, value)


@pytest.mark.parametrize(
    ("make", "changed"),
    (
        (MAKERS[0], change("step_size", 0.3)),
        (MAKERS[0], change("noise_scale", 0.0)),
        (MAKERS[0], change("noise_scale", lambda step: 1.0 + step)),
        (MAKERS[0], lambda chains: setattr(chains.settings["step_size"], "value", 0.3)),
        (MAKERS[0], lambda c: c.settings.update(step_size=Setting("step_size", 0.3))),
        (MAKERS[1], change("engine", "torch")),
        (MAKERS[2], change("n_leapfrog_steps", 9)),
        (MAKERS[2], change("jitter", 0.0)),
        (MAKERS[4], change("max_tree_depth", 1)),
        (MAKERS[2], change("mass", torch.tensor([4.0, 1.0]))),
        (MAKERS[1], change("energy", as_energy(lambda x: 3 * x.square().sum(1)))),
        (MAKERS[1], lambda chains: chains.energy.height.data.mul_(3)),
        (MAKERS[1], lambda chains: setattr(chains.energy, "tilt", 2.0)),
    ),
)
def test_changes_are_followed(make, changed):
    chains, fresh = (make(Tilted()) for _ in range(2))
    before = called(chains, states(), 2)
    changed(chains)
    changed(fresh)
    torch.manual_seed(0)
    fresh.sample_chain(states(), 1)
    fresh.load_state_dict(chains.state_dict())
    start = before[-1][0]
    have, want = chains.sample_chain(start, 3), fresh.sample_chain(start, 3)
    assert torch.allclose(have, want, atol=1e-5)


def test_parameters_that_move_and_training_mode_keep_the_way(opened):
    energy = Tilted().train()
    mala, x = MALA(energy, 0.1), states()
    called(mala, x, 1)
    opened.clear()
    for _ in range(3):
        energy.height.mul_(1.5)
        counter = mala.state_dict()["counter"]
        have = mala.sample_chain(x, 3)
        assert energy.dropout.training
        fresh = MALA(energy, 0.1, engine="torch")
        fresh.load_state_dict({**mala.state_dict(), "counter": counter})
        n_opened = len(opened)
        assert torch.allclose(have, fresh.sample_chain(x, 3), atol=1e-5)
        assert (n_opened, opened.clear()) == (0, None)


def test_other_calls_are_made_the_general_way(opened):
    mala, x = MALA(DoubleWell(), 0.1), states()
    others = (
        lambda: mala.sample_chain(x, 4),
        lambda: mala.sample_chain(x[:3], 3),
        lambda: mala.sample_chain(x.double(), 3),
        lambda: mala.sample_chain(x, 3, beta=0.5),
        lambda: mala.sample_chain(x, 3, beta=torch.ones(N)),
    )
    for other in others:
        mala.sample_chain(x, 3)
        mala.sample_chain(x, 3)
        opened.clear()
        other()
        assert len(opened) == 1
    with torch.inference_mode():
        assert mala.sample_chain(x, 3).is_inference() is False


@pytest.mark.parametrize(
    "make",
    (
        lambda energy: MALA(energy, 0.1, target_acceptance=0.6),
        lambda energy: MALA(energy, lambda step: 0.1 / (step + 1)),
        lambda energy: HamiltonianMonteCarlo(energy, 0.1, mass=torch.ones(2)),
    ),
)
def test_what_changes_from_call_to_call_is_not_repeated(make, opened):
    called(make(DoubleWell()), states(), 3)
    assert len(opened) == 3


def test_starts_are_checked():
    mala, x = MALA(DoubleWell(), 0.1), states()
    called(mala, x, 2)
    x[1, 0] = math.nan
    counter = mala.state_dict()["counter"]
    with pytest.raises(NumericalError, match="1 of 6 start states"):
        mala.sample_chain(x, 3)
    assert mala.state_dict()["counter"] == counter


def test_energies_too_large_for_accept_tests_are_refused():
    shift = torch.zeros(())
    mala = MALA(lambda x: x.square().sum(1) + shift, 0.1)
    called(mala, states(), 2)
    shift += 1e6
    with pytest.raises(NumericalError, match="float64"):
        mala.sample_chain(states(), 3)


def test_copies_repeat_calls_of_their_own(opened):
    mala, x = MALA(DoubleWell(), 0.1), states()
    called(mala, x, 2)
    copies = copy.copy(mala), copy.deepcopy(mala), pickle.loads(pickle.dumps(mala))
    assert all(other.acceptance_rate is None for other in copies)
    want = mala.sample_chain(x, 3)
    opened.clear()
    for other in copies:
        counter = other._counter
        assert torch.equal(other.sample_chain(x, 3), want)
        assert len(opened) == 1
        vars(other)["_counter"] = counter
        assert torch.equal(other.sample_chain(x, 3), want)
        assert len(opened) == 1
        opened.clear()


def test_threads_may_share_a_sampler():
    """Each call has its own numbers as long as calls do not overlap; none sees another's memory."""
    chains, x = LangevinDynamics(DoubleWell(), 0.02, noise_scale=0.0), states()
    want, found = chains.sample_chain(x, 3), []

    def work():
        found.extend(torch.equal(chains.sample_chain(x, 3), want) for _ in range(200))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 800
    assert all(found)


def test_a_copy_and_its_original_go_their_own_ways():
    first, x = MALA(DoubleWell(), 0.1), states()
    called(first, x, 2)
    second = copy.copy(first)
    second.settings = {"step_size": Setting("step_size", 0.01)}
    alone = MALA(first.energy, 0.01)
    for _ in range(3):
        alone.load_state_dict(second.state_dict())
        assert torch.equal(second.sample_chain(x, 3), alone.sample_chain(x, 3))
        first.sample_chain(x, 3)


class Entering(MALA):
    def enter(self, step, x):
        return None


class Heated(MALA):
    beta = None

    def kernel_constants(self, x):
        return {} if self.beta is None else {"beta": torch.full((len(x), 1), self.beta)}


def test_samplers_with_more_to_a_call_make_it_the_general_way(opened):
    called(Entering(DoubleWell(), 0.1), states(), 3)
    assert len(opened) == 3
    heated = Heated(DoubleWell(), 0.1)
    called(heated, states(), 2)
    vars(heated)["beta"] = 30.0
    opened.clear()
    called(heated, states(), 1)
    assert len(opened) == 1


def test_nothing_is_kept_alive():
    energy = DoubleWell()
    mala = MALA(energy, 0.1)
    called(mala, states(), 3)
    assert mala._last.repeat is not None
    gone = weakref.ref(energy), weakref.ref(mala)
    gc.disable()
    try:
        del energy, mala
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()
