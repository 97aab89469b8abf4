"""Exact and sliced score matching against closed forms, torch.func and each other."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from ebm_core import ConfigurationError, EnergyFunction, as_energy
from ebm_core.testing import LossConformance, QuadraticEnergy
from ebm_losses import ScoreMatching, SlicedScoreMatching


class TestExactConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return ScoreMatching


class TestSlicedConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return SlicedScoreMatching


class TestPlainSlicedConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: SlicedScoreMatching(energy, 3, variance_reduction=False)


class ConvEnergy(EnergyFunction):
    """A small network on images ``(1, 4, 4)``, or on their 16 pixels in a row."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)),
            nn.Conv2d(1, 3, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(3, 2, 2, stride=2),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(8, 1),
        ).double()

    def forward(self, x):
        return self.network(x.flatten(1)).squeeze(1)


def make_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    return as_energy(lambda x: network(x).squeeze(1), network.double())


def gradients(loss_fn, x):
    loss_fn.zero_grad()
    loss = loss_fn(x)
    loss.backward()
    # The bias of a last layer has no part in the score.
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in loss_fn.parameters()]
    return [loss.detach(), *(part.clone() for part in parts)]


def independent_gradients(energy, x):
    """Value and gradient of exact score matching by torch.func's full Hessian, state by state."""

    def value(parameters):
        def one(state):
            call = (state[None],)
            return functional_call(energy, parameters, call)[0]

        score, curvature = vmap(grad(one))(x), vmap(jacrev(jacrev(one)))(x)
        n = x[0].numel()
        trace = curvature.reshape(len(x), n, n).diagonal(dim1=1, dim2=2).sum(1)
        return (0.5 * score.square().flatten(1).sum(1) - trace).mean()

    parameters = {name: p.detach() for name, p in energy.named_parameters()}
    return [value(parameters), *grad(value)(parameters).values()]


def test_value_and_gradient_are_the_closed_form_on_a_gaussian():
    torch.manual_seed(0)
    energy = QuadraticEnergy(torch.tensor([0.5, -1.0]).double(), torch.tensor([2.0, 0.7]).double())
    m, p = energy.location.detach(), energy.precision.detach()
    x = torch.randn(50, 2).double()
    first, second = (x - m).mean(0), (x - m).square().mean(0)
    want = [(0.5 * p**2 * second - p).sum(), -(p**2) * first, p * second - 1]
    for have, wanted in zip(gradients(ScoreMatching(energy), x), want, strict=True):
        torch.testing.assert_close(have, wanted)


def test_a_quartic_energy_has_the_curvature_of_its_states():
    """For E = a x⁴ the loss is mean 8 a² x⁶ - 12 a x²."""
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-2, 2, 9).double()[:, None]
    loss = ScoreMatching(lambda x: scale * x.pow(4).sum(1))(x)
    loss.backward()
    torch.testing.assert_close(loss, (8 * scale**2 * x**6 - 12 * scale * x**2).mean())
    torch.testing.assert_close(scale.grad, (16 * scale * x**6 - 12 * x**2).mean())


@pytest.mark.parametrize("chunk_size", (None, 1, 2, 100))
def test_networks_agree_with_the_full_hessian(chunk_size):
    energy = make_network()
    x = torch.randn(6, 3).double()
    have = gradients(ScoreMatching(energy, chunk_size=chunk_size), x)
    for one, other in zip(have, independent_gradients(energy, x), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("chunk_size", (None, 3))
def test_convolutions_on_images_agree_with_the_full_hessian_and_with_flat_pixels(chunk_size):
    torch.manual_seed(0)
    energy, x = ConvEnergy(), torch.randn(3, 1, 4, 4).double()
    loss_fn = ScoreMatching(energy, chunk_size=chunk_size)
    images, pixels = gradients(loss_fn, x), gradients(loss_fn, x.flatten(1))
    for image, flat, want in zip(images, pixels, independent_gradients(energy, x), strict=True):
        torch.testing.assert_close(image, want)
        torch.testing.assert_close(flat, want)


@pytest.mark.parametrize("variance_reduction", (False, True))
@pytest.mark.parametrize("n_projections", (1, 3))
def test_slices_of_images_are_those_of_flat_pixels(variance_reduction, n_projections):
    torch.manual_seed(0)
    energy, x = ConvEnergy(), torch.randn(5, 1, 4, 4).double()
    loss_fn, results = SlicedScoreMatching(energy, n_projections, variance_reduction), []
    for data in (x, x.flatten(1)):
        torch.manual_seed(1)
        results.append(gradients(loss_fn, data))
    for image, flat in zip(*results, strict=True):
        torch.testing.assert_close(image, flat)


@pytest.mark.parametrize("variance_reduction", (False, True))
def test_slices_are_unbiased_for_the_exact_loss(variance_reduction):
    energy = make_network()
    x = torch.randn(4, 3).double()
    exact = gradients(ScoreMatching(energy), x)
    loss_fn = SlicedScoreMatching(energy, 2, variance_reduction)
    # Always the same four data: means over them are exact, only the directions are random.
    calls = [gradients(loss_fn, x.repeat(100, 1)) for _ in range(60)]
    for have, want in zip(zip(*calls, strict=True), exact, strict=True):
        values = torch.stack(have)
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - want).abs() <= 4.5 * error + 1e-9).all()


def test_slices_are_the_two_formulas_of_the_paper():
    torch.manual_seed(0)
    energy = make_network()
    x = torch.randn(5, 3).double()
    curvature = vmap(jacrev(jacrev(lambda state: energy(state[None])[0])))(x)
    gradient = energy.gradient(x)
    for n_projections in (1, 4):
        torch.manual_seed(1)
        v = 2 * torch.randint(2, (n_projections, 5, 3)).double() - 1
        second = torch.einsum("pbi,bij,pbj->pb", v, curvature, v)
        first = torch.einsum("pbi,bi->pb", v, gradient)
        for variance_reduction, half_square in (
            (True, gradient.square().sum(1)),
            (False, first**2),
        ):
            torch.manual_seed(1)
            loss = SlicedScoreMatching(energy, n_projections, variance_reduction)(x)
            torch.testing.assert_close(loss, (0.5 * half_square - second).mean())


def test_the_optimum_of_exact_score_matching_is_the_inverse_sample_covariance():
    """At P = S⁻¹ and the mean of the data the gradient vanishes; the loss is convex in P."""
    torch.manual_seed(0)
    x = torch.randn(500, 10).double() @ torch.randn(10, 10).double()
    mean = x.mean(0).requires_grad_()
    precision = torch.linalg.inv(torch.cov(x.T, correction=0)).requires_grad_()

    def energy(x):
        d = x - mean
        return 0.5 * torch.einsum("bi,ij,bj->b", d, (precision + precision.T) / 2, d)

    loss = ScoreMatching(energy)(x)
    loss.backward()
    torch.testing.assert_close(loss, -0.5 * precision.trace())
    assert precision.grad.abs().max() < 1e-10
    assert mean.grad.abs().max() < 1e-10


@pytest.mark.parametrize("make", (ScoreMatching, SlicedScoreMatching))
def test_states_may_be_single_numbers(make):
    x = torch.randn(6)
    loss = make(as_energy(lambda x: x.pow(4), event_shape=()))(x)
    torch.testing.assert_close(loss, (8 * x**6 - 12 * x**2).mean())


def test_metrics_are_those_of_the_data():
    torch.manual_seed(0)
    energy = QuadraticEnergy(torch.zeros(2, 3), torch.full((2, 3), 2.0))
    x = torch.randn(7, 2, 3)
    for loss_fn in (ScoreMatching(energy), SlicedScoreMatching(energy)):
        loss_fn(x)
        torch.testing.assert_close(loss_fn.metrics["energy"], energy(x).mean())
        torch.testing.assert_close(loss_fn.metrics["score_rms"], (2 * x).square().mean().sqrt())
        torch.testing.assert_close(loss_fn.metrics["laplacian"], torch.tensor(12.0))


@pytest.mark.parametrize("make", (ScoreMatching, SlicedScoreMatching))
def test_energies_without_second_derivatives_are_refused(make):
    torch.manual_seed(0)
    relu = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.randn(4, 2)
    for f in (lambda x: relu(x).squeeze(1), lambda x: x.sum(1)):
        with pytest.raises(ConfigurationError, match="smooth"):
            make(f)(x)
    # The start of many networks, a last layer of zeros, is flat but not refused.
    smooth = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))
    nn.init.zeros_(smooth[2].weight)
    make(lambda x: smooth(x).squeeze(1))(x).backward()
    assert smooth[2].weight.grad.abs().sum() > 0


def test_curvature_that_vanishes_by_chance_is_not_refused():
    """Along (1, 1) pairs have none; at 0 tanh has none, and far out softplus."""
    pair = SlicedScoreMatching(lambda x: 0.5 * (x[:, 0] - x[:, 1]) ** 2)
    torch.manual_seed(0)
    values = {round(pair(torch.tensor([[1.0, 0.0]])).item(), 6) for _ in range(20)}
    assert values == {1.0, -3.0}  # ½ |∇E|² = 1, and vᵀ∇²E v is 0 or 4
    x = torch.zeros(1, 3)
    assert SlicedScoreMatching(lambda x: torch.tanh(x).sum(1))(x) == 1.5
    x = torch.tensor([[25.0, 30.0], [40.0, 22.0]])
    ScoreMatching(lambda x: nn.functional.softplus(x).sum(1))(x)
    with torch.no_grad(), pytest.raises(ConfigurationError, match="smooth"):
        ScoreMatching(lambda x: x.sum(1))(x)


def test_impossible_arguments_are_refused():
    energy = QuadraticEnergy(torch.zeros(2))
    for chunk_size in (0, 1.5, True):
        with pytest.raises(ConfigurationError):
            ScoreMatching(energy, chunk_size=chunk_size)
    for n_projections in (0, 1.5):
        with pytest.raises(ConfigurationError):
            SlicedScoreMatching(energy, n_projections)
    with pytest.raises(ConfigurationError):
        SlicedScoreMatching(energy, 1, 5)
    assert repr(SlicedScoreMatching(energy, 2)).startswith(
        "SlicedScoreMatching(\n  n_projections=2"
    )
