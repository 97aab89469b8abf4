"""JEM against the joint likelihood by enumeration."""

import io
import itertools

import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ebm_core import ConfigurationError, EnergyFunction, ShapeError
from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
from ebm_losses import JointEnergyLoss, PersistentContrastiveDivergence

BITS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64)


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
