"""Terms of contrastive objectives against their closed forms."""

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, ShapeError
from ebm_core.testing import QuadraticEnergy, ReferenceLangevin
from ebm_losses import ContrastiveBatch, ContrastiveDivergence, EnergyMagnitude, GradientPenalty


def make_batch(energy, x, negatives):
    return ContrastiveBatch(energy, x, negatives, energy(x), energy(negatives))


def value_and_gradients(term, batch):
    energy = batch.energy
    energy.zero_grad()
    value = term(batch)
    value.backward()
    return value.detach(), energy.location.grad, energy.precision.grad


@pytest.mark.parametrize("event_shape", ((2,), (1, 2), (2, 1, 1)))
@pytest.mark.parametrize("target", (0.0, 1.0))
@pytest.mark.parametrize("at", ("data", "negatives", "both"))
def test_the_gradient_penalty_is_its_closed_form(at, target, event_shape):
    torch.manual_seed(0)
    energy = QuadraticEnergy(
        torch.randn(event_shape).double(), torch.rand(event_shape).double() + 0.5
    )
    x, negatives = torch.randn(6, *event_shape).double(), torch.randn(9, *event_shape).double()
    have = value_and_gradients(GradientPenalty(0.7, target, at), make_batch(energy, x, negatives))
    m, p = (v.detach().flatten().requires_grad_() for v in (energy.location, energy.precision))
    chosen = {"data": (x,), "negatives": (negatives,), "both": (x, negatives)}[at]
    # ∇E = p (x - m), written out: its norm, and no derivative of a derivative.
    norms = [(p * (states.flatten(1) - m)).square().sum(1).sqrt() for states in chosen]
    want = 0.7 * sum((norm - target).square().mean() for norm in norms) / len(norms)
    slopes = torch.autograd.grad(want, (m, p))
    torch.testing.assert_close(have[0], want.detach())
    torch.testing.assert_close(have[1].flatten(), slopes[0])
    torch.testing.assert_close(have[2].flatten(), slopes[1])


def test_states_between_lie_on_the_lines_from_data_to_negatives():
    seen = []

    class Recorder(QuadraticEnergy):
        def forward(self, x):
            seen.append(x.detach())
            return super().forward(x)

    torch.manual_seed(0)
    energy = Recorder(torch.zeros(2), torch.ones(2))
    x, negatives = torch.randn(500, 2), torch.randn(700, 2)
    batch = make_batch(energy, x, negatives)
    seen.clear()
    GradientPenalty(1.0, 1.0, "between")(batch).backward()
    (states,) = seen
    share = (states - x) / (negatives[:500] - x)
    torch.testing.assert_close(share[:, 0], share[:, 1], rtol=1e-2, atol=1e-3)
    assert share.min() >= 0
    assert share.max() <= 1
    assert abs(share.mean() - 0.5) < 4.5 / (12 * 500) ** 0.5
    assert energy.precision.grad.abs().sum() > 0


def test_a_flat_energy_has_a_finite_gradient():
    energy = QuadraticEnergy(torch.zeros(2), torch.zeros(2))
    x = torch.randn(4, 2)
    for target in (0.0, 1.0):
        energy.zero_grad()
        value = GradientPenalty(1.0, target)(make_batch(energy, x, x))
        value.backward()
        assert value == target**2
        assert torch.isfinite(energy.precision.grad).all()


def test_impossible_arguments_are_refused():
    for arguments in ((0.0,), (-1.0,), (1.0, -0.1), (1.0, 0.0, "everywhere")):
        with pytest.raises(ConfigurationError):
            GradientPenalty(*arguments)


def test_points_between_integer_states_are_refused():
    energy = QuadraticEnergy(torch.zeros(2))
    x = torch.ones(4, 2, dtype=torch.int8)
    with pytest.raises(ConfigurationError, match="GradientPenalty was given.*int8"):
        GradientPenalty(1.0, at="between")(make_batch(energy, x, x))
    assert GradientPenalty(1.0)(make_batch(energy, x, x)) == 2.0


# In an objective


def objective(energy=lambda x: x.sum(1), **options):
    return ContrastiveDivergence(energy, ReferenceLangevin(energy), **options)


def test_a_contrastive_objective_adds_the_term():
    torch.manual_seed(0)
    energy = QuadraticEnergy(torch.zeros(2), torch.full((2,), 2.0))
    sampler, x, negatives = ReferenceLangevin(energy), torch.randn(6, 2), torch.randn(6, 2)
    plain = ContrastiveDivergence(energy, sampler)(x, negatives)
    loss_fn = ContrastiveDivergence(energy, sampler, regularizers=[GradientPenalty(0.1)])
    penalty = 0.1 * (2 * x).square().sum(1).mean()
    torch.testing.assert_close(loss_fn(x, negatives) - plain, penalty)
    torch.testing.assert_close(loss_fn.metrics["regularization"], penalty)


def test_regularisation_is_off_unless_asked_and_adds_up():
    x, negatives = torch.full((2, 1), 3.0), torch.full((2, 1), 2.0)
    plain = objective()
    assert plain(x, negatives) == 1.0
    assert "regularization" not in plain.metrics
    terms = [EnergyMagnitude(0.1), lambda batch: batch.x.mean() + batch.negatives.sum()]
    loss_fn = objective(regularizers=terms)
    torch.testing.assert_close(loss_fn(x, negatives), torch.tensor(1.0 + 1.3 + 7.0))
    torch.testing.assert_close(loss_fn.metrics["regularization"], torch.tensor(8.3))
    assert loss_fn.metrics["energy_gap"] == -1.0


def test_a_regulariser_may_give_a_number_of_any_kind():
    x = torch.zeros(2, 1, dtype=torch.float64)
    terms = [lambda batch: 0.5, lambda batch: 2, lambda batch: torch.tensor(0.25)]
    loss = objective(regularizers=terms)(x, x)
    assert loss == 2.75
    assert loss.dtype == torch.float64


@pytest.mark.parametrize(
    ("value", "error"),
    ((torch.zeros(2), ShapeError), (None, ConfigurationError), ("0.1", ConfigurationError)),
)
def test_a_regulariser_that_gives_no_number_is_refused(value, error):
    def no_number(batch):
        return value

    loss_fn = objective(regularizers=[no_number])
    with pytest.raises(error, match="no_number"):
        loss_fn(torch.zeros(2, 1))


def test_a_regulariser_that_is_a_module_is_trained_moved_and_saved_with_the_loss():
    class Term(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, batch):
            return self.weight * batch.data_energy.mean()

    terms = [EnergyMagnitude(0.1), Term()]
    loss_fn = objective(regularizers=terms)
    assert any(parameter is terms[1].weight for parameter in loss_fn.parameters())
    assert loss_fn.double()(*torch.ones(2, 4, 2).double()).dtype == torch.float64
    assert terms[1].weight.dtype == torch.float64
    assert any(name.endswith("weight") for name in loss_fn.state_dict())


def test_the_magnitude_term_has_the_gradient_of_its_formula():
    energy = QuadraticEnergy(torch.tensor([0.5, -1.0]).double(), torch.tensor([2.0, 0.7]).double())
    x, negatives = torch.randn(2, 5, 2, dtype=torch.float64)
    objective(energy, regularizers=[EnergyMagnitude(0.3)])(x, negatives).backward()
    m, p = energy.location.detach(), energy.precision.detach()
    want = torch.zeros(2, dtype=torch.float64)
    for sign, states in ((1.0, x), (-1.0, negatives)):
        squares = 0.5 * (states - m).square()
        factor = sign + 2 * 0.3 * (squares * p).sum(1, keepdim=True)
        want += (factor * squares).mean(0)
    torch.testing.assert_close(energy.precision.grad, want)
    with pytest.raises(ConfigurationError):
        EnergyMagnitude(0.0)
