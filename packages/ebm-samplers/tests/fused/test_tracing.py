"""What an energy does when it is first called, and what a trace must not leave behind or miss."""

import functools

import numpy as np
import pytest
import torch
from interpreter import interpreted
from torch import nn

from ebm_core import as_energy
from ebm_samplers import MALA, LangevinDynamics, fuse
from ebm_samplers.fused.lowering import lower
from ebm_samplers.fused.rules import RULES
from ebm_samplers.fused.trace import trace

Z = torch.zeros(20, 3)


def states(seed=0, n=20):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def chains(energy, x, engine, kind=LangevinDynamics):
    return kind(energy, 0.05, engine=engine).sample(x, n_steps=5, seed=0).final


def check(energy, x, kind=LangevinDynamics):
    """Chains of the kernel are those of torch, and have a kernel."""
    assert LangevinDynamics(energy, 0.05).explain(x).engine == "fused"
    found, wanted = (chains(energy, x, engine, kind) for engine in ("auto", "torch"))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


class Grid(nn.Module):
    """A constant made at the first call."""

    grid = None

    def forward(self, x):
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[1])
        return (x - self.grid).square().sum(1)


class Buffer(nn.Module):
    def forward(self, x):
        if not hasattr(self, "grid"):
            self.register_buffer("grid", torch.linspace(0, 1, x.shape[1]))
        return (x - self.grid).square().sum(1)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(4)

    def forward(self, x):
        return self.layer(x).square().sum(1)


class FirstBatch(nn.Module):
    """What the first batch says, as of normalising flows."""

    location = None

    def forward(self, x):
        if self.location is None:
            self.location = x.detach().mean(0)
        return (x - self.location).square().sum(1)


class Sizes(nn.Module):
    """A constant for each number of states."""

    def __init__(self):
        super().__init__()
        self.cache = {}

    def forward(self, x):
        if len(x) not in self.cache:
            self.cache[len(x)] = torch.ones(len(x))
        return x.square().sum(1) * self.cache[len(x)]


def cached():
    @functools.lru_cache
    def weights(n):
        return torch.arange(1.0, n + 1)

    return lambda x: (x * weights(x.shape[1])).square().sum(1)


@pytest.mark.parametrize("make", (Grid, Buffer, Lazy, FirstBatch, Sizes, cached))
def test_what_forward_makes_at_its_first_call_is_made_of_tensors(make):
    torch.manual_seed(0)
    energy, x = make(), states()
    check(energy, x)
    chains(energy, x[:1], "auto")
    assert type(energy(x)) is torch.Tensor
    assert energy(x).tolist() == pytest.approx(energy(x.clone()).tolist())
    torch.manual_seed(0)
    other = make()  # the torch engine sees the same first batch
    wanted = chains(other, x, "torch")
    torch.testing.assert_close(chains(energy, x, "auto"), wanted, rtol=1e-4, atol=1e-5)


def test_temporaries_of_the_backward_pass_are_not_taken_for_others():
    """Memory of a tensor that is gone is used again, and with it the id."""
    p = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(6, 3, dtype=torch.float64)
    y[3:] = 8.0
    for _ in range(30):

        def energy(x):
            r = torch.relu(x - 5)
            return x.square().sum(1) / 2 + torch.lerp(r, p, r.sigmoid()).sum(1)

        wrapped = as_energy(energy)
        program, parameters = lower(trace(wrapped, y[:1], RULES))
        found = interpreted(program, parameters.now(), y.numpy())
        for have, want in zip(found, wrapped.energy_and_gradient(y), strict=True):
            np.testing.assert_allclose(have, want.numpy(), atol=1e-12)


class Number(nn.Module):
    """A number that leaves torch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("beta", torch.tensor(1.0))

    def forward(self, x):
        return self.beta.item() * x.square().sum(1) / 2

    def change(self):
        self.beta.fill_(10.0)


class Indices(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("index", torch.tensor([0, 0]))

    def forward(self, x):
        return x.square().sum(1) + 3 * x[:, self.index].square().sum(1)

    def change(self):
        self.index.copy_(torch.tensor([1, 2]))


class Attribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def forward(self, x):
        return self.scale * x.square().sum(1)

    def change(self):
        self.scale = 7.0


class Submodule(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return self.layer(x).square().sum(1)

    def change(self):
        self.layer = nn.Linear(3, 4, bias=False)


@pytest.mark.parametrize("kind", (LangevinDynamics, MALA))
@pytest.mark.parametrize("n", (1, 20))
@pytest.mark.parametrize("make", (Number, Indices, Attribute, Submodule))
def test_a_change_is_noticed_where_start_states_do_not_show_it(make, n, kind):
    """All chains begin at 0, where the energy is 0 before and after."""
    module = make()
    energy, x = as_energy(module, module), Z[:n]
    check(energy, x, kind)
    module.change()
    check(energy, x, kind)


@pytest.mark.parametrize("make", (Number, Indices))
def test_constants_are_watched_whatever_the_states(make):
    module, x = make(), torch.cat([torch.zeros(4, 3), states(n=3)])
    energy = as_energy(module, module)
    function = fuse(energy)
    for _ in range(2):
        for have, want in zip(function(x), energy.energy_and_gradient(x), strict=True):
            torch.testing.assert_close(have, want)
        module.change()


def test_a_repeated_call_notices_a_change_too():
    module = Attribute()
    samplers = [LangevinDynamics(module, 0.05, engine=e) for e in ("fused", "torch")]
    for scale in (1.0, 1.0, 1.0, 7.0):
        module.scale = scale
        torch.manual_seed(0)
        fused, wanted = (sampler.sample_chain(torch.zeros(500, 3), 5) for sampler in samplers)
        assert 0.8 < wanted.std() / fused.std() < 1.25


LEAVES = {
    "conjugate": lambda: torch.tensor([1 + 2j, 0.5j, 2.0]).conj(),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", LEAVES)
def test_leaves_of_any_kind_leave_auto_at_work(name):
    leaf = LEAVES[name]()

    def energy(x):
        if leaf.is_complex():
            factor = leaf.abs()
        else:
            factor = leaf.to_dense().sum(0) if leaf.layout != torch.strided else leaf.float()
        return (x * factor).square().sum(1)

    found, wanted = (chains(energy, states(), engine) for engine in ("auto", "torch"))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_zeros_without_memory_are_states():
    energies, gradients = fuse(lambda x: (x - 1).square().sum(1))(
        torch._efficientzerotensor((5, 3))
    )
    assert energies.tolist() == [3.0] * 5
    assert gradients.tolist() == [[-2.0] * 3] * 5


def test_an_error_of_forward_is_the_users_own():
    def energy(x):
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        LangevinDynamics(energy, 0.05).sample(Z, n_steps=2)
