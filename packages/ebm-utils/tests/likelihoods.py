"""What tests of `fit` train, and how they compare what came of it."""

import torch

from ebm_core import BaseLoss
from ebm_core.testing import QuadraticEnergy


class Likelihood(BaseLoss):
    """The exact negative log-likelihood of a quadratic energy."""

    def compute(self, x, weight=None):
        nll = self.energy(x) + self.energy.log_normalizer()
        return nll.mean() if weight is None else (weight * nll).mean(), {"n": torch.tensor(len(x))}


def likelihood():
    return Likelihood(QuadraticEnergy(torch.zeros(2)))


def assert_same(first, second):
    """Two losses are in the same state, bit for bit."""
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        same = torch.equal(a[name], b[name]) if torch.is_tensor(a[name]) else a[name] == b[name]
        assert same, name


def assert_same_results(first, second):
    assert first.history == second.history
    for a, b in zip(first.average.values, second.average.values, strict=True):
        assert torch.equal(a, b)
    assert_same(first.loss, second.loss)
