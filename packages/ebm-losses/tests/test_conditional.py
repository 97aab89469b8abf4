"""Class-conditional PCD against the conditional likelihood by enumeration."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ebm_core import ConfigurationError, EnergyFunction, ShapeError
from ebm_core.testing import ReferenceLangevin
from ebm_losses import ConditionalContrastiveDivergence

BITS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)


class Given(EnergyFunction):
    """E(x, y) = x · weight_y on three bits, with labels held."""

    support = constraints.boolean

    def __init__(self):
        super().__init__()
        weight = torch.tensor([[0.5, -1.0, 2.0], [-0.3, 0.8, 0.1]], dtype=torch.float64)
        self.weight = nn.Parameter(weight)
        self.register_buffer("labels", torch.tensor(0))

    def forward(self, x):
        n = self.batch_size(x)
        if self.labels.ndim == 1 and len(self.labels) != n:
            raise ShapeError("labels", "one a state", "give labels")
        return (x * self.weight[self.labels.expand(n)]).sum(1)


class Enumerated:
    """Independent draws from p(x | y) for the labels that its energy holds."""

    def __init__(self, energy):
        self.energy = energy

    def sample_chain(self, x_init, n_steps):
        with torch.no_grad():
            logits = -(self.energy.weight @ BITS.T)[self.energy.labels]
        return BITS[torch.multinomial(logits.softmax(1), 1)[:, 0]]


class Still:
    def sample_chain(self, x_init, n_steps):
        return x_init


def labelled_data(n):
    torch.manual_seed(0)
    labels = (torch.rand(n) < 0.3).long()
    return BITS[torch.randint(8, (n,))], labels


def test_states_are_never_more_than_their_labels():
    sizes = []

    class Counted(Given):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    energy = Counted()
    x, labels = labelled_data(4)
    ConditionalContrastiveDivergence(energy, Still(), 2, buffer_size=16)(x, labels)
    assert sizes == [4, 4]


def test_gradient_is_that_of_the_conditional_likelihood_by_enumeration():
    n = 100_000
    x, labels = labelled_data(n)
    energy = Given()
    loss_fn = ConditionalContrastiveDivergence(
        energy, Enumerated(energy), n_classes=2, buffer_size=2 * n
    )
    loss_fn(x, labels).backward()
    weight = energy.weight.detach().clone().requires_grad_()
    log_normalizers = (-weight @ BITS.T).logsumexp(1)
    ((x * weight[labels]).sum(1) + log_normalizers[labels]).mean().backward()
    assert ((energy.weight.grad - weight.grad).abs() / (0.5 / n**0.5)).max() < 4.5
    assert energy.labels.ndim == 0  # restored


def test_chains_keep_their_class_and_their_slot():
    torch.manual_seed(0)
    energy = Given()

    class Marking:
        """Writes the label it sees into the chain."""

        def __init__(self, energy):
            self.energy = energy

        def sample_chain(self, x_init, n_steps):
            return (10.0 + self.energy.labels)[:, None].expand_as(x_init).to(x_init.dtype)

    loss_fn = ConditionalContrastiveDivergence(
        energy, Marking(energy), n_classes=2, buffer_size=40, initializer=torch.zeros
    )
    for _ in range(30):
        labels = torch.randint(2, (12,))
        loss_fn(BITS[:1].expand(12, 3), labels)
        assert torch.equal(loss_fn.negatives[:, 0], 10.0 + labels)
    marks, slots = loss_fn.buffer.states[:, 0], loss_fn.buffer.labels
    assert torch.equal(marks, 10.0 + slots)


def test_given_negatives_belong_to_the_labels():
    energy = Given()
    loss_fn = ConditionalContrastiveDivergence(energy, Still(), n_classes=2)
    x, labels = labelled_data(6)
    loss = loss_fn(x, labels, 1.0 - x)
    want = ((2 * x - 1.0) * energy.weight[labels]).sum(1).mean()
    torch.testing.assert_close(loss, want)
    assert loss_fn.buffer.states is None
    energy.forward = lambda x: (x * energy.weight[energy.labels]).sum(1)  # checks nothing itself
    with pytest.raises(ShapeError, match="4 negatives came with 6 labels"):
        loss_fn(x, labels, x[:4])


def test_is_restored_whatever_the_last_batch_was():
    def objective():
        energy = Given()
        return ConditionalContrastiveDivergence(energy, Still(), n_classes=2, buffer_size=40)

    loss_fn = objective()
    loss_fn(*labelled_data(7))
    restored = objective()
    restored.load_state_dict(copy.deepcopy(loss_fn.state_dict()))
    assert torch.equal(restored.buffer.states, loss_fn.buffer.states)
    random = torch.get_rng_state()
    want = loss_fn(*labelled_data(9))
    torch.set_rng_state(random)
    assert torch.equal(restored(*labelled_data(9)), want)


def test_labels_are_restored_after_an_error_and_wrong_ones_are_refused():
    energy = Given()
    loss_fn = ConditionalContrastiveDivergence(energy, Still(), n_classes=2, buffer_size=4)
    x, labels = labelled_data(3)
    for wrong, error in (
        (labels + 1.0, ConfigurationError),
        (labels[:2], ShapeError),
        (labels + 5, ConfigurationError),
        (torch.zeros(3, dtype=torch.long), ConfigurationError),  # two chains of this class
    ):
        with pytest.raises(error):
            loss_fn(x, wrong)
        assert energy.labels.ndim == 0


def test_energies_without_labels_and_samplers_of_another_energy_are_refused():
    with pytest.raises(ConfigurationError, match="has no labels"):
        ConditionalContrastiveDivergence(lambda x: x.sum(1), Still(), n_classes=2)
    one, other = Given(), Given()
    one.support = other.support = constraints.real
    with pytest.raises(ConfigurationError, match="another energy"):
        ConditionalContrastiveDivergence(one, ReferenceLangevin(other), n_classes=2)
    ConditionalContrastiveDivergence(one, ReferenceLangevin(one), n_classes=2)


def test_labels_of_inference_mode_can_be_used():
    energy = Given()
    energy.support = constraints.real
    sampler = ReferenceLangevin(energy)
    loss_fn = ConditionalContrastiveDivergence(energy, sampler, n_classes=2, buffer_size=40)
    with torch.inference_mode():
        x, labels = labelled_data(6)
        assert torch.isfinite(loss_fn(x, labels.int()))


class HalfStuck:
    """Moves all chains but every other one of class 1."""

    def __init__(self, energy):
        self.energy = energy

    def sample_chain(self, x_init, n_steps):
        labels = self.energy.labels
        stuck = (labels == 1) & ((labels == 1).cumsum(0) % 2 == 0)
        return torch.where(stuck[:, None], x_init, x_init + 1.0)


def test_leaving_out_stuck_chains_leaves_classes_their_share():
    """p(x | y) owes nothing to a constant for each class, nor may the gradient."""
    energy = Given()
    offset = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    plain = energy.forward
    energy.forward = lambda x: plain(x) + offset[energy.labels.expand(len(x))]
    loss_fn = ConditionalContrastiveDivergence(
        energy,
        HalfStuck(energy),
        n_classes=2,
        buffer_size=80,
        initializer=torch.zeros,
        leave_out_stuck=True,
    )
    x, labels = labelled_data(20)
    assert 4 <= labels.sum() <= 10
    loss_fn(x, labels).backward()
    torch.testing.assert_close(offset.grad, torch.zeros_like(offset), rtol=0, atol=1e-12)
    # All that moved went from 0 to 1.
    want = (x * energy.weight[labels]).sum(1).mean() - energy.weight[labels].sum(1).mean()
    assert loss_fn.metrics["stuck"] > 0
    torch.testing.assert_close(-loss_fn.metrics["energy_gap"], want.detach())
    # A class of which none moved counts as it is: here a single chain at 0, next to four at 1.
    labels = torch.tensor([0, 0, 0, 0, 1])
    loss_fn.sampler.sample_chain = lambda x, n: torch.where((energy.labels == 1)[:, None], x, x + 1)
    loss_fn.buffer.states.zero_()
    loss_fn(torch.zeros(5, 3, dtype=torch.float64), labels)
    torch.testing.assert_close(
        loss_fn.metrics["negative_energy"], 0.8 * energy.weight[0].sum().detach()
    )
