"""JEM against the joint likelihood by enumeration; the labelled buffer; short runs."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ebm_core import ConfigurationError, EnergyFunction, ShapeError
from ebm_core.testing import LossConformance, QuadraticEnergy, ReferenceLangevin
from ebm_losses import (
    JointEnergyLoss,
    LabelledReplayBuffer,
    PersistentContrastiveDivergence,
    ShortRunContrastiveDivergence,
)

BITS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)
CPU = torch.device("cpu")


class Classifier(EnergyFunction):
    """A linear classifier of four bits, as an energy."""

    support = constraints.boolean
    event_shape = torch.Size([4])

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64))

    def logits(self, x):
        return x @ self.weight + self.bias

    def forward(self, x):
        return -self.logits(x).logsumexp(1)


class Enumerated:
    """Independent draws from exp(-E) on all states of four bits."""

    def __init__(self, energy):
        self.energy = energy

    def sample_chain(self, x_init, n_steps):
        with torch.no_grad():
            law = (-self.energy(BITS)).softmax(0)
        return BITS[torch.multinomial(law, len(x_init), replacement=True)]


class Still:
    def sample_chain(self, x_init, n_steps):
        return x_init


def labelled_data(n):
    torch.manual_seed(0)
    return BITS[torch.randint(16, (n,))], torch.randint(3, (n,))


def test_gradient_is_that_of_the_joint_likelihood_by_enumeration():
    """-log p(x, y) with p(x, y) ∝ exp f(x)[y], its normaliser a sum over 16 · 3 terms."""
    n = 100_000
    x, y = labelled_data(n)
    energy = Classifier()
    JointEnergyLoss(energy, Enumerated(energy), k_steps=1, buffer_size=n)(x, y).backward()
    exact = Classifier()
    logits = exact.logits(x)[torch.arange(n), y]
    (exact.logits(BITS).flatten().logsumexp(0) - logits.mean()).backward()
    for have, want in ((energy.weight, exact.weight), (energy.bias, exact.bias)):
        # A term x_i p(y | x) of the negatives' mean lies between 0 and 1.
        assert ((have.grad - want.grad).abs() / (0.5 / n**0.5)).max() < 4.5
    wrong = Classifier()
    PersistentContrastiveDivergence(wrong, Enumerated(wrong), buffer_size=n)(x).backward()
    assert ((wrong.weight.grad - exact.weight.grad).abs() / (0.5 / n**0.5)).max() > 20


@pytest.mark.parametrize("weight", (0.0, 0.3, 1.0))
def test_the_value_is_cross_entropy_plus_weight_times_contrast(weight):
    x, y = labelled_data(20)
    negatives = BITS[:7]
    energy = Classifier()
    loss_fn = JointEnergyLoss(energy, Still(), weight=weight)
    loss = loss_fn(x, y, negatives)
    logits = energy.logits(x)
    classification = nn.functional.cross_entropy(logits, y)
    contrast = energy(x).mean() - energy(negatives).mean()
    torch.testing.assert_close(loss, classification + weight * contrast)
    torch.testing.assert_close(loss_fn.metrics["cross_entropy"], classification.detach())
    assert loss_fn.metrics["accuracy"] == (logits.argmax(1) == y).double().mean()
    torch.testing.assert_close(loss_fn.metrics["energy_gap"], -contrast.detach())


def test_both_terms_see_the_same_jitter():
    x, y = labelled_data(20)
    energy = Classifier()
    plain, jittered = (
        JointEnergyLoss(energy, Still(), jitter=jitter)(data, y, BITS)
        for jitter, data in ((None, x + 0.25), (lambda x: x + 0.25, x))
    )
    assert torch.equal(plain, jittered)


def test_chains_persist_and_are_restored_with_the_loss():
    def objective():
        energy = QuadraticEnergy(torch.zeros(2))
        energy.logits = lambda x: (
            -0.5 * torch.stack([x.square().sum(1), (x - 1).square().sum(1)], 1)
        )
        return JointEnergyLoss(energy, ReferenceLangevin(energy), k_steps=2, buffer_size=30)

    loss_fn, file = objective(), io.BytesIO()
    x, y = torch.randn(8, 2), torch.randint(2, (8,))
    loss_fn(x, y)
    torch.save(loss_fn.state_dict(), file)
    file.seek(0)
    random = torch.get_rng_state()
    want = loss_fn(x, y), loss_fn.buffer.states
    restored = objective()
    restored.load_state_dict(torch.load(file, weights_only=True))
    torch.set_rng_state(random)
    assert torch.equal(restored(x, y), want[0])
    assert torch.equal(restored.buffer.states, want[1])


def test_a_module_that_is_no_energy_function_will_do():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def logits(self, x):
            return self.layer(x)

        def forward(self, x):
            return -self.layer(x).logsumexp(1)

    network = Network()
    JointEnergyLoss(network, Still())(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int)).backward()
    assert network.layer.weight.grad is not None


@pytest.mark.parametrize(
    ("y", "error"),
    (
        (torch.zeros(4), ConfigurationError),
        ([0, 1, 2, 0], ConfigurationError),
        (torch.zeros(3, dtype=torch.long), ShapeError),
        (torch.zeros(4, 1, dtype=torch.long), ShapeError),
        (torch.full((4,), 3), ConfigurationError),
        (torch.full((4,), -1), ConfigurationError),
    ),
)
def test_labels_that_are_no_classes_are_refused(y, error):
    loss_fn = JointEnergyLoss(Classifier(), Still())
    with pytest.raises(error, match=r"labels"):
        loss_fn(BITS[:4], y)
    assert loss_fn.buffer.states is None


def test_energies_without_logits_are_refused():
    with pytest.raises(ConfigurationError, match="no logits"):
        JointEnergyLoss(QuadraticEnergy(torch.zeros(2)), Still())
    energy = Classifier()
    energy.logits = lambda x: x.sum(1)
    with pytest.raises(ShapeError, match="n_classes"):
        JointEnergyLoss(energy, Still())(BITS[:4], torch.zeros(4, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="weight"):
        JointEnergyLoss(Classifier(), Still(), weight=-1.0)


# The labelled buffer


def made(size=50, n_classes=4, **options):
    buffer = LabelledReplayBuffer(size, n_classes, **options)
    buffer.prepare((3,), device=CPU, dtype=torch.float64)
    return buffer


def test_slots_of_the_asked_classes_are_drawn_without_replacement_and_uniformly():
    torch.manual_seed(0)
    buffer, counts, labels = made(22, 4), torch.zeros(22), torch.tensor([2, 0, 2, 3, 2])
    for _ in range(2000):
        slots, chains = buffer.draw_for(labels)
        assert torch.equal(buffer.labels[slots], labels)
        assert len(slots.unique()) == 5
        assert torch.equal(chains, buffer.states[slots])
        counts[slots] += 1
    for label, asked in ((0, 1), (1, 0), (2, 3), (3, 1)):
        n_slots = int((buffer.labels == label).sum())
        p = asked / n_slots
        z = (counts[buffer.labels == label] - 2000 * p).abs() / (2000 * p * (1 - p) + 1e-9) ** 0.5
        assert z.max() < 4.5


def test_the_order_of_requests_of_a_class_does_not_decide_their_slots():
    torch.manual_seed(0)
    buffer, labels = made(8, 2), torch.tensor([1, 1])
    first = torch.stack([buffer.draw_for(labels)[0] for _ in range(2000)])
    assert abs((first[:, 0] < first[:, 1]).double().mean() - 0.5) < 4.5 * 0.5 / 2000**0.5


def test_classes_have_equally_many_slots_or_nearly_so():
    counts = LabelledReplayBuffer(50, 4).labels.bincount()
    assert counts.tolist() == [13, 13, 12, 12]


def test_chains_of_a_class_begin_anew_as_often_as_asked():
    torch.manual_seed(0)
    buffer = made(4000, 2, reinit_probability=0.3)
    buffer.states.fill_(7.0)
    _, chains = buffer.draw_for(torch.ones(2000, dtype=torch.long))
    assert abs(int((chains != 7.0).any(1).sum()) - 600) < 4.5 * (2000 * 0.21) ** 0.5


def test_labels_are_saved_and_chains_restored():
    buffer, file = made(), io.BytesIO()
    buffer.labels = buffer.labels.flip(0)
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    fresh = LabelledReplayBuffer(50, 4)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.labels, buffer.labels)
    assert torch.equal(fresh.states, buffer.states)
    assert torch.equal(copy.deepcopy(fresh).labels, buffer.labels)


def test_labels_of_more_classes_are_refused_and_not_taken():
    few, labels = LabelledReplayBuffer(50, 2), torch.arange(50) % 2
    with pytest.raises(RuntimeError, match=r"labels.*up to 3.*n_classes is 2"):
        few.load_state_dict(made(50, 4).state_dict())
    assert torch.equal(few.labels, labels)


def test_impossible_requests_are_refused():
    with pytest.raises(ConfigurationError, match="a slot for each class"):
        LabelledReplayBuffer(3, 4)
    with pytest.raises(ConfigurationError, match="prepare"):
        LabelledReplayBuffer(5, 4).draw_for(torch.tensor([0]))
    with pytest.raises(ConfigurationError, match="14 chains of the class 1, which has 13 slots"):
        made().draw_for(torch.ones(14, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="from 0 to 3"):
        made().draw_for(torch.tensor([4]))


# Short runs


class TestConformanceOfShortRuns(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: ShortRunContrastiveDivergence(
            energy, ReferenceLangevin(energy, 0.01), k_steps=2
        )


def test_short_runs_begin_as_noise_at_each_call_and_take_k_steps():
    class Recorder:
        starts = ()

        def sample_chain(self, x_init, n_steps):
            self.starts = (*self.starts, x_init.clone())
            return x_init + n_steps

    torch.manual_seed(0)
    sampler = Recorder()
    loss_fn = ShortRunContrastiveDivergence(
        lambda x: x.flatten(1).sum(1), sampler, k_steps=3, n_negatives=5000
    )
    for _ in range(2):
        loss_fn(torch.zeros(4, 1, 2, dtype=torch.float64))
    first, second = sampler.starts
    assert first.shape == (5000, 1, 2)
    assert first.dtype == torch.float64
    for start in (first, second):
        assert abs(start.mean()) < 4.5 / 10_000**0.5
        assert abs(start.var() - 1) < 4.5 * (2 / 10_000) ** 0.5
    assert abs((first * second).mean()) < 4.5 / 10_000**0.5
    assert torch.equal(loss_fn.negatives, second + 3)


def test_short_runs_begin_as_the_support_or_the_initializer_says():
    loss_fn = ShortRunContrastiveDivergence(Classifier(), Still())
    loss_fn(BITS)
    assert loss_fn.negatives.shape == BITS.shape
    assert set(loss_fn.negatives.unique().tolist()) <= {0.0, 1.0}
    loss_fn = ShortRunContrastiveDivergence(Classifier(), Still(), initializer=torch.ones)
    loss_fn(BITS)
    assert (loss_fn.negatives == 1).all()


@pytest.mark.parametrize("options", ({"k_steps": 0}, {"n_negatives": 0}, {"initializer": 3}))
def test_impossible_options_of_short_runs_are_refused(options):
    with pytest.raises(ConfigurationError):
        ShortRunContrastiveDivergence(Classifier(), Still(), **options)
