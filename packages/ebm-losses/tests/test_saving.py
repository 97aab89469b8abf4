"""Saving and restoring objectives whose chains persist."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, as_energy
from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
from ebm_losses import (
    ContrastiveDivergence,
    ParallelTemperingContrastiveDivergence,
    PersistentContrastiveDivergence,
)

BETAS = (1.0, 0.6, 0.3)


def persistent(energy, sampler):
    return PersistentContrastiveDivergence(
        energy, sampler, k_steps=3, buffer_size=40, reinit_probability=0.1
    )


def tempered(energy, sampler, adapt_betas=0):
    return ParallelTemperingContrastiveDivergence(
        energy, sampler, buffer_size=40, betas=BETAS, adapt_betas=adapt_betas, n_negatives=16
    )


def adapting(energy, sampler):
    return tempered(energy, sampler, adapt_betas=3)


class Still:
    def sample_chain(self, x_init, n_steps):
        return x_init


def trainer(seed, make=persistent):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))
    energy = as_energy(lambda x: network(x).squeeze(1) + x.square().sum(1), network)
    loss_fn = make(energy, ReferenceLangevin(energy, 0.05))
    return loss_fn, torch.optim.Adam(network.parameters(), lr=0.01)


def train(loss_fn, optimizer, n_steps):
    """Parameters, and all that the objective keeps, after some steps."""
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss_fn(torch.randn(16, 2)).backward()
        optimizer.step()
    return {n: t.clone() for n, t in loss_fn.state_dict().items() if isinstance(t, torch.Tensor)}


@pytest.mark.parametrize("make", (persistent, tempered, adapting))
def test_a_restored_run_goes_on_as_if_it_had_not_been_cut(make):
    parts, file = trainer(0, make), io.BytesIO()
    train(*parts, 5)
    state = {str(i): part.state_dict() for i, part in enumerate(parts)}
    torch.save({**state, "random": torch.get_rng_state()}, file)
    uncut = train(*parts, 5)
    fresh = trainer(1, make)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for i, part in enumerate(fresh):
        part.load_state_dict(state[str(i)])
    torch.set_rng_state(state["random"])
    resumed = train(*fresh, 5)
    assert resumed.keys() == uncut.keys() >= {"buffer.states"}
    for name, want in uncut.items():
        assert torch.equal(resumed[name], want), name
    if make is not persistent:
        assert torch.equal(resumed["betas"], torch.tensor(BETAS)) == (make is tempered)


def test_without_the_samplers_state_the_run_would_differ():
    parts = trainer(0)
    train(*parts, 2)
    state = copy.deepcopy(parts[0].state_dict())
    assert state["_extra_state"]["sampler"]["counter"] == 6
    assert state["buffer.states"].shape == (40, 2)
    random = torch.get_rng_state()
    uncut = train(*parts, 1)
    fresh = trainer(1)
    state["_extra_state"] = {}
    fresh[0].load_state_dict(state)
    torch.set_rng_state(random)
    assert not torch.equal(train(*fresh, 1)["buffer.states"], uncut["buffer.states"])


@pytest.mark.parametrize("make", (persistent, tempered))
def test_the_state_of_another_kind_of_sampler_is_refused_and_nothing_is_loaded(make):
    class Other(ReferenceLangevin):
        """Takes the state of its parent, so that the kind alone tells them apart."""

    saved, energy = (QuadraticEnergy(torch.full((2,), mean)) for mean in (1.0, 0.0))
    loss_fn, other = make(saved, ReferenceLangevin(saved)), make(energy, Other(energy))
    loss_fn(torch.randn(16, 2))
    with pytest.raises(ConfigurationError, match=r"ReferenceLangevin.*wanted.*Other"):
        other.load_state_dict(loss_fn.state_dict())
    assert (energy.location == 0).all()
    assert other.buffer.states is None
    if make is tempered:
        assert other.swap_rates.isnan().all()


def test_a_sampler_without_state_saves_none_and_refuses_one():
    plain = ContrastiveDivergence(QuadraticEnergy(torch.zeros(2)), Still())
    assert plain.state_dict()["_extra_state"] == {}
    plain.load_state_dict(plain.state_dict())
    energy = QuadraticEnergy(torch.zeros(2))
    other = ContrastiveDivergence(energy, ReferenceLangevin(energy))
    other.load_state_dict(plain.state_dict())
    with pytest.raises(ConfigurationError, match="load_state_dict"):
        plain.load_state_dict(other.state_dict())


def test_a_state_saved_before_the_first_call_takes_a_used_loss_back_to_it():
    energy = QuadraticEnergy(torch.zeros(2))
    loss_fn = PersistentContrastiveDivergence(energy, ReferenceLangevin(energy), buffer_size=8)
    saved, file = copy.deepcopy(loss_fn.state_dict()), io.BytesIO()
    torch.save(saved, file)
    loss_fn(torch.zeros(4, 2))
    file.seek(0)
    loss_fn.load_state_dict(torch.load(file, weights_only=True))
    assert loss_fn.buffer.states is None
    loss_fn(torch.zeros(4, 2, dtype=torch.float32))
    assert loss_fn.buffer.states.shape == (8, 2)


def test_a_sampler_that_is_a_module_is_part_of_the_loss():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def sample_chain(self, x_init, n_steps):
            self.count += n_steps
            return x_init

    loss_fn = ContrastiveDivergence(lambda x: x.sum(1), Module(), 3)
    loss_fn(torch.zeros(1, 1))
    state = loss_fn.state_dict()
    assert state["sampler.count"] == 3.0
    assert state["_extra_state"] == {}


def test_copies_and_pickles_go_on_by_themselves():
    energy = QuadraticEnergy(torch.zeros(2))
    loss_fn = PersistentContrastiveDivergence(energy, ReferenceLangevin(energy), buffer_size=8)
    loss_fn(torch.zeros(4, 2))
    for twin in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        before = loss_fn.buffer.states.clone()
        twin(torch.zeros(4, 2))
        assert torch.equal(loss_fn.buffer.states, before)
        assert twin.sampler.energy is twin.energy
