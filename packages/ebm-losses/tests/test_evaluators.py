"""What an evaluator is given by each objective, and what objectives keep as it was without one."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, EnergyFunction, Terms
from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
from ebm_losses import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    EnergyDiscrepancy,
    EquilibriumMatching,
    NoiseContrastiveEstimation,
    ScoreMatching,
    SlicedScoreMatching,
)


class Standard:
    """A normalised noise distribution."""

    def __call__(self, x):
        return 0.5 * x.square().sum(1)

    def exact_sample(self, n, seed=None):
        return torch.randn(n, 2)

    def log_normalizer(self):
        return torch.tensor(2 * torch.pi).log()


class Spy:
    """Calls the terms, and notes what it was given."""

    def __init__(self):
        self.given = []

    def __call__(self, terms, x, *drawn):
        assert hash(terms) == hash(copy.copy(terms))
        outputs = terms(x, *drawn)
        assert all(part.shape == (len(x),) for part in outputs)
        assert not any(part.requires_grad for part in outputs[1:])
        assert torch.equal(outputs[1], terms.energy(x).detach())
        self.given.append([tuple(part.shape) for part in (x, *drawn)])
        return outputs


OBJECTIVES = {
    "denoising": (lambda e: DenoisingScoreMatching(e, 0.1), [[(6, 2), (6, 2), (6, 1)]]),
    "sliced": (lambda e: SlicedScoreMatching(e, 3), [[(6, 2), (6, 3, 2)]]),
    "exact": (lambda e: ScoreMatching(e), [[(6, 2), (6, 2, 2)]]),
    "equilibrium": (lambda e: EquilibriumMatching(e), [[(6, 2), (6, 2)]]),
    "discrepancy": (lambda e: EnergyDiscrepancy(e, n_negatives=4), [[(6, 2)], [(24, 2)]]),
    "noise-contrastive": (lambda e: NoiseContrastiveEstimation(e, Standard()), [[(12, 2)]]),
    "contrastive": (
        lambda e: ContrastiveDivergence(e, ReferenceLangevin(e, 0.1)), [[(12, 2)]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_evaluator_is_given_terms_and_all_that_was_drawn(name):
    make, shapes = OBJECTIVES[name]
    x = torch.randn(6, 2)
    plain = make(QuadraticEnergy(torch.ones(2)))
    loss_fn = make(QuadraticEnergy(torch.ones(2)))
    loss_fn.evaluator = spy = Spy()
    torch.manual_seed(0)
    value = loss_fn(x)
    assert spy.given == shapes
    torch.manual_seed(0)
    torch.testing.assert_close(value, plain(x))
    assert loss_fn.metrics.keys() == plain.metrics.keys()


@pytest.mark.parametrize("evaluator", ("fused", 3, Spy))
def test_what_cannot_be_called_is_no_evaluator(evaluator):
    energy = QuadraticEnergy(torch.ones(2))
    with pytest.raises(ConfigurationError, match="FusedEvaluator"):
        DenoisingScoreMatching(energy, evaluator=evaluator)
    loss_fn = ScoreMatching(energy)
    with pytest.raises(ConfigurationError, match="evaluator"):
        loss_fn.evaluator = evaluator
    assert loss_fn.evaluator is None


def test_an_evaluator_is_no_part_of_the_module():
    class Module(nn.Linear):
        def forward(self, terms: Terms, *arguments):
            return terms(*arguments)

    loss_fn = SlicedScoreMatching(QuadraticEnergy(torch.ones(2)), evaluator=Module(1, 1))
    assert not any("evaluator" in name for name in loss_fn.state_dict())
    assert len(list(loss_fn.parameters())) == 2
    for other in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(ScoreMatching(Sum())))):
        other(torch.randn(4, 2))
    loss_fn.evaluator = None
    loss_fn(torch.randn(4, 2))


class Sum(EnergyFunction):
    def forward(self, x):
        return x.square().sum(1)


def test_what_an_evaluator_raises_is_not_kept_back():
    def failing(terms, *arguments):
        raise ConfigurationError("no kernel", "one", "ask torch")

    loss_fn = ContrastiveDivergence(energy := Sum(), ReferenceLangevin(energy, 0.1))
    loss_fn.evaluator = failing
    with pytest.raises(ConfigurationError, match="no kernel"):
        loss_fn(torch.randn(4, 2))


def test_data_and_negatives_of_energy_discrepancy_are_evaluated_apart():
    """An energy may know how many states there are."""

    class Labelled(EnergyFunction):
        def __init__(self):
            super().__init__()
            self.labels = torch.arange(8.0)

        def forward(self, x):
            return (x - self.labels[:, None]).square().sum(1)

    EnergyDiscrepancy(Labelled(), n_negatives=1)(torch.randn(8, 2))


def test_log_density_of_noise_contrastive_estimation_may_be_overridden():
    class Half(NoiseContrastiveEstimation):
        def log_density(self, x):
            return 0.5 * super().log_density(x)

    values = []
    for kind in (NoiseContrastiveEstimation, Half):
        torch.manual_seed(0)
        values.append(kind(QuadraticEnergy(torch.ones(2)), Standard())(torch.ones(6, 2)).item())
    assert values[0] != values[1]


@pytest.mark.parametrize("scale", (1.0, 1e-25))
def test_the_size_of_a_piecewise_linear_energy_does_not_hide_it(scale):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))
    for make in (SlicedScoreMatching, ScoreMatching):
        with pytest.raises(ConfigurationError, match="smooth"):
            make(lambda x: scale * net(x))(torch.randn(64, 2))
