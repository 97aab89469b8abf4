"""Parallel tempering against enumeration of a small discrete model and closed forms."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.distributions import constraints

from ebm_core import ConfigurationError, EnergyFunction, NumericalError, ShapeError, as_energy, spin
from ebm_core.testing import LossConformance, QuadraticEnergy, ReferenceLangevin
from ebm_losses import (
    ParallelTemperingContrastiveDivergence,
    geometric_ladder,
    parallel_tempering,
)
from ebm_losses.replica_exchange import equalized_ladder, swap_probabilities, swapped_order

BETAS = (1.0, 0.6, 0.3)
SPINS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)), dtype=torch.float64)


class Ising(EnergyFunction):
    """E(s) = -Σ_ij J_ij s_i s_j / 2 - Σ_i h_i s_i on three spins, with two modes."""

    support = spin
    event_shape = torch.Size([3])

    def __init__(self):
        super().__init__()
        self.coupling = nn.Parameter(torch.tensor(1.2, dtype=torch.float64))
        self.field = nn.Parameter(torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64))

    def forward(self, x):
        x = x.to(self.field)
        pairs = x[:, 0] * x[:, 1] + x[:, 1] * x[:, 2]
        return -self.coupling * pairs - x @ self.field


class Enumerated:
    """Independent draws from exp(-beta E) on the three spins, whatever the start."""

    def __init__(self, energy):
        self.energy = energy
        self.betas = []

    def sample_chain(self, x_init, n_steps, *, beta=None):
        self.betas.append(beta)
        with torch.no_grad():
            logits = -beta.double()[:, None] * self.energy(SPINS)
        return SPINS[torch.multinomial(logits.softmax(1), 1)[:, 0]].to(x_init.dtype)


class Still:
    """No transition at all, so that swaps alone move chains."""

    def sample_chain(self, x_init, n_steps, *, beta=None):
        return x_init.clone()


class Gibbs:
    """One sweep of single spins under exp(-beta E)."""

    def __init__(self, energy):
        self.energy = energy

    def sample_chain(self, x_init, n_steps, *, beta=None):
        x = x_init.clone()
        for _ in range(n_steps):
            for site in range(x.shape[1]):
                up, down = x.clone(), x.clone()
                up[:, site], down[:, site] = 1, -1
                with torch.no_grad():
                    odds = beta * (self.energy(down) - self.energy(up))
                x = torch.where((torch.rand_like(odds) < odds.sigmoid())[:, None], up, down)
        return x


class TestConformance(LossConformance):
    @pytest.fixture
    def make_loss(self):
        return lambda energy: ParallelTemperingContrastiveDivergence(
            energy, ReferenceLangevin(energy, 0.01), buffer_size=20, betas=BETAS
        )


# Swaps


def joint_law(energies, betas):
    """Probabilities of all combinations of states, one a replica, and their energies."""
    states = torch.tensor(list(itertools.product(range(len(energies)), repeat=len(betas))))
    joint = energies[states]
    return states, joint, (-joint @ betas).softmax(0)


def law_after_swaps(energies, betas, parity, probabilities):
    """The joint law after one round, all its outcomes enumerated through `swapped_order`."""
    states, joint, law = joint_law(energies, betas)
    accept = probabilities(joint, betas)
    places = {tuple(state.tolist()): i for i, state in enumerate(states)}
    after = torch.zeros_like(law)
    tried = [(i + parity) % 2 == 0 for i in range(len(betas) - 1)]
    for outcome in itertools.product(*[(True, False) if t else (False,) for t in tried]):
        swaps = torch.tensor(outcome)
        weight = torch.where(swaps, accept, 1 - accept)[:, torch.tensor(tried)].prod(1)
        uniforms = torch.where(swaps, 0.0, 1.0).expand(len(states), -1)
        order = swapped_order(accept, torch.full((len(states),), parity), uniforms)
        rows = [places[tuple(s)] for s in states.gather(1, order).tolist()]
        after.index_add_(0, torch.tensor(rows), law * weight)
    return law, after


@pytest.mark.parametrize("parity", (0, 1))
def test_a_round_of_swaps_leaves_the_joint_law_as_it_is(parity):
    energies = torch.tensor([0.0, 0.7, -1.1, 2.0, 0.3], dtype=torch.float64)
    betas = torch.tensor([1.0, 0.6, 0.3, 0.15], dtype=torch.float64)
    law, after = law_after_swaps(energies, betas, parity, swap_probabilities)
    torch.testing.assert_close(after, law, rtol=1e-12, atol=0)

    def reversed_sign(energies, betas):
        return swap_probabilities(-energies, betas)

    law, after = law_after_swaps(energies, betas, parity, reversed_sign)
    assert (after - law).abs().max() > 0.1 * law.max()


def test_swaps_exchange_disjoint_neighbours():
    torch.manual_seed(0)
    for n_replicas in (2, 3, 4, 7):
        accept = torch.rand(200, n_replicas - 1)
        parity = torch.arange(200) % 2
        order = swapped_order(accept, parity, torch.rand_like(accept))
        assert torch.equal(order.gather(1, order), torch.arange(n_replicas).expand(200, -1))
        assert (order - torch.arange(n_replicas)).abs().max() == 1
        moved = order[:, :-1] > torch.arange(n_replicas - 1)
        first = (torch.arange(n_replicas - 1) + parity[:, None]) % 2
        assert not (moved & (first == 1)).any()


def exactly_distributed(loss_fn, energy, n):
    """Fill the buffer with exact draws from the joint law."""
    loss_fn.buffer.prepare((len(BETAS), 3), device=torch.device("cpu"), dtype=torch.float64)
    beta = loss_fn.betas.repeat(n)
    draws = Enumerated(energy).sample_chain(torch.zeros(1, dtype=torch.float64), 1, beta=beta)
    loss_fn.buffer.states = draws.unflatten(0, (n, len(BETAS)))


def z_scores(loss_fn, energy):
    """How far frequencies of replicas' states are from exp(-beta E), in standard errors."""
    states = loss_fn.buffer.states
    codes = ((states > 0) * torch.tensor([4, 2, 1])).sum(-1)
    scores = []
    for replica, beta in enumerate(BETAS):
        law = (-beta * energy(SPINS)).softmax(0).detach()
        frequency = torch.bincount(codes[:, replica], minlength=8) / len(states)
        scores.append((frequency - law) / (law * (1 - law) / len(states)).sqrt())
    return torch.stack(scores).abs().max()


@pytest.mark.parametrize("right", (True, False))
def test_every_replica_keeps_its_law_under_swaps_alone(right, monkeypatch):
    if not right:  # the test is sharp enough to see swaps that are always accepted
        always = lambda energies, betas: torch.ones_like(energies[:, 1:])  # noqa: E731
        monkeypatch.setattr(parallel_tempering, "swap_probabilities", always)
    torch.manual_seed(0)
    energy, n = Ising(), 40_000
    loss_fn = ParallelTemperingContrastiveDivergence(energy, Still(), buffer_size=n, betas=BETAS)
    exactly_distributed(loss_fn, energy, n)
    before = loss_fn.buffer.states.clone()
    for _ in range(3):
        loss_fn(torch.ones(n, 3, dtype=torch.float64))
    assert (loss_fn.buffer.states != before).any(-1).double().mean() > 0.1
    assert torch.equal(loss_fn.buffer.states.sort(1)[0], before.sort(1)[0])
    assert (z_scores(loss_fn, energy) < 4.5) == right


def test_swaps_take_turns_slot_by_slot():
    energy = as_energy(lambda x: x[:, 0], event_shape=1)
    loss_fn = ParallelTemperingContrastiveDivergence(
        energy, Still(), buffer_size=40, betas=(1.0, 0.9, 0.5, 0.2), n_negatives=10
    )
    x = torch.zeros(5, 1)
    loss_fn.buffer.prepare((4, 1), device=x.device, dtype=x.dtype)
    # Energies fall along the ladder by so much that every swap that is tried is accepted.
    loss_fn.buffer.states = -1000.0 * torch.arange(4.0)[None, :, None].expand(40, 4, 1).clone()
    torch.manual_seed(0)
    for _ in range(6):
        loss_fn(x)
    order = (-loss_fn.buffer.states[:, :, 0] / 1000).long()
    # After 0, 1, 2, 3 visits, whenever they were; from the fourth on all is in reverse.
    known = [[0, 1, 2, 3], [1, 0, 3, 2], [1, 3, 0, 2], [3, 1, 2, 0], [3, 2, 1, 0]]
    seen = {tuple(row) for row in order.tolist()}
    assert seen <= {tuple(row) for row in known}
    assert len(seen) >= 3


# The gradient


@pytest.mark.parametrize("right", (True, False))
def test_gradient_is_that_of_the_likelihood_by_enumeration(right, monkeypatch):
    if not right:
        always = lambda energies, betas: torch.ones_like(energies[:, 1:])  # noqa: E731
        monkeypatch.setattr(parallel_tempering, "swap_probabilities", always)
    torch.manual_seed(0)
    energy, n = Ising(), 50_000
    x = SPINS[torch.tensor([0, 3, 7, 7])].repeat(n // 4, 1)
    loss_fn = ParallelTemperingContrastiveDivergence(
        energy, Enumerated(energy), k_steps=1, buffer_size=n, betas=BETAS
    )
    loss_fn(x).backward()
    exact = Ising()
    (exact(x).mean() + (-exact(SPINS)).logsumexp(0)).backward()
    z = (energy.coupling.grad - exact.coupling.grad).abs() / (2.0 / n**0.5)
    z = torch.maximum(z, ((energy.field.grad - exact.field.grad).abs() / n**-0.5).max())
    assert (z < 4.5) == right


def test_chains_between_separated_modes_mix_by_swaps_alone():
    """Two modes 24 nats apart in between: Gibbs at beta = 1 never crosses, the ladder does."""
    energy = Ising()
    with torch.no_grad():
        energy.coupling.fill_(6.0)
        energy.field.fill_(0.0)
    torch.manual_seed(0)
    loss_fn = ParallelTemperingContrastiveDivergence(
        energy,
        Gibbs(energy),
        k_steps=1,
        buffer_size=500,
        betas=geometric_ladder(8, 0.05),
        initializer=torch.ones,
    )
    x = torch.ones(500, 3, dtype=torch.int8)
    alone = torch.ones(500, 3, dtype=torch.int8)
    share = []
    for step in range(120):
        loss_fn(x)
        alone = Gibbs(energy).sample_chain(alone, 1, beta=torch.ones(500))
        if step >= 60:
            share.append((loss_fn.negatives.sum(1) < 0).double().mean())
    assert loss_fn.buffer.states.dtype == torch.int8
    assert abs(torch.stack(share).mean() - 0.5) < 0.05
    assert (alone.sum(1) > 0).all()


@pytest.mark.parametrize("event_shape", ((16,), (1, 4, 4)))
def test_value_and_gradient_do_not_depend_on_the_shape_of_the_event(event_shape):
    torch.manual_seed(0)
    mean, precision = torch.randn(16).double(), torch.rand(16).double() + 0.5
    x = torch.randn(8, 16).double()
    values = []
    for shape in (event_shape, (16,)):
        energy = QuadraticEnergy(mean.reshape(shape), precision.reshape(shape))
        torch.manual_seed(1)
        loss_fn = ParallelTemperingContrastiveDivergence(
            energy, ReferenceLangevin(energy, 0.1), betas=BETAS, buffer_size=8
        )
        values.append(loss_fn(x.reshape(8, *shape)))
        values[-1].backward()
        values.append(energy.precision.grad.flatten())
        assert loss_fn.buffer.states.shape == (8, 3, *shape)
    torch.testing.assert_close(values[:2], values[2:])


# The call of the sampler, rates, ladder


def test_all_replicas_are_advanced_in_one_call_each_at_its_own_beta():
    energy = Ising()
    sampler = Enumerated(energy)
    loss_fn = ParallelTemperingContrastiveDivergence(
        energy, sampler, buffer_size=20, betas=BETAS, n_negatives=5
    )
    for _ in range(2):
        loss_fn(torch.ones(7, 3))
    assert loss_fn.negatives.shape == (5, 3)
    want = torch.tensor(BETAS * 5, dtype=torch.float64)
    assert len(sampler.betas) == 2
    assert torch.equal(sampler.betas[1], want)


def test_swap_rates_are_the_expected_ones():
    torch.manual_seed(0)
    energy, n = Ising(), 2000
    loss_fn = ParallelTemperingContrastiveDivergence(
        energy, Enumerated(energy), buffer_size=n, betas=BETAS
    )
    assert loss_fn.swap_rates.isnan().all()
    for _ in range(20):
        loss_fn(torch.ones(n, 3))
    levels, betas = energy(SPINS).detach(), torch.tensor(BETAS, dtype=torch.float64)
    for i in range(2):
        pair = betas[i : i + 2]
        _, joint, law = joint_law(levels, pair)
        want = (law * swap_probabilities(joint, pair)[:, 0]).sum()
        assert abs(loss_fn.swap_rates[i] - want) < 4.5 * 0.5 / (20 * n) ** 0.5
        assert loss_fn.metrics[f"swap_rate_{i}"] == loss_fn.swap_rates[i]
    loss_fn(torch.ones(n, 3), torch.ones(n, 3))
    assert "swap_rate_0" not in loss_fn.metrics


class ExactGaussian:
    """Draws from N(0, I / beta)."""

    def sample_chain(self, x_init, n_steps, *, beta=None):
        return torch.randn_like(x_init) / beta[:, None].sqrt()


def test_the_learned_ladder_of_a_gaussian_is_the_geometric_one():
    """There the barrier is a function of the ratio of two betas alone."""
    torch.manual_seed(0)
    energy = QuadraticEnergy(torch.zeros(10, dtype=torch.float64))
    start = torch.linspace(1.0, 0.1, 6, dtype=torch.float64)
    loss_fn = ParallelTemperingContrastiveDivergence(
        energy, ExactGaussian(), buffer_size=500, betas=start, adapt_betas=5
    )
    x = torch.zeros(500, 10, dtype=torch.float64)
    for _ in range(100):
        loss_fn(x)
    want = geometric_ladder(6, 0.1)
    assert (start / want - 1).abs().max() > 0.8
    torch.testing.assert_close(loss_fn.betas, want, rtol=0.04, atol=0)
    assert loss_fn.betas[0] == 1.0
    fixed = ParallelTemperingContrastiveDivergence(energy, ExactGaussian(), betas=start)
    for _ in range(5):
        fixed(x)
    assert torch.equal(fixed.betas, start)


@pytest.mark.parametrize("rates", ((1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (0.3,) * 3))
def test_ladders_stay_ladders(rates):
    ladder = geometric_ladder(4, 0.1)
    new = equalized_ladder(ladder, torch.tensor(rates))
    assert (new[1:] < new[:-1]).all()
    assert torch.equal(new[[0, -1]], ladder[[0, -1]])
    if len(set(rates)) == 1:
        torch.testing.assert_close(new, ladder)
    else:  # where no swap succeeds, rungs gather
        gap = rates.index(0.0)
        assert ((new <= ladder[gap]) & (new >= ladder[gap + 1])).sum() >= 3


def test_a_ladder_moves_if_more_calls_than_asked_for_were_restored():
    def made(adapt_betas):
        torch.manual_seed(0)
        energy = QuadraticEnergy(torch.zeros(2))
        return ParallelTemperingContrastiveDivergence(
            energy, ReferenceLangevin(energy), betas=BETAS, adapt_betas=adapt_betas
        )

    long, short = made(0), made(2)
    for _ in range(3):
        long(torch.zeros(4, 2))
    assert torch.equal(long.betas, short.betas)
    short.load_state_dict(long.state_dict())
    short(torch.zeros(4, 2))
    assert not torch.equal(long.betas, short.betas)
    assert short.get_extra_state()["n_averaged"] == 0


# Refusing


def test_a_call_that_is_refused_or_has_negatives_changes_nothing():
    penalty = [0.0]
    energy = QuadraticEnergy(torch.zeros(2))
    loss_fn = ParallelTemperingContrastiveDivergence(
        energy,
        ReferenceLangevin(energy),
        buffer_size=8,
        betas=BETAS,
        adapt_betas=2,
        regularizers=[lambda batch: penalty[0]],
    )
    x = torch.zeros(4, 2)
    loss_fn(x)
    before = copy.deepcopy(loss_fn.state_dict())
    loss_fn(x, x)
    penalty[0] = float("inf")
    with pytest.raises(NumericalError):
        loss_fn(x)
    after = loss_fn.state_dict()
    for name in ("buffer.states", "parity", "swap_rates", "betas"):
        assert torch.equal(after[name], before[name])
    assert after["_extra_state"]["n_averaged"] == 1


def test_a_sampler_without_beta_is_refused():
    class Plain:
        def sample_chain(self, x_init, n_steps):
            return x_init

    class Anything:
        def sample_chain(self, x_init, *arguments, **options):
            return x_init

    with pytest.raises(ConfigurationError, match=r"Plain takes no beta.*exp\(-beta E\)"):
        ParallelTemperingContrastiveDivergence(lambda x: x.sum(1), Plain())
    ParallelTemperingContrastiveDivergence(lambda x: x.sum(1), Anything())


@pytest.mark.parametrize(
    ("options", "error"),
    (
        ({"betas": [1.0]}, ConfigurationError),
        ({"betas": [0.9, 0.1]}, ConfigurationError),
        ({"betas": [0.1, 1.0]}, ConfigurationError),
        ({"betas": [1.0, 0.5, 0.5]}, ConfigurationError),
        ({"betas": [1.0, 0.5, 0.0]}, ConfigurationError),
        ({"betas": [1.0, float("nan")]}, ConfigurationError),
        ({"betas": [[1.0, 0.5]]}, ShapeError),
        ({"betas": "hot"}, ConfigurationError),
        ({"adapt_betas": -1}, ConfigurationError),
        ({"adapt_betas": 0.5}, ConfigurationError),
        ({"n_negatives": 300}, ConfigurationError),
        ({"k_steps": 0}, ConfigurationError),
    ),
)
def test_impossible_options_are_refused(options, error):
    with pytest.raises(error):
        ParallelTemperingContrastiveDivergence(lambda x: x.sum(1), Still(), **options)


def test_energies_without_digits_for_swaps_are_refused():
    loss_fn = ParallelTemperingContrastiveDivergence(lambda x: x.sum(1) + 1e6, Still())
    with pytest.raises(NumericalError, match="float64"):
        loss_fn(torch.zeros(4, 2))
    loss_fn = ParallelTemperingContrastiveDivergence(lambda x: x.sum(1) + 1e6, Still())
    loss_fn(torch.zeros(4, 2, dtype=torch.float64))
    loss_fn = ParallelTemperingContrastiveDivergence(lambda x: x.sum(1) * torch.nan, Still())
    with pytest.raises(NumericalError, match="nan"):
        loss_fn(torch.zeros(4, 2))


def test_default_ladder_and_repr():
    energy = as_energy(lambda x: x.float().sum(1), support=constraints.boolean)
    loss_fn = ParallelTemperingContrastiveDivergence(energy, Still(), buffer_size=4)
    torch.testing.assert_close(loss_fn.betas[[0, -1]], torch.tensor([1.0, 0.1]))
    assert loss_fn.n_replicas == 8
    ratios = loss_fn.betas[1:] / loss_fn.betas[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(7))
    loss_fn(torch.ones(2, 5, dtype=torch.int8))
    assert set(loss_fn.buffer.states.unique().tolist()) == {0, 1}
    assert "betas=(1, 0.72," in repr(loss_fn)


def test_calls_in_inference_mode_leave_buffers_that_can_be_trained_on_and_loaded():
    energy = QuadraticEnergy(torch.zeros(2))
    loss_fn = ParallelTemperingContrastiveDivergence(
        energy, ReferenceLangevin(energy), buffer_size=8, betas=BETAS, adapt_betas=2
    )
    saved = copy.deepcopy(loss_fn.state_dict())
    with torch.inference_mode():
        for _ in range(3):
            loss_fn(torch.randn(8, 2))
    assert not any(buffer.is_inference() for buffer in loss_fn.buffers())
    loss_fn.load_state_dict(saved)
    loss_fn(torch.randn(8, 2)).backward()


def test_dropout_is_off_where_swaps_are_decided_and_on_in_the_loss():
    network, training = nn.Linear(2, 1), []

    def energy(x):
        training.append(network.training)
        return network(x).squeeze(1)

    loss_fn = ParallelTemperingContrastiveDivergence(as_energy(energy, network), Still())
    loss_fn(torch.zeros(4, 2))
    assert training == [False, True]  # swaps, then data and negatives
