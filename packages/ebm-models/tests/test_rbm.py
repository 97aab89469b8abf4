"""The RBM against enumeration of both layers: energies, conditionals, gradients, centring."""

import copy
import itertools
import math

import pytest
import torch
from torch.distributions import constraints
from torch.nn import functional as F

from ebm_core import ConfigurationError, ShapeError, SupportError
from ebm_core.testing import ModelConformance
from ebm_models import BernoulliRBM
from ebm_models import rbm as module


def states(n):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def machine(n_visible=4, n_hidden=3, centred=True):
    """Weights and biases of order 1, in float64."""
    torch.manual_seed(0)
    rbm = BernoulliRBM(n_visible, n_hidden).double()
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.normal_()
        if centred:
            rbm.visible_offset.uniform_()
            rbm.hidden_offset.uniform_()
    return rbm


def joint(rbm):
    """E(v, h) of all pairs by the definition, (visible state, hidden state)."""
    v, h = states(rbm.n_visible), states(rbm.n_hidden)
    bonds = torch.einsum("vi,ji,hj->vh", v, rbm.weight, h)
    return -(v @ rbm.visible_bias)[:, None] - (h @ rbm.hidden_bias)[None] - bonds


@pytest.mark.parametrize("centred", (False, True))
class TestConformance(ModelConformance):
    @pytest.fixture
    def energy(self, centred):
        torch.manual_seed(0)
        rbm = BernoulliRBM(5, 3, weight_scale=0.5)
        if centred:
            rbm.initialize_from(torch.randint(0, 2, (20, 5)))
        return rbm


@pytest.mark.parametrize(("n_visible", "n_hidden"), ((4, 3), (3, 4), (1, 2), (2, 1)))
def test_energies_conditionals_and_log_z_are_those_of_the_joint(n_visible, n_hidden):
    rbm = machine(n_visible, n_hidden)
    v, h, energy = states(n_visible), states(n_hidden), joint(rbm)
    torch.testing.assert_close(rbm(v), -torch.logsumexp(-energy, 1))
    torch.testing.assert_close(rbm.log_normalizer(), torch.logsumexp(-energy.flatten(), 0))
    every_v, every_h = v.repeat_interleave(len(h), 0), h.repeat(len(v), 1)
    torch.testing.assert_close(rbm.joint_energy(every_v, every_h), energy.flatten())
    torch.testing.assert_close(rbm.hidden_given_visible(v), (-energy).softmax(1) @ h)
    torch.testing.assert_close(rbm.visible_given_hidden(h), (-energy).softmax(0).T @ v)


def test_the_sum_over_states_in_pieces_is_the_whole_sum(monkeypatch):
    rbm = machine(5, 6)
    whole = rbm.log_normalizer()
    monkeypatch.setattr(module, "_CHUNK", 30)  # four states at a time
    torch.testing.assert_close(rbm.log_normalizer(), whole)
    assert len(list(module._all_states(5, 5, whole))) == 8


def test_log_z_without_bonds_and_beyond_the_largest_size():
    rbm = BernoulliRBM(40, 18).double()
    with torch.no_grad():
        rbm.weight.zero_()
        rbm.centred_hidden_bias.fill_(0.5)
        got = rbm.log_normalizer()
    assert abs(got - (40 * math.log(2) + 18 * math.log(1 + math.exp(0.5)))) < 1e-9
    with pytest.raises(ConfigurationError, match="40 and 23 units"):
        BernoulliRBM(40, 23).log_normalizer()


@pytest.mark.parametrize("dtype", (torch.bool, torch.uint8, torch.int8, torch.int64, torch.float32))
def test_states_of_any_dtype(dtype):
    rbm = machine()
    v = states(4)
    torch.testing.assert_close(rbm(v.to(dtype)), rbm(v))
    torch.testing.assert_close(rbm.hidden_given_visible(v.to(dtype)), rbm.hidden_given_visible(v))


def test_relaxed_states_have_the_formulas_energy():
    rbm = machine()
    v = torch.rand(7, 4, dtype=torch.float64)
    inputs = v @ rbm.weight.T + rbm.hidden_bias
    torch.testing.assert_close(rbm(v), -(v @ rbm.visible_bias) - F.softplus(inputs).sum(1))


def test_double_precision_reaches_to_large_inputs():
    """One unit of each kind: F(1) = -b - log(1 + exp(c + w)), and Z the sum of four terms."""
    rbm = BernoulliRBM(1, 1).double()
    with torch.no_grad():
        rbm.weight.fill_(20.5)
        rbm.centred_hidden_bias.fill_(0.25)
    v = torch.ones(1, 1, dtype=torch.float64)
    assert abs(rbm(v).item() + 20.75 + math.log1p(math.exp(-20.75))) < 1e-13
    exact = math.log(1 + math.exp(0.25) + 1 + math.exp(20.75))
    assert abs(rbm.log_normalizer().item() - exact) < 1e-13
    (slope,) = torch.autograd.grad(rbm(v).sum(), rbm.centred_hidden_bias)
    assert abs(slope.item() + 1 / (1 + math.exp(-20.75))) < 1e-15


def likelihood_gradient(rbm, data):
    """Of the mean negative log-likelihood, by autograd through the sum over all states."""
    loss = rbm(data).mean() + rbm.log_normalizer()
    names, parameters = zip(*rbm.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def test_the_gradient_is_centred():
    """<(h - λ)(v - μ)> of data less that of the model, by enumeration of the joint."""
    rbm = machine()
    data = states(4)[[1, 5, 6, 15, 15]]
    v, h = states(4), states(3)
    p = (-joint(rbm)).flatten().softmax(0).reshape(len(v), len(h)).detach()
    mu, lam = rbm.visible_offset, rbm.hidden_offset
    hidden = rbm.hidden_given_visible(data).detach()
    positive = (hidden - lam).T @ (data - mu) / len(data)
    negative = torch.einsum("vh,hj,vi->ji", p, h - lam, v - mu)
    got = likelihood_gradient(rbm, data)
    torch.testing.assert_close(got["weight"], negative - positive)
    torch.testing.assert_close(got["centred_visible_bias"], p.sum(1) @ v - data.mean(0))
    torch.testing.assert_close(got["centred_hidden_bias"], p.sum(0) @ h - hidden.mean(0))


def test_contrastive_and_likelihood_gradients_agree_when_negatives_are_exact():
    """Σ_v p(v) ∇F(v) is ∇ log Z: data minus model, as every contrastive objective has it."""
    rbm = machine()
    data = states(4)[[1, 5, 6, 15, 15]]
    p = (-rbm(states(4))).softmax(0).detach()
    loss = rbm(data).mean() - (p * rbm(states(4))).sum()
    want = likelihood_gradient(rbm, data)
    gradients = torch.autograd.grad(loss, list(rbm.parameters()))
    for got, expected in zip(gradients, want.values(), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_centred_gradient_does_not_depend_on_which_value_is_called_one():
    """Flipping all units leaves the learning of weights the same: what centring is for."""
    data = states(4)[[1, 1, 5, 7, 15]]
    rbm, flipped = machine(centred=False), machine(centred=False)
    with torch.no_grad():
        flipped.centred_visible_bias.copy_(-rbm.visible_bias - rbm.weight.sum(0))
        flipped.centred_hidden_bias.copy_(-rbm.hidden_bias - rbm.weight.sum(1))
    plain = likelihood_gradient(rbm, data), likelihood_gradient(flipped, 1 - data)
    assert (plain[0]["weight"] - plain[1]["weight"]).abs().max() > 0.1
    rbm.recentre(data)
    flipped.recentre(1 - data)
    first, second = likelihood_gradient(rbm, data), likelihood_gradient(flipped, 1 - data)
    torch.testing.assert_close(first["weight"], second["weight"])
    torch.testing.assert_close(first["centred_visible_bias"], -second["centred_visible_bias"])


@pytest.mark.parametrize("rate", (0.0, 0.3, 1.0))
def test_recentring_moves_offsets_and_no_energy(rate):
    rbm = machine()
    data = states(4)[[1, 5, 6, 15, 15]]
    before = copy.deepcopy(rbm)
    rbm.recentre(data, rate)
    torch.testing.assert_close(rbm(states(4)), before(states(4)))
    torch.testing.assert_close(rbm.visible_bias, before.visible_bias)
    torch.testing.assert_close(rbm.hidden_bias, before.hidden_bias)
    want = before.visible_offset + rate * (data.mean(0) - before.visible_offset)
    torch.testing.assert_close(rbm.visible_offset, want)
    means = before.hidden_given_visible(data).mean(0)
    want = before.hidden_offset + rate * (means - before.hidden_offset)
    torch.testing.assert_close(rbm.hidden_offset, want.detach())
    rbm.decentre()
    assert not rbm.visible_offset.any()
    assert not rbm.hidden_offset.any()
    torch.testing.assert_close(rbm(states(4)), before(states(4)))


@pytest.mark.parametrize("centre", (False, True))
def test_a_machine_made_from_data_has_their_means(centre):
    torch.manual_seed(0)
    rbm = BernoulliRBM(4, 3).double()
    data = (torch.rand(1000, 4, dtype=torch.float64) < torch.tensor([0.1, 0.5, 0.9, 0.0])).to(
        torch.int8
    )
    rbm.initialize_from(data, centre=centre)
    p = (-rbm(states(4))).softmax(0)
    # Weights of 0.01 move the means a little.
    torch.testing.assert_close(p @ states(4), data.double().mean(0), atol=0.01, rtol=0)
    assert bool(rbm.visible_offset.any()) == centre
    on = data.double().sum(0)
    odds = (on + 0.5) / (len(data) - on + 0.5)
    torch.testing.assert_close(rbm.visible_bias.detach(), odds.log())


def test_what_it_says_of_itself():
    rbm = BernoulliRBM(6, 2)
    assert rbm.event_shape == (6,)
    assert rbm.support is constraints.boolean
    assert repr(rbm) == "BernoulliRBM(n_visible=6, n_hidden=2)"
    assert 0.005 < BernoulliRBM(100, 50).weight.std() < 0.015
    assert set(rbm.state_dict()) == {
        "weight",
        "centred_visible_bias",
        "centred_hidden_bias",
        "visible_offset",
        "hidden_offset",
    }


def test_impossible_arguments_are_refused():
    for arguments in ((0, 3), (3, 0), (2.5, 3)):
        with pytest.raises(ConfigurationError):
            BernoulliRBM(*arguments)
    with pytest.raises(ConfigurationError, match="weight_scale"):
        BernoulliRBM(3, 2, weight_scale=0.0)
    rbm = BernoulliRBM(3, 2)
    for call in (rbm, rbm.hidden_given_visible, rbm.recentre, rbm.initialize_from):
        with pytest.raises(ShapeError, match=r"v?\[None\]"):
            call(torch.zeros(3))
        with pytest.raises(ShapeError):
            call(torch.zeros(5, 4))
    with pytest.raises(ShapeError):
        rbm.visible_given_hidden(torch.zeros(5, 3))
    for call in (rbm.recentre, rbm.initialize_from):
        with pytest.raises(SupportError, match="2 elements"):
            call(torch.tensor([[0.0, 0.5, 2.0]]))
        with pytest.raises(ShapeError, match="pattern"):
            call(torch.zeros(0, 3))
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigurationError, match="rate"):
            rbm.recentre(torch.zeros(1, 3), rate)
