"""Block Gibbs against enumeration: machines at any temperature, spins and labels by blocks."""

import itertools
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import constraints
from torch.nn import functional as F

from ebm_core import ConfigurationError, NumericalError, ShapeError, SupportError, spin
from ebm_samplers import BlockGibbs, LangevinDynamics

N_CHAINS = 20_000
N_STEPS = 25


class Machine(nn.Module):
    """A restricted Boltzmann machine of someone else: a plain module with three tensors."""

    support = constraints.boolean

    def __init__(self, n_visible=4, n_hidden=3, scale=1.5, dtype=torch.float32):
        super().__init__()
        self.event_shape = torch.Size([n_visible])
        generator = torch.Generator().manual_seed(0)
        weight, visible, hidden = (
            scale * torch.randn(*shape, generator=generator)
            for shape in ((n_hidden, n_visible), (n_visible,), (n_hidden,))
        )
        self.weight = nn.Parameter(weight.to(dtype))
        self.visible_bias = nn.Parameter(visible.to(dtype))
        self.hidden_bias = nn.Parameter(hidden.to(dtype))

    def forward(self, v):
        v = v.to(self.weight.dtype)
        inputs = v @ self.weight.T + self.hidden_bias
        return -v @ self.visible_bias - F.softplus(inputs).sum(1)

    def tempered_free_energy(self, v, beta):
        """F_beta: that of the joint energy times beta, which is not beta F."""
        inputs = v @ self.weight.T + self.hidden_bias
        return -beta * v @ self.visible_bias - F.softplus(beta * inputs).sum(1)


class Ring(nn.Module):
    """Five spins in a chain with couplings and fields, in two colours."""

    support = spin
    event_shape = torch.Size([5])
    n_blocks = 2

    def __init__(self):
        super().__init__()
        self.register_buffer("couplings", torch.tensor([0.8, -0.5, 0.3, 1.0]))
        self.register_buffer("fields", torch.tensor([0.2, -0.4, 0.0, 0.1, -0.3]))

    def forward(self, x):
        x = x.to(self.fields.dtype)
        return -(x[:, 1:] * x[:, :-1]) @ self.couplings - x @ self.fields

    def sample_block(self, x, block, uniforms, *, beta=None):
        values = F.pad(x.to(self.fields.dtype), (1, 1))
        bonds = F.pad(self.couplings, (1, 1))
        local = self.fields + bonds[1:] * values[:, 2:] + bonds[:-1] * values[:, :-2]
        if beta is not None:
            local = local * (beta[:, None] if isinstance(beta, torch.Tensor) else beta)
        drawn = 2 * (uniforms < (2 * local).sigmoid()) - 1
        sites = torch.arange(5) % 2 == block
        return torch.where(sites, drawn.to(x.dtype), x)


class Labels(nn.Module):
    """Two independent labels out of three, each a block."""

    support = constraints.integer_interval(0, 2)
    event_shape = torch.Size([2])
    n_blocks = 2
    levels = torch.tensor([0.0, 1.0, -0.5])

    def forward(self, x):
        return self.levels[x.long()].sum(1)

    def sample_block(self, x, block, uniforms, *, beta=None):
        law = (-(1.0 if beta is None else beta) * self.levels).softmax(0)
        drawn = torch.searchsorted(law.cumsum(0)[:-1], uniforms[:, block].contiguous())
        x = x.clone()
        x[:, block] = drawn.to(x.dtype)
        return x


def states(values, n):
    return torch.tensor(list(itertools.product(values, repeat=n)))


def chi_square(final, every, log_law):
    """z-score of Pearson's statistic of final states against exp(log_law), normalised."""
    law = log_law.double().softmax(0).detach()
    number = (final[:, None] == every[None].to(final.dtype)).all(2).double()
    assert bool((number.sum(1) == 1).all())
    expected = len(final) * law
    statistic = ((number.sum(0) - expected).square() / expected).sum().item()
    degrees = len(law) - 1
    # Wilson & Hilferty: the cube root is close to normal
    spread = 2 / (9 * degrees)
    return ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


@pytest.mark.parametrize("beta", (None, 1.0, 0.2, 0.6, 1.7))
def test_a_machine_is_drawn_from_its_tempered_free_energy(beta):
    machine, every = Machine(), states((0.0, 1.0), 4)
    result = BlockGibbs(machine).sample(n_samples=N_CHAINS, n_steps=N_STEPS, seed=1, beta=beta)
    factor = 1.0 if beta is None else beta
    assert abs(chi_square(result.final, every, -factor * machine(every))) < 4
    if factor != 1:  # the test tells the law of the tempered joint energy from it
        wrong = -machine.tempered_free_energy(every, factor)
        assert chi_square(result.final, every, wrong) > 10
        assert 0.3 < result.stats["acceptance_rate"].mean() < 1
    elif beta == 1:
        rate = result.stats["acceptance_rate"]
        torch.testing.assert_close(rate, torch.ones(N_CHAINS, 1), atol=1e-5, rtol=0)
    else:
        assert set(result.stats) == {"step_size"}


def test_each_chain_has_its_own_temperature():
    machine, every = Machine(), states((0.0, 1.0), 4)
    betas = torch.tensor([0.1, 0.5, 1.0, 2.0])
    x = torch.zeros(4 * N_CHAINS // 2, 4, dtype=torch.int8)
    torch.manual_seed(0)
    final = BlockGibbs(machine).sample_chain(x, N_STEPS, beta=betas.repeat(N_CHAINS // 2))
    for i, beta in enumerate(betas):
        assert abs(chi_square(final[i::4], every, -beta * machine(every))) < 4
        assert chi_square(final[i::4], every, -(1.1 * beta + 0.1) * machine(every)) > 4


@pytest.mark.parametrize("beta", (None, 0.5))
@pytest.mark.parametrize(
    ("energy", "every"),
    ((Ring(), states((-1, 1), 5)), (Labels(), states((0, 1, 2), 2))),
    ids=("spins", "labels"),
)
def test_blocks_are_drawn_from_the_energys_law(energy, every, beta):
    result = BlockGibbs(energy).sample(n_samples=N_CHAINS, n_steps=N_STEPS, seed=2, beta=beta)
    factor = 1.0 if beta is None else beta
    assert abs(chi_square(result.final, every, -factor * energy(every))) < 4
    assert chi_square(result.final, every, -(factor + 0.15) * energy(every)) > 4
    torch.testing.assert_close(result.potential[:, 0], energy(result.final))


def test_starts_are_uniform_on_the_support():
    for energy, every, dtype in (
        (Machine(), states((0, 1), 4), torch.int8),
        (Ring(), states((-1, 1), 5), torch.int8),
        (Labels(), states((0, 1, 2), 2), torch.int64),
    ):

        class Still(BlockGibbs):
            def transition(self, state, context):
                return state, {}

        start = Still(energy).sample(n_samples=N_CHAINS, n_steps=1, seed=0).final
        assert start.dtype == dtype
        assert abs(chi_square(start, every, torch.zeros(len(every)))) < 4


@pytest.mark.parametrize("energy", (Machine(), Ring(), Machine(30, 20)))
@pytest.mark.parametrize("beta", (None, 0.7))
def test_a_chain_is_the_same_among_others_and_in_pieces(energy, beta):
    sampler = BlockGibbs(energy)
    options = {"seed": 5, "keep": "trajectory", "beta": beta}
    whole = sampler.sample(n_samples=7, n_steps=70, **options)
    x = sampler.sample(n_samples=7, n_steps=1, seed=3).final
    run = sampler.sample(x, n_steps=70, **options)
    few = sampler.sample(x[2:4], n_steps=70, first_chain=2, **options)
    assert torch.equal(few.trajectory, run.trajectory[2:4])
    head = sampler.sample(n_samples=7, n_steps=33, **options)
    tail = sampler.sample(resume=head.resume, n_steps=37, keep="trajectory")
    assert torch.equal(torch.cat([head.trajectory, tail.trajectory], 1), whole.trajectory)
    assert not torch.equal(whole.trajectory[:, 0], whole.trajectory[:, 1])


def test_calls_go_on_with_the_stream_and_a_saved_state_restores_it():
    energy, x = Machine(8, 5), torch.zeros(6, 8, dtype=torch.int8)
    torch.manual_seed(3)
    one, two = BlockGibbs(energy), BlockGibbs(energy)
    whole = one.sample_chain(x, 9)
    two.load_state_dict({**one.state_dict(), "counter": 0})
    assert torch.equal(two.sample_chain(two.sample_chain(x, 4), 5), whole)
    twin = pickle.loads(pickle.dumps(one))
    assert torch.equal(twin.sample_chain(x, 3), one.sample_chain(x, 3))
    assert not torch.equal(one.sample_chain(x, 3), one.sample_chain(x, 3))
    assert one.acceptance_rate is None
    one.sample_chain(x, 3, beta=0.5)
    assert 0 < one.acceptance_rate < 1


@pytest.mark.parametrize("energy", (Machine(), Machine(dtype=torch.float64)))
def test_states_keep_their_dtype_and_are_the_same_in_all(energy):
    finals = []
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int64, torch.float32, torch.float64):
        x = torch.zeros(50, 4).to(dtype)
        result = BlockGibbs(energy).sample(x, n_steps=10, seed=0, keep="moments")
        assert result.final.dtype == dtype
        assert result.potential.dtype == energy.weight.dtype
        assert result.moments.mean.dtype.is_floating_point
        assert not result.final.requires_grad
        finals.append(result.final.double())
    assert all(torch.equal(finals[0], final) for final in finals)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("beta", (None, 0.7))
def test_states_of_half_precision_are_drawn_as_others_are(dtype, beta):
    machine, x = Machine(scale=4.0), torch.zeros(N_CHAINS, 4)
    whole, half = (
        BlockGibbs(machine).sample(x.to(kind), n_steps=3, seed=0, beta=beta).final
        for kind in (torch.float32, dtype)
    )
    assert torch.equal(whole, half.float())


def test_an_image_of_units_in_blocks():
    """Event shapes are the energy's own affair where it draws its blocks."""

    class Sheet(Ring):
        event_shape = torch.Size([1, 5])

        def forward(self, x):
            return super().forward(x[:, 0])

        def sample_block(self, x, block, uniforms, *, beta=None):
            return super().sample_block(x[:, 0], block, uniforms[:, 0], beta=beta)[:, None]

    flat = BlockGibbs(Ring()).sample(n_samples=9, n_steps=5, seed=0)
    sheet = BlockGibbs(Sheet()).sample(n_samples=9, n_steps=5, seed=0)
    assert torch.equal(sheet.final[:, 0], flat.final)


def test_parameters_that_learn_are_followed():
    machine = Machine()
    sampler = BlockGibbs(machine)
    x = torch.zeros(100, 4)
    sampler.sample_chain(x, 1)
    with torch.no_grad():
        machine.visible_bias.fill_(50.0)
    assert bool((sampler.sample_chain(x, 1) == 1).all())
    assert all(parameter.grad is None for parameter in machine.parameters())


def test_the_engine_and_why():
    explanation = BlockGibbs(Machine()).explain()
    assert explanation.engine == "torch"
    assert "BlockGibbs has no kernel" in str(explanation)
    with pytest.raises(ConfigurationError, match="no kernel"):
        BlockGibbs(Machine(), engine="fused").sample_chain(torch.zeros(1, 4), 1)


def test_wrong_energies_are_refused():
    with pytest.raises(SupportError, match="continuous support"):
        BlockGibbs(lambda x: x.sum(1))
    with pytest.raises(SupportError, match="discrete support"):
        LangevinDynamics(Machine())

    class Alone(nn.Module):
        support = spin

        def forward(self, x):
            return x.sum(1)

    with pytest.raises(ConfigurationError, match="BipartiteBinary"):
        BlockGibbs(Alone())

    class Spins(Machine):
        support = spin

    with pytest.raises(SupportError, match="binary units"):
        BlockGibbs(Spins())

    class Doubled(Machine):
        def forward(self, v):
            return 2 * super().forward(v)

    with pytest.raises(ConfigurationError, match="free energy"):
        BlockGibbs(Doubled()).sample_chain(torch.ones(5, 4), 1)

    class Short(Ring):
        def sample_block(self, x, block, uniforms, *, beta=None):
            return x[:, :2]

    with pytest.raises(ShapeError, match="sample_block gave"):
        BlockGibbs(Short()).sample_chain(torch.ones(5, 5), 1)


def test_wrong_states_are_refused():
    sampler = BlockGibbs(Machine())
    with pytest.raises(SupportError, match="4 elements of x_init"):
        sampler.sample_chain(torch.full((1, 4), 0.5), 1)
    with pytest.raises(ShapeError, match=r"x\[None\]"):
        sampler.sample_chain(torch.zeros(4), 1)
    with pytest.raises(ConfigurationError, match="beta"):
        sampler.sample_chain(torch.zeros(2, 4), 1, beta=-1.0)
    with pytest.raises(SupportError, match="outside the support"):
        BlockGibbs(Ring()).sample(torch.zeros(2, 5), n_steps=1)
    machine = Machine()
    with torch.no_grad():
        machine.weight[0, 0] = math.nan
    with pytest.raises(NumericalError, match="not finite"):
        BlockGibbs(machine).sample_chain(torch.zeros(2, 4), 1)
