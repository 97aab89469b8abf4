"""Joint, marginal and conditional laws of states and labels, against sums over classes."""

import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ebm_core import ConfigurationError, ShapeError
from ebm_core.testing import ReferenceLangevin
from ebm_models import ClassifierEnergy, ConditionalEnergy, ConvNetwork


def network(n_classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, n_classes)).double()


X = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("base_scale", (None, 1.5))
@pytest.mark.parametrize("kind", (ConditionalEnergy, ClassifierEnergy))
def test_joint_and_marginal_energies(kind, base_scale):
    net = network()
    energy = kind(net, 3, 2, base_scale).double()
    sign = -1 if kind is ClassifierEnergy else 1
    base = 0 if base_scale is None else X.square().sum(1) / (2 * base_scale**2)
    joint = sign * net(X) + (base if base_scale is None else base[:, None])
    torch.testing.assert_close(energy(X, LABELS), joint[torch.arange(5), LABELS])
    torch.testing.assert_close(energy(X, 2), joint[:, 2])
    torch.testing.assert_close(energy(X), -torch.logsumexp(-joint, 1))
    torch.testing.assert_close(energy(X, LABELS.to(torch.uint8)), energy(X, LABELS))


def test_a_classifiers_probabilities():
    net = network()
    classifier = ClassifierEnergy(net, 3, 2, base_scale=1.0).double()
    torch.testing.assert_close(classifier.logits(X), net(X))
    torch.testing.assert_close(classifier.log_prob(X), net(X).log_softmax(1))
    torch.testing.assert_close(
        classifier.log_prob(X, LABELS),
        -nn.functional.cross_entropy(net(X), LABELS, reduction="none"),
    )
    assert torch.equal(classifier.predict(X), net(X).argmax(1))
    # log p(y | x) = log p(x, y) - log p(x), with the normaliser gone
    torch.testing.assert_close(
        classifier.log_prob(X, LABELS), classifier(X) - classifier(X, LABELS)
    )


def test_given_labels_it_is_an_energy_of_states():
    energy = ConditionalEnergy(network(), 3, 2, base_scale=1.0).double()
    energy.support = constraints.positive
    given = energy.given(LABELS)
    assert given.event_shape == (2,)
    assert given.support is constraints.positive
    torch.testing.assert_close(given(X), energy(X, LABELS))
    torch.testing.assert_close(energy.given(1)(X[:3]), energy(X[:3], 1))
    x = X.clone().requires_grad_()
    (want,) = torch.autograd.grad(energy(x, LABELS).sum(), x)
    torch.testing.assert_close(given.gradient(X), want)
    given(X).sum().backward()
    assert all(parameter.grad is not None for parameter in energy.parameters())
    assert torch.equal(given.state_dict()["labels"], LABELS)
    with pytest.raises(ShapeError, match="3 states, and labels are given for 5"):
        given(X[:3])


def test_chains_go_to_their_labels():
    """E(x, y) = |x - c_y|²: chains of one call, each with its own label."""
    centres = torch.tensor([[-3.0, 0.0], [3.0, 0.0]])

    class Distances(nn.Module):
        def forward(self, x):
            return 2 * torch.cdist(x, centres).square()

    labels = torch.tensor([0, 1]).repeat(50)
    energy = ConditionalEnergy(Distances(), 2, 2).given(labels)
    torch.manual_seed(0)
    final = ReferenceLangevin(energy, 0.05).sample_chain(torch.zeros(100, 2), 100)
    assert torch.equal((final[:, 0] > 0).long(), labels)


def test_images_with_a_network_of_the_package():
    classifier = ClassifierEnergy(ConvNetwork((1, 8, 8), (4, 6), 10), 10, (1, 8, 8))
    x = torch.rand(3, 1, 8, 8)
    assert classifier.predict(x).shape == (3,)
    assert classifier(x).shape == (3,)


def test_wrong_arguments_are_refused():
    energy = ClassifierEnergy(network(), 3, 2).double()
    for labels in (torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, -1, 0, 0, 0]), 3):
        with pytest.raises(ConfigurationError, match="from 0 to 2"):
            energy(X, labels)
    for labels in (torch.zeros(5), torch.zeros(5, dtype=torch.bool), 1.5, "0", -1):
        with pytest.raises(ConfigurationError):
            energy(X, labels)
    for labels in (torch.zeros(4, dtype=torch.long), torch.zeros(5, 1, dtype=torch.long)):
        with pytest.raises(ShapeError):
            energy(X, labels)
        with pytest.raises(ShapeError):
            energy.log_prob(X, labels)
    with pytest.raises(ConfigurationError, match="from 0 to 2"):
        energy.given(torch.tensor([5]))
    with pytest.raises(ConfigurationError, match="instance"):
        ConditionalEnergy(nn.Linear, 3)
    with pytest.raises(ConfigurationError):
        ConditionalEnergy(nn.Linear(2, 3), 0)
    for call in (energy, energy.logits, energy.predict):
        with pytest.raises(ShapeError, match=r"x\[None\]"):
            call(X[0])
    with pytest.raises(ShapeError, match="each class"):
        ClassifierEnergy(nn.Linear(2, 4), 3)(torch.zeros(5, 2))
