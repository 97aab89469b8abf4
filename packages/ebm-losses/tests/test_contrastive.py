"""Contrastive divergence against closed forms on Gaussians; the life of persistent chains."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from ebm_core import ConfigurationError, NumericalError, SampleResult, ShapeError, as_energy, spin
from ebm_core.testing import LossConformance, QuadraticEnergy, ReferenceLangevin
from ebm_losses import ContrastiveDivergence, EnergyMagnitude, PersistentContrastiveDivergence

STEP = 0.3
MEAN, PRECISION = (0.5, -1.0), (2.0, 0.7)


def gaussian(dtype=torch.float64):
    return QuadraticEnergy(torch.tensor(MEAN, dtype=dtype), torch.tensor(PRECISION, dtype=dtype))


def gradients(energy):
    return energy.location.grad, energy.precision.grad


class Shift:
    """A sampler by shape alone: adds `by` for each step."""

    def __init__(self, by=1.0):
        self.by = by
        self.calls = []

    def sample_chain(self, x_init, n_steps):
        self.calls.append((x_init.clone(), n_steps))
        return x_init + self.by * n_steps


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


def test_an_energy_that_gives_a_column_is_refused():
    with pytest.raises(ShapeError, match="one number a state"):
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


# The life of persistent chains


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


def test_regularisation_is_off_unless_asked_and_adds_up():
    x, negatives = torch.full((2, 1), 3.0), torch.full((2, 1), 2.0)
    plain = ContrastiveDivergence(lambda x: x.sum(1), Shift())
    assert plain(x, negatives) == 1.0
    assert "regularization" not in plain.metrics
    terms = [EnergyMagnitude(0.1), lambda batch: batch.x.mean() + batch.negatives.sum()]
    loss_fn = ContrastiveDivergence(lambda x: x.sum(1), Shift(), regularizers=terms)
    torch.testing.assert_close(loss_fn(x, negatives), torch.tensor(1.0 + 1.3 + 7.0))
    torch.testing.assert_close(loss_fn.metrics["regularization"], torch.tensor(8.3))
    assert loss_fn.metrics["energy_gap"] == -1.0


def test_a_regulariser_may_give_a_number_of_any_kind():
    x = torch.zeros(2, 1, dtype=torch.float64)
    terms = [lambda batch: 0.5, lambda batch: 2, lambda batch: torch.tensor(0.25)]
    loss = ContrastiveDivergence(lambda x: x.sum(1), Shift(), regularizers=terms)(x, x)
    assert loss == 2.75
    assert loss.dtype == torch.float64


@pytest.mark.parametrize(
    ("value", "error"),
    ((torch.zeros(2), ShapeError), (None, ConfigurationError), ("0.1", ConfigurationError)),
)
def test_a_regulariser_that_gives_no_number_is_refused(value, error):
    def no_number(batch):
        return value

    loss_fn = ContrastiveDivergence(lambda x: x.sum(1), Shift(), regularizers=[no_number])
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
    loss_fn = ContrastiveDivergence(lambda x: x.sum(1), Shift(), regularizers=terms)
    assert any(parameter is terms[1].weight for parameter in loss_fn.parameters())
    assert loss_fn.double()(*torch.ones(2, 4, 2).double()).dtype == torch.float64
    assert terms[1].weight.dtype == torch.float64
    assert any(name.endswith("weight") for name in loss_fn.state_dict())


def test_the_magnitude_term_has_the_gradient_of_its_formula():
    energy = gaussian()
    x, negatives = torch.randn(2, 5, 2, dtype=torch.float64)
    ContrastiveDivergence(energy, Shift(), regularizers=[EnergyMagnitude(0.3)])(
        x, negatives
    ).backward()
    m, p = energy.location.detach(), energy.precision.detach()
    want = torch.zeros(2, dtype=torch.float64)
    for sign, states in ((1.0, x), (-1.0, negatives)):
        squares = 0.5 * (states - m).square()
        factor = sign + 2 * 0.3 * (squares * p).sum(1, keepdim=True)
        want += (factor * squares).mean(0)
    torch.testing.assert_close(energy.precision.grad, want)
    with pytest.raises(ConfigurationError):
        EnergyMagnitude(0.0)


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


# Saving and restoring


def trainer(seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))
    energy = as_energy(lambda x: network(x).squeeze(1) + x.square().sum(1), network)
    loss_fn = PersistentContrastiveDivergence(
        energy,
        ReferenceLangevin(energy, 0.05),
        k_steps=3,
        buffer_size=40,
        reinit_probability=0.1,
    )
    return network, loss_fn, torch.optim.Adam(network.parameters(), lr=0.01)


def train(parts, n_steps):
    network, loss_fn, optimizer = parts
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss_fn(torch.randn(16, 2)).backward()
        optimizer.step()
    return [p.detach().clone() for p in network.parameters()] + [loss_fn.buffer.states.clone()]


def test_a_restored_run_goes_on_as_if_it_had_not_been_cut():
    parts, file = trainer(0), io.BytesIO()
    train(parts, 5)
    state = {str(i): part.state_dict() for i, part in enumerate(parts)}
    torch.save({**state, "random": torch.get_rng_state()}, file)
    uncut = train(parts, 5)
    fresh = trainer(1)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for i, part in enumerate(fresh):
        part.load_state_dict(state[str(i)])
    torch.set_rng_state(state["random"])
    for have, want in zip(train(fresh, 5), uncut, strict=True):
        assert torch.equal(have, want)


def test_without_the_samplers_state_the_run_would_differ():
    parts = trainer(0)
    train(parts, 2)
    state = copy.deepcopy(parts[1].state_dict())
    assert state["_extra_state"]["sampler"]["counter"] == 6
    assert state["buffer.states"].shape == (40, 2)
    random = torch.get_rng_state()
    uncut = train(parts, 1)
    fresh = trainer(1)
    state["_extra_state"] = {}
    fresh[1].load_state_dict(state)
    torch.set_rng_state(random)
    assert not torch.equal(train(fresh, 1)[-1], uncut[-1])


def test_a_sampler_without_state_saves_none_and_refuses_one():
    plain = ContrastiveDivergence(QuadraticEnergy(torch.zeros(2)), Shift())
    assert plain.state_dict()["_extra_state"] == {}
    plain.load_state_dict(plain.state_dict())
    energy = QuadraticEnergy(torch.zeros(2))
    other = ContrastiveDivergence(energy, ReferenceLangevin(energy))
    other.load_state_dict(plain.state_dict())
    with pytest.raises(ConfigurationError, match="load_state_dict"):
        plain.load_state_dict(other.state_dict())


def test_the_state_of_another_kind_of_sampler_is_refused_and_nothing_is_loaded():
    class Other(ReferenceLangevin):
        """Takes the state of its parent, so that the kind alone tells them apart."""

    saved = QuadraticEnergy(torch.ones(2))
    loss_fn = PersistentContrastiveDivergence(saved, ReferenceLangevin(saved), buffer_size=8)
    loss_fn(torch.zeros(4, 2))
    energy = QuadraticEnergy(torch.zeros(2))
    other = PersistentContrastiveDivergence(energy, Other(energy), buffer_size=8)
    with pytest.raises(ConfigurationError, match=r"ReferenceLangevin.*wanted.*Other"):
        other.load_state_dict(loss_fn.state_dict())
    assert (energy.location == 0).all()
    assert other.buffer.states is None


def test_a_state_saved_before_the_first_call_takes_a_used_loss_back_to_it():
    energy = QuadraticEnergy(torch.zeros(2))
    loss_fn = PersistentContrastiveDivergence(energy, ReferenceLangevin(energy), buffer_size=8)
    saved, file = copy.deepcopy(loss_fn.state_dict()), io.BytesIO()
    torch.save(saved, file)
    loss_fn(torch.zeros(4, 2))
    file.seek(0)
    loss_fn.load_state_dict(torch.load(file, weights_only=True))
    assert loss_fn.buffer.states is None
    loss_fn(torch.zeros(4, 2, dtype=torch.float32))
    assert loss_fn.buffer.states.shape == (8, 2)


def test_a_sampler_that_is_a_module_is_part_of_the_loss():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def sample_chain(self, x_init, n_steps):
            self.count += n_steps
            return x_init

    loss_fn = ContrastiveDivergence(lambda x: x.sum(1), Module(), 3)
    loss_fn(torch.zeros(1, 1))
    state = loss_fn.state_dict()
    assert state["sampler.count"] == 3.0
    assert state["_extra_state"] == {}


def test_copies_and_pickles_go_on_by_themselves():
    energy = QuadraticEnergy(torch.zeros(2))
    loss_fn = PersistentContrastiveDivergence(energy, ReferenceLangevin(energy), buffer_size=8)
    loss_fn(torch.zeros(4, 2))
    for twin in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        before = loss_fn.buffer.states.clone()
        twin(torch.zeros(4, 2))
        assert torch.equal(loss_fn.buffer.states, before)
        assert twin.sampler.energy is twin.energy


def test_any_full_sampler_will_do():
    """The one method suffices, even where `sample` gives a result object."""
    energy = QuadraticEnergy(torch.zeros(2))
    sampler = ReferenceLangevin(energy)
    assert isinstance(sampler.sample(torch.zeros(1, 2), n_steps=1), SampleResult)
    assert ContrastiveDivergence(energy, sampler)(torch.zeros(4, 2)).shape == ()
    assert "ReferenceLangevin" in repr(ContrastiveDivergence(energy, sampler))


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
