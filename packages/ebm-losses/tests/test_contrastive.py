"""Contrastive divergence against closed forms on Gaussians; what a caller and a sampler may do."""

import pytest
import torch
from shifting import Shift
from torch import nn

from ebm_core import ConfigurationError, NumericalError, SampleResult, ShapeError, as_energy, spin
from ebm_core.testing import LossConformance, QuadraticEnergy, ReferenceLangevin
from ebm_losses import ContrastiveDivergence, PersistentContrastiveDivergence

STEP = 0.3
MEAN, PRECISION = (0.5, -1.0), (2.0, 0.7)


def gaussian(dtype=torch.float64):
    return QuadraticEnergy(torch.tensor(MEAN, dtype=dtype), torch.tensor(PRECISION, dtype=dtype))


def gradients(energy):
    return energy.location.grad, energy.precision.grad


class Exact:
    """Draws that owe nothing to their starts."""

    def __init__(self, energy):
        self.energy = energy

    def sample_chain(self, x_init, n_steps):
        return self.energy.exact_sample(len(x_init))


class TestConformanceOfCD(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: ContrastiveDivergence(energy, ReferenceLangevin(energy, 0.01))


class TestConformanceOfPCD(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: PersistentContrastiveDivergence(
            energy, ReferenceLangevin(energy, 0.01), k_steps=2, buffer_size=20
        )


# The gradient


def test_gradient_with_given_negatives_is_the_closed_form():
    energy = gaussian()
    x, negatives = torch.randn(2, 64, 2, dtype=torch.float64)
    loss = ContrastiveDivergence(energy, Shift())(x, negatives)
    loss.backward()
    m, p = energy.location.detach(), energy.precision.detach()
    location, precision = gradients(energy)
    torch.testing.assert_close(location, -p * (x.mean(0) - negatives.mean(0)))
    second = (x - m).square().mean(0) - (negatives - m).square().mean(0)
    torch.testing.assert_close(precision, 0.5 * second)
    torch.testing.assert_close(loss.detach(), (0.5 * p * second).sum())


@pytest.mark.parametrize("loss_class", (ContrastiveDivergence, PersistentContrastiveDivergence))
def test_with_exact_negatives_the_gradient_is_that_of_the_likelihood(loss_class):
    torch.manual_seed(0)
    energy, n = gaussian(), 100_000
    x = 0.5 + torch.randn(n, 2, dtype=torch.float64)
    options = {"buffer_size": n} if loss_class is PersistentContrastiveDivergence else {}
    loss_class(energy, Exact(energy), k_steps=1, **options)(x).backward()
    exact = gaussian()
    (exact(x).mean() + exact.log_normalizer()).backward()
    p = energy.precision.detach()
    for have, want, sd in zip(
        gradients(energy), gradients(exact), (p.sqrt(), 0.5 * 2**0.5 / p), strict=True
    ):
        assert ((have - want).abs() / (sd / n**0.5)).max() < 4.5


def after_langevin(mean, variance, n_steps):
    """Mean and variance of a Gaussian start after unadjusted Langevin steps on `gaussian()`."""
    m, p = (torch.tensor(v, dtype=torch.float64) for v in (MEAN, PRECISION))
    for _ in range(n_steps):
        mean = m + (1 - STEP * p) * (mean - m)
        variance = (1 - STEP * p) ** 2 * variance + 2 * STEP
    return mean, variance


def assert_precision_gradient(energy, x, mean, variance, n):
    """The gradient with respect to the precisions, given the law of the negatives."""
    m = energy.location.detach()
    want = 0.5 * ((x - m).square().mean(0) - variance - (mean - m).square())
    sd = 0.5 * (2 * variance**2 + 4 * variance * (mean - m).square()).sqrt()
    assert ((energy.precision.grad - want).abs() / (sd / n**0.5)).max() < 4.5


@pytest.mark.parametrize("k_steps", (1, 4))
def test_cd_starts_from_the_data_and_takes_k_steps(k_steps):
    torch.manual_seed(0)
    energy, n = gaussian(), 100_000
    x = torch.tensor([2.0, 2.0], dtype=torch.float64).expand(n, 2)
    ContrastiveDivergence(energy, ReferenceLangevin(energy, STEP), k_steps)(x).backward()
    assert_precision_gradient(energy, x, *after_langevin(x[0], torch.zeros(2), k_steps), n)


def test_pcd_goes_on_from_where_the_last_call_left_the_chains():
    torch.manual_seed(0)
    energy, n = gaussian(), 100_000
    loss_fn = PersistentContrastiveDivergence(
        energy, ReferenceLangevin(energy, STEP), k_steps=2, buffer_size=n
    )
    x = torch.zeros(n, 2, dtype=torch.float64)
    for call in range(1, 4):
        energy.zero_grad()
        loss_fn(x).backward()
        law = after_langevin(torch.zeros(2), torch.ones(2), 2 * call)
        assert_precision_gradient(energy, x, *law, n)


@pytest.mark.parametrize("event_shape", ((16,), (1, 4, 4), (2, 2, 2, 2)))
def test_value_and_gradient_do_not_depend_on_the_shape_of_the_event(event_shape):
    torch.manual_seed(0)
    mean, precision = torch.randn(16).double(), torch.rand(16).double() + 0.5
    x = torch.randn(8, 16).double()
    energy = QuadraticEnergy(mean.reshape(event_shape), precision.reshape(event_shape))
    flat = QuadraticEnergy(mean, precision)
    values = []
    for e, data in ((energy, x.reshape(8, *event_shape)), (flat, x)):
        torch.manual_seed(1)
        sampler = ReferenceLangevin(e, 0.1)
        values.append(PersistentContrastiveDivergence(e, sampler, buffer_size=30)(data))
        values[-1].backward()
    torch.testing.assert_close(*values)
    for have, want in zip(gradients(energy), gradients(flat), strict=True):
        torch.testing.assert_close(have.flatten(), want)


def test_no_gradient_flows_through_the_negatives_or_into_the_data():
    scale = torch.tensor(2.0, requires_grad=True)

    class Attached(Shift):
        def sample_chain(self, x_init, n_steps):
            return scale * x_init

    x = torch.ones(4, 1)
    loss_fn = ContrastiveDivergence(lambda x: scale * x.sum(1), Attached())
    loss_fn(x).backward()
    assert scale.grad == 1.0 - 2.0  # mean x - mean negatives, the latter constant
    assert not loss_fn.negatives.requires_grad
    attached = (scale * x).requires_grad_()
    loss_fn(x, attached)
    assert not loss_fn.negatives.requires_grad


# What the caller and the sampler may do


@pytest.mark.parametrize("make", (ContrastiveDivergence, PersistentContrastiveDivergence))
def test_given_negatives_are_used_as_they_are(make):
    sampler = Shift()
    loss_fn = make(lambda x: x.sum(1), sampler)
    x, negatives = torch.ones(4, 2), torch.full((3, 2), 5.0)
    assert loss_fn(x, negatives) == loss_fn(x, negatives=negatives) == 2.0 - 10.0
    assert torch.equal(loss_fn.negatives, negatives)
    assert not sampler.calls
    if make is PersistentContrastiveDivergence:
        assert loss_fn.buffer.states is None


def test_metrics():
    class Adjusted(Shift):
        acceptance_rate = torch.tensor([0.5, 0.7])

    loss_fn = ContrastiveDivergence(lambda x: x.sum(1), Adjusted(), 2)
    loss_fn(torch.zeros(4, 3))
    metrics = {name: round(value.item(), 6) for name, value in loss_fn.metrics.items()}
    assert metrics == {
        "data_energy": 0.0,
        "negative_energy": 6.0,
        "energy_gap": 6.0,
        "acceptance_rate": 0.6,
    }
    loss_fn(torch.zeros(4, 3), torch.zeros(4, 3))
    assert "acceptance_rate" not in loss_fn.metrics


def test_a_sampler_that_works_in_place_cannot_spoil_data_or_buffer():
    class InPlace(Shift):
        def sample_chain(self, x_init, n_steps):
            return x_init.fill_(float("nan"))

    x = torch.zeros(4, 2)
    with pytest.raises(NumericalError):
        ContrastiveDivergence(lambda x: x.sum(1), InPlace())(x)
    assert (x == 0).all()
    loss_fn = PersistentContrastiveDivergence(lambda x: x.sum(1), InPlace(), buffer_size=4)
    with pytest.raises(NumericalError):
        loss_fn(x)
    assert torch.isfinite(loss_fn.buffer.states).all()


@pytest.mark.parametrize("make", (ContrastiveDivergence, PersistentContrastiveDivergence))
def test_dropout_is_off_while_the_sampler_runs_and_on_in_the_loss(make):
    network = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    network[0].eval()  # Each submodule has a flag of its own, to be restored.
    energy = as_energy(lambda x: network(x).squeeze(1), network)
    seen = []

    class Observing(Shift):
        def sample_chain(self, x_init, n_steps):
            seen.extend(part.training for part in network.modules())
            if len(seen) > 4:
                raise KeyboardInterrupt
            return x_init

    loss_fn = make(energy, Observing())
    flags = [part.training for part in loss_fn.modules()]
    assert network[1].training
    loss_fn(torch.zeros(4, 2))
    with pytest.raises(KeyboardInterrupt):
        loss_fn(torch.zeros(4, 2))
    assert not any(seen)
    assert [part.training for part in loss_fn.modules()] == flags


def test_inference_tensors_of_a_sampler_can_be_trained_on():
    class Inference(Shift):
        @torch.inference_mode()
        def sample_chain(self, x_init, n_steps):
            return x_init * 2.0

    network = nn.Linear(2, 1)
    loss_fn = PersistentContrastiveDivergence(
        as_energy(lambda x: network(x).square().squeeze(1), network), Inference(), buffer_size=8
    )
    with torch.inference_mode():
        loss_fn(torch.ones(4, 2))
    loss_fn(torch.ones(4, 2)).backward()
    assert torch.isfinite(network.weight.grad).all()


def test_negatives_that_were_made_in_inference_mode_can_be_trained_on():
    network = nn.Linear(2, 1)
    energy = as_energy(lambda x: network(x).square().squeeze(1), network)
    with torch.inference_mode():
        negatives = torch.ones(3, 2)
    ContrastiveDivergence(energy, Shift())(torch.zeros(4, 2), negatives).backward()
    assert network.weight.grad.abs().sum() > 0


def test_a_sampler_of_the_wrong_kind_is_refused():
    for sampler in (None, Shift, lambda x, n: x, object()):
        with pytest.raises(ConfigurationError, match="sample_chain"):
            ContrastiveDivergence(lambda x: x.sum(1), sampler)

    class Result(Shift):
        def sample_chain(self, x_init, n_steps):
            return x_init[:2]

    with pytest.raises(ShapeError, match="one for each start"):
        ContrastiveDivergence(lambda x: x.sum(1), Result())(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("final", "error", "given"),
    (
        (lambda x: (x, 0.5), ConfigurationError, "sample_chain of Returning gave a tuple"),
        (lambda x: x.numpy(), ConfigurationError, "a ndarray"),
        (
            lambda x: SampleResult(final=x, trajectory=None, potential=x[:, :1], stats={}, seed=0),
            ConfigurationError,
            "a SampleResult.*result.final",
        ),
        (lambda x: None, ConfigurationError, "a NoneType"),
        (lambda x: x.double(), ConfigurationError, r"float64.*wanted.*float32"),
        (lambda x: x.to("meta"), ConfigurationError, r"meta.*wanted.*cpu"),
        (lambda x: x[0], ShapeError, r"\(2,\).*wanted.*\(4, 2\)"),
        (lambda x: x[:, :1], ShapeError, r"\(4, 1\).*wanted.*\(4, 2\)"),
    ),
)
@pytest.mark.parametrize("make", (ContrastiveDivergence, PersistentContrastiveDivergence))
def test_a_sampler_that_gives_anything_but_final_states_is_refused(make, final, error, given):
    class Returning(Shift):
        def sample_chain(self, x_init, n_steps):
            return final(x_init)

    with pytest.raises(error, match=given):
        make(lambda x: x.sum(1), Returning())(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("x", "negatives", "error"),
    (
        (torch.zeros(2), None, ShapeError),
        (torch.zeros(0, 2), None, ShapeError),
        (torch.zeros(4, 3, 2), None, ShapeError),
        (torch.zeros(4, 2), torch.zeros(2), ShapeError),
        (torch.zeros(4, 2), torch.zeros(4, 3), ShapeError),
        (torch.zeros(4, 2), torch.zeros(0, 2), ShapeError),
        (torch.zeros(4, 2), [[0.0, 0.0]], ConfigurationError),
        (torch.zeros(4, 2), (torch.zeros(4, 2),), ConfigurationError),
        (torch.zeros(4, 2), torch.zeros(4, 2).numpy(), ConfigurationError),
        (torch.zeros(4, 2), torch.zeros(4, 2).double(), ConfigurationError),
        (torch.zeros(4, 2), torch.zeros(4, 2, device="meta"), ConfigurationError),
        (torch.zeros(4, 2), torch.full((4, 2), torch.nan), NumericalError),
        (torch.full((4, 2), torch.nan), None, NumericalError),
    ),
)
def test_impossible_data_and_negatives_are_refused(x, negatives, error):
    energy = QuadraticEnergy(torch.zeros(2))
    with pytest.raises(error):
        ContrastiveDivergence(energy, Shift())(x, negatives)


@pytest.mark.parametrize("make", (ContrastiveDivergence, PersistentContrastiveDivergence))
def test_an_energy_with_a_number_for_each_state_is_called_twice(make):
    """As one with labels is, and a function of states and labels."""
    shift, sizes = torch.tensor([0.0, 1.0, 2.0, 3.0]), []

    def energy(x):
        sizes.append(len(x))
        return (x.sum(1) - shift).square()

    loss_fn = make(energy, Shift())
    x, negatives = torch.randn(4, 2), torch.randn(4, 2)
    for _ in range(2):
        loss = loss_fn(x, negatives)
        torch.testing.assert_close(loss, energy(x).mean() - energy(negatives).mean())
    assert sizes == [8, *[4] * 8]


def test_data_and_negatives_are_evaluated_at_once():
    sizes = []

    def energy(x):
        sizes.append(len(x))
        return x.sum(1)

    ContrastiveDivergence(energy, Shift())(torch.zeros(4, 2), torch.zeros(3, 2))
    assert sizes == [7]


def test_an_energy_that_gives_a_column_is_refused():
    with pytest.raises(ShapeError, match=r"for a batch of shape \(4,\); .*one number a state"):
        ContrastiveDivergence(lambda x: x, Shift())(torch.zeros(4, 1))


@pytest.mark.parametrize(
    "options",
    (
        {"k_steps": 0},
        {"k_steps": 1.5},
        {"buffer_size": 0},
        {"reinit_probability": 2.0},
        {"n_negatives": 0},
        {"n_negatives": 11, "buffer_size": 10},
        {"regularizers": 0.1},
        {"regularizers": [0.1]},
    ),
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigurationError):
        PersistentContrastiveDivergence(lambda x: x.sum(1), Shift(), **options)


@pytest.mark.parametrize("make", (ContrastiveDivergence, PersistentContrastiveDivergence))
def test_energies_that_are_integers_are_refused(make):
    energy = as_energy(lambda x: x.sum(1), support=spin)
    with pytest.raises(ConfigurationError, match=r"int64.*floating"):
        make(energy, Shift(0))(torch.ones(4, 2, dtype=torch.int8))


def test_an_energy_that_is_not_finite_raises():
    with pytest.raises(NumericalError):
        ContrastiveDivergence(lambda x: x.log().sum(1), Shift())(torch.zeros(4, 2))


def test_any_full_sampler_will_do():
    """The one method suffices, even where `sample` gives a result object."""
    energy = QuadraticEnergy(torch.zeros(2))
    sampler = ReferenceLangevin(energy)
    assert isinstance(sampler.sample(torch.zeros(1, 2), n_steps=1), SampleResult)
    assert ContrastiveDivergence(energy, sampler)(torch.zeros(4, 2)).shape == ()
    assert "ReferenceLangevin" in repr(ContrastiveDivergence(energy, sampler))
