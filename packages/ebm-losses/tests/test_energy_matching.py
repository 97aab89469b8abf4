"""Energy matching: coupling by brute force, flow by quadrature, chains by their closed form."""

import builtins
from itertools import permutations

import numpy as np
import pytest
import torch

from ebm_core import ConfigurationError, NumericalError, as_energy
from ebm_core.testing import LossConformance, QuadraticEnergy, ReferenceLangevin
from ebm_losses import EnergyMatching
from ebm_losses._coupling import import_pot, optimal_pairs


class TestConformanceOfTheFlow(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return EnergyMatching


class TestConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: EnergyMatching(energy, 0, n_steps=5)


def make_energy(mean=0.5, precision=1.7):
    return QuadraticEnergy(torch.full((1,), mean).double(), torch.full((1,), precision).double())


def gradients(loss_fn, x):
    loss_fn.zero_grad()
    loss = loss_fn(x)
    loss.backward()
    energy = loss_fn.energy
    return torch.cat([loss.detach()[None], energy.location.grad, energy.precision.grad])


def test_pairs_are_those_of_least_cost():
    torch.manual_seed(0)
    ot = import_pot("the test")
    x, y = torch.randn(6, 2, 2), torch.randn(6, 2, 2)
    cost = (x[:, None] - y[None]).square().sum((2, 3))
    best = min(
        permutations(range(6)), key=lambda p: sum(cost[i, j].item() for i, j in enumerate(p))
    )
    assert optimal_pairs(x, y, ot).tolist() == list(best)
    # On a line the sorted states belong together.
    x, y = torch.randn(300, 1), torch.randn(300, 1)
    paired = y[optimal_pairs(x, y, ot)]
    assert torch.equal(paired.flatten()[x.flatten().argsort()], y.flatten().sort().values)


def test_the_flow_is_that_of_quadrature():
    """All data at one point, so that any pairing is optimal and noise and time are independent."""
    torch.manual_seed(0)
    datum = 0.8
    parameters = [torch.tensor(v).double().requires_grad_() for v in (0.5, 1.7)]
    points, weights = np.polynomial.hermite_e.hermegauss(30)
    noise, noise_weight = torch.as_tensor(points), torch.as_tensor(weights / weights.sum())
    nodes, node_weights = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(20))
    time, time_weight = (nodes[:, None] + 1) / 2, node_weights[:, None] / 2
    slope = parameters[1] * ((1 - time) * noise + time * datum - parameters[0])
    value = ((slope + datum - noise) ** 2 * time_weight * noise_weight).sum()
    want = torch.stack([value, *torch.autograd.grad(value, parameters)]).detach()
    loss_fn, data = EnergyMatching(make_energy()), torch.full((200, 1), datum).double()
    calls = torch.stack([gradients(loss_fn, data) for _ in range(200)])
    z = (calls.mean(0) - want) / (calls.std(0) / len(calls) ** 0.5)
    assert z.abs().max() < 4.5


def test_noise_is_paired_with_the_nearest_data():
    """Two far clusters: with the coupling noise goes to its own side, and the loss says so."""
    torch.manual_seed(0)
    x = torch.tensor([-5.0, 5.0]).repeat(100)[:, None]
    seen = []

    def energy(x):
        seen.append(x.detach())
        return 0.5 * x.square().sum(1)

    EnergyMatching(energy)(x)
    assert (seen[0] * x > 0).float().mean() > 0.97  # but for the odd half of the noise


@pytest.mark.parametrize(("ramp_start", "n_steps"), ((0.0, 8), (0.3, 8), (0.5, 14), (1.0, 14)))
def test_the_contrastive_gradient_is_that_of_the_chains_closed_form(ramp_start, n_steps):
    """On ½ p (x - m)² the chains stay Gaussian: mean and variance follow a recursion."""
    torch.manual_seed(0)
    mean, precision, h, temperature = 0.5, 1.7, 0.1, 3.0
    datum, weight = 0.8, 2.5
    energy = make_energy(mean, precision)
    loss_fn = EnergyMatching(
        energy,
        0,
        contrastive_weight=weight,
        temperature=temperature,
        ramp_start=ramp_start,
        n_steps=n_steps,
        step_size=h,
    )
    first, second = [], []
    for centre, variance, from_data in ((datum, 0.0, True), (0.0, 1.0, False)):
        for step in range(n_steps):
            time = step * h
            if from_data or time >= 1:
                now = temperature
            else:
                now = temperature * max(0.0, time - ramp_start) / max(1 - ramp_start, 1e-9)
            centre = centre - h * precision * (centre - mean)
            variance = (1 - h * precision) ** 2 * variance + 2 * h * now
        first.append(centre - mean)
        second.append(variance + (centre - mean) ** 2)
    gap = datum - mean
    want = weight * torch.tensor(
        [
            0.5 * precision * (gap**2 - np.mean(second)),
            -precision * (gap - np.mean(first)),
            0.5 * (gap**2 - np.mean(second)),
        ]
    )
    loss_fn.flow = lambda x: torch.zeros(()).double()  # the other term, tested above
    data = torch.full((200, 1), datum).double()
    calls = torch.stack([gradients(loss_fn, data) for _ in range(150)])
    z = (calls.mean(0) - want) / (calls.std(0) / len(calls) ** 0.5)
    assert z.abs().max() < 4.5
    assert loss_fn.negatives.shape == (200, 1)


def test_the_temperature_rises_from_the_ramps_start_to_one():
    loss_fn = EnergyMatching(make_energy(), temperature=0.4, ramp_start=0.6)
    have = [loss_fn.temperature_at(time) for time in (0.0, 0.6, 0.8, 1.0, 3.0)]
    assert have == pytest.approx([0.0, 0.0, 0.2, 0.4, 0.4])
    x = torch.randn(5, 1).double()
    torch.testing.assert_close(loss_fn.equilibrium(x), loss_fn.energy(x) / 0.4)


def test_the_warm_up_counts_training_calls_and_is_saved():
    loss_fn, x = EnergyMatching(make_energy(), 2, n_steps=1), torch.randn(8, 1).double()
    with torch.no_grad():
        assert not loss_fn(x).requires_grad
    for expected in (False, False, True):
        loss_fn(x)
        assert ("energy_gap" in loss_fn.metrics) == expected
        assert (loss_fn.negatives is not None) == expected
    restored = EnergyMatching(make_energy(), 2, n_steps=1)
    restored.load_state_dict(loss_fn.state_dict())
    restored(x)
    assert "energy_gap" in restored.metrics
    assert restored.n_calls == 4


def test_another_sampler_can_make_the_negatives():
    torch.manual_seed(0)
    energy, starts = make_energy(), []

    class Recorder:
        def __init__(self):
            self.sampler = ReferenceLangevin(energy.tempered(0.1), 0.001)

        def sample_chain(self, x_init, n_steps):
            starts.append(x_init)
            return self.sampler.sample_chain(x_init, n_steps)

    loss_fn = EnergyMatching(energy, 0, n_steps=3, sampler=Recorder())
    x = torch.randn(9, 1).double()
    loss_fn(x).backward()
    assert torch.equal(starts[0][:4], x[:4])
    assert not torch.isin(starts[0][4:], x).any()
    assert loss_fn.negatives.shape == x.shape


def test_without_pot_the_message_says_what_to_install(monkeypatch):
    found = builtins.__import__

    def without_pot(name, *args, **kwargs):
        if name == "ot":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pot)
    with pytest.raises(ConfigurationError, match="pip install"):
        EnergyMatching(make_energy())


def test_chains_that_blow_up_are_refused():
    loss_fn = EnergyMatching(make_energy(), 0, step_size=1e6)
    with pytest.raises(NumericalError, match="step_size"):
        loss_fn(torch.ones(8, 1).double())


def test_impossible_arguments_are_refused():
    energy = QuadraticEnergy(torch.zeros(2))
    for arguments in (
        {"warm_up": -1},
        {"contrastive_weight": -1.0},
        {"temperature": 0.0},
        {"ramp_start": 1.5},
        {"n_steps": 0},
        {"step_size": 0.0},
        {"sampler": 3},
    ):
        with pytest.raises(ConfigurationError):
            EnergyMatching(energy, **arguments)


class Stepper:
    """A sampler with a state: step n moves chains by n."""

    def __init__(self):
        self.n = 0

    def sample_chain(self, x_init, n_steps):
        self.n += 1
        return x_init + self.n

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_the_samplers_state_is_saved_and_restored():
    loss_fn, x = EnergyMatching(make_energy(), 0, sampler=Stepper()), torch.randn(8, 1).double()
    loss_fn(x)
    restored = EnergyMatching(make_energy(), 0, sampler=Stepper())
    restored.load_state_dict(loss_fn.state_dict())
    assert restored.sampler.n == 1
    other = EnergyMatching(make_energy(), 0, sampler=ReferenceLangevin(make_energy()))
    with pytest.raises(ConfigurationError, match=r"Stepper.*wanted.*ReferenceLangevin"):
        other.load_state_dict(loss_fn.state_dict())
    assert other.n_calls == 0
    assert EnergyMatching(make_energy()).state_dict()["_extra_state"] == {}


def test_inference_tensors_of_a_sampler_can_be_trained_on():
    class Inference(Stepper):
        sample_chain = torch.inference_mode()(Stepper.sample_chain)

    network = torch.nn.Linear(1, 1).double()
    energy = as_energy(lambda x: network(x).square().squeeze(1), network)
    EnergyMatching(energy, 0, sampler=Inference())(torch.randn(8, 1).double()).backward()
    assert torch.isfinite(network.weight.grad).all()


def test_the_class_of_a_sampler_is_refused():
    with pytest.raises(ConfigurationError, match="the class Stepper"):
        EnergyMatching(make_energy(), sampler=Stepper)


def test_dropout_is_off_while_chains_run_and_on_in_the_loss():
    network, training = torch.nn.Linear(1, 1).double(), []

    def energy(x):
        training.append(network.training)
        return network(x).square().squeeze(1)

    EnergyMatching(as_energy(energy, network), 0, n_steps=3)(torch.randn(8, 1).double())
    assert training == [True, False, False, False, True, True]  # flow, chains, data and negatives
