"""The life of persistent chains: their slots, their starts, and what leaves them as they were."""

import pytest
import torch
from shifting import Shift
from torch import nn

from ebm_core import ConfigurationError, NumericalError, ShapeError, as_energy, spin
from ebm_core.testing import QuadraticEnergy
from ebm_losses import PersistentContrastiveDivergence


def test_every_lineage_survives_in_its_own_slot():
    class Ageing(Shift):
        """Column 0 is the lineage, column 1 the number of calls that a chain has seen."""

        def sample_chain(self, x_init, n_steps):
            return x_init + torch.tensor([0.0, 1.0])

    torch.manual_seed(0)
    loss_fn = PersistentContrastiveDivergence(lambda x: x.sum(1), Ageing(), buffer_size=1000)
    loss_fn(torch.zeros(100, 2))
    loss_fn.buffer.states[:, 0] = torch.arange(1000.0)
    loss_fn.buffer.states[:, 1] = 0.0
    for _ in range(300):
        loss_fn(torch.zeros(100, 2))
        assert len(loss_fn.negatives[:, 0].unique()) == 100
    assert torch.equal(loss_fn.buffer.states[:, 0], torch.arange(1000.0))
    ages = loss_fn.buffer.states[:, 1]
    assert ages.sum() == 300 * 100
    # A chain is drawn with probability 1/10 a call.
    assert ((ages - 30).abs() / (300 * 0.09) ** 0.5).max() < 5.5


def test_the_buffer_is_made_at_the_first_call_from_the_data():
    for dtype, event_shape in ((torch.float32, (2,)), (torch.float64, (1, 3, 3))):
        loss_fn = PersistentContrastiveDivergence(
            lambda x: x.flatten(1).sum(1), Shift(0.0), buffer_size=1000
        )
        assert loss_fn.buffer.states is None
        torch.manual_seed(5)
        loss_fn(torch.full((7, *event_shape), 3.0, dtype=dtype))
        torch.manual_seed(5)
        assert torch.equal(loss_fn.buffer.states, torch.randn(1000, *event_shape, dtype=dtype))


@pytest.mark.parametrize(
    ("batch", "n_negatives", "expected"), ((7, None, 7), (40, None, 20), (7, 12, 12), (7, 20, 20))
)
def test_number_of_negatives(batch, n_negatives, expected):
    sampler = Shift()
    loss_fn = PersistentContrastiveDivergence(
        lambda x: x.sum(1), sampler, k_steps=3, buffer_size=20, n_negatives=n_negatives
    )
    loss_fn(torch.zeros(batch, 2))
    assert loss_fn.negatives.shape == (expected, 2)
    assert sampler.calls[0][1] == 3


def test_nothing_begins_anew_unless_asked():
    for probability in (0.0, 1.0):
        sampler = Shift(100.0)
        loss_fn = PersistentContrastiveDivergence(
            lambda x: x.sum(1),
            sampler,
            buffer_size=10,
            reinit_probability=probability,
        )
        for _ in range(2):
            loss_fn(torch.zeros(10, 1))
        second_start = sampler.calls[1][0]
        assert (second_start > 500).all() if probability == 0.0 else (second_start < 10).all()


def test_chains_of_a_spin_energy_begin_as_spins():
    energy = as_energy(lambda x: x.float().sum(1), support=spin)
    sampler = Shift(0)
    loss_fn = PersistentContrastiveDivergence(energy, sampler, buffer_size=50)
    loss_fn(torch.ones(4, 6, dtype=torch.int8))
    assert loss_fn.buffer.states.dtype == torch.int8
    assert set(loss_fn.buffer.states.unique().tolist()) == {-1, 1}


def test_chains_begin_as_the_initializer_says():
    loss_fn = PersistentContrastiveDivergence(
        lambda x: x.sum(1), Shift(), buffer_size=5, initializer=torch.zeros
    )
    loss_fn(torch.zeros(2, 3))
    assert sorted(loss_fn.buffer.states[:, 0].tolist()) == [0, 0, 0, 10, 10]


@pytest.mark.parametrize("n_bad", (1, 3))
def test_non_finite_chains_raise_and_leave_the_buffer_alone(n_bad):
    class Bursting(Shift):
        def sample_chain(self, x_init, n_steps):
            final = x_init + 1.0
            if len(self.calls) == 1:
                final[:n_bad, -1] = torch.tensor([torch.nan, torch.inf, -torch.inf])[:n_bad]
            self.calls.append(None)
            return final

    loss_fn = PersistentContrastiveDivergence(lambda x: x.sum(1), Bursting(), buffer_size=20)
    x = torch.zeros(5, 3)
    loss_fn(x)
    before = loss_fn.buffer.states.clone()
    with pytest.raises(NumericalError, match=f"{n_bad} of 5 negatives.*step size"):
        loss_fn(x)
    assert torch.equal(loss_fn.buffer.states, before)
    loss_fn(x)


@pytest.mark.parametrize("cause", ("data", "negatives", "regulariser", "shape"))
def test_a_loss_that_is_refused_leaves_the_chains_where_they_were(cause):
    penalty = [0.0]
    energy = as_energy(lambda x: x.log().sum(1))
    sampler = Shift()
    loss_fn = PersistentContrastiveDivergence(
        energy,
        sampler,
        k_steps=1,
        buffer_size=20,
        initializer=torch.ones,
        regularizers=[lambda batch: torch.tensor(penalty[0])],
    )
    x = torch.ones(5, 3)
    loss_fn(x)
    before = loss_fn.buffer.states.clone()
    assert before.sum() == 60 + 15
    bad = x
    if cause == "data":
        bad = torch.zeros(5, 3)
    elif cause == "negatives":
        sampler.by = -2.0
    elif cause == "regulariser":
        penalty[0] = torch.inf
    else:
        penalty[0] = [0.0, 0.0]
    with pytest.raises(ShapeError if cause == "shape" else NumericalError):
        loss_fn(bad)
    assert torch.equal(loss_fn.buffer.states, before)
    penalty[0] = 0.0
    loss_fn(x, x)
    assert torch.equal(loss_fn.buffer.states, before)
    sampler.by = 1.0
    loss_fn(x)
    assert loss_fn.buffer.states.sum() == before.sum() + 15


def test_chains_that_are_stuck_can_be_left_out_of_the_loss():
    class Sticky(Shift):
        """Moves a chain up by one unless it is negative."""

        def sample_chain(self, x_init, n_steps):
            x_init += (x_init > 0).all(1, keepdim=True).float()  # in place: the start is a copy
            return x_init

    def begin(size, *, device, dtype):
        return torch.tensor([[1.0, 1.0], [-8.0, 1.0], [3.0, 3.0], [-2.0, 2.0]])

    def objective(**options):
        network = nn.Linear(2, 1)
        nn.init.ones_(network.weight)
        return PersistentContrastiveDivergence(
            as_energy(lambda x: network(x).squeeze(1) - network.bias, network),
            Sticky(),
            buffer_size=4,
            initializer=begin,
            **options,
        )

    x = torch.zeros(4, 2)
    loss_fn = objective(leave_out_stuck=True)
    loss = loss_fn(x)
    assert loss == -6.0  # the mean of 4 and 8
    assert loss_fn.metrics["stuck"] == 0.5
    assert loss_fn.metrics["negative_energy"] == 6.0
    loss.backward()
    assert torch.equal(loss_fn.energy.registered[0].weight.grad, torch.tensor([[-3.0, -3.0]]))
    assert torch.equal(loss_fn.buffer.states[1], torch.tensor([-8.0, 1.0]))  # still in its slot
    assert loss_fn(x, x) == 0.0  # given negatives all count
    assert "stuck" not in loss_fn.metrics
    plain = objective()
    assert plain(x) == -(4.0 - 7.0 + 8.0 + 0.0) / 4
    assert "stuck" not in plain.metrics
    loss_fn.buffer.states.fill_(-1.0)
    with pytest.raises(NumericalError, match="none of the 4 negatives has moved.*step size"):
        loss_fn(x)
    with pytest.raises(ConfigurationError, match="leave_out_stuck"):
        objective(leave_out_stuck=0.5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_chains_live_on_the_datas_device():
    energy = QuadraticEnergy(torch.zeros(2)).cuda()
    loss_fn = PersistentContrastiveDivergence(energy, Shift(0.1), buffer_size=50)
    loss_fn(torch.zeros(8, 2, device="cuda")).backward()
    assert loss_fn.buffer.states.is_cuda
    assert energy.precision.grad.is_cuda
    restored = PersistentContrastiveDivergence(
        QuadraticEnergy(torch.zeros(2)).cuda(), Shift(0.1), buffer_size=50
    )
    restored.load_state_dict(loss_fn.cpu().state_dict())
    restored(torch.zeros(8, 2, device="cuda"))
    assert restored.buffer.states.is_cuda
