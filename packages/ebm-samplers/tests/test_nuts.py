"""NUTS: its trees against trees made leaf by leaf, and its draws against exact laws."""

import math

import laws
import pytest
import torch
from breaking import break_kernels

from ebm_core import ConfigurationError, NumericalError, ShapeError, as_energy
from ebm_samplers import NUTS, Context, Stream, fill_normals, fill_uniforms, trees
from ebm_samplers.noise import Noise
from ebm_samplers.nuts import _Leaves

H = 0.35


@pytest.fixture(params=("torch", "fused"))
def engine(request):
    return request.param


def bent(x):
    return (x[:, 0] ** 4 / 4 + (x[:, 1] - x[:, 0].square()).square() / 2 + x[:, 2].square() * 4) / 2


BENT = as_energy(bent, event_shape=3)


def starts(n):
    return fill_normals(torch.empty(n, 3, dtype=torch.float64), 5, 0)


def one_by_one(x, momentum, forward, most, inverse):
    """Doublings and leaves of one chain's tree, by looking at every aligned subtree."""

    def leapfrog(x, p, h):
        p = p - h / 2 * BENT.gradient(x[None])[0]
        x = x + h * (inverse @ p)
        return x, p - h / 2 * BENT.gradient(x[None])[0]

    def turned(leaves):
        along = sum(leaves[1:-1]) + (leaves[0] + leaves[-1]) / 2
        return any((inverse @ p) @ along <= 0 for p in (leaves[0], leaves[-1]))

    momenta, ends, made = [momentum], [(x, momentum), (x, momentum)], 0
    for depth in range(most):
        side, new = int(forward[depth]), []
        at = ends[side]
        for leaf in range(2**depth):
            at = leapfrog(*at, H if side else -H)
            new.append(at[1])
            made += 1
            for size in (2**k for k in range(1, depth + 1)):
                if (leaf + 1) % size == 0 and turned(new[-size:]):
                    return depth, made
        ends[side] = at
        momenta = momenta + new if side else new[::-1] + momenta
        if turned(momenta):
            return depth + 1, made
    return most, made


@pytest.mark.parametrize("dense", (False, True))
def test_trees_stop_where_they_turn(dense, engine):
    n, key, most = 60, 11, 6
    mass = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 4.0]]).double()
    mass = mass if dense else torch.diag(mass.diagonal())
    sampler = NUTS(BENT, H, most, mass, engine=engine)
    x = starts(n)
    stats = sampler.sample(x, n_steps=1, seed=key, first_chain=3).stats
    z = fill_normals(torch.empty(n, 3, dtype=torch.float64), key, Stream.MOMENTUM, 3)
    momenta = z @ torch.linalg.cholesky(mass).mT
    forward = fill_uniforms(torch.empty(n, 16), key, Stream.DIRECTION, 3) >= 0.5
    inverse = mass.inverse()
    want = [
        one_by_one(*of_chain, most, inverse) for of_chain in zip(x, momenta, forward, strict=True)
    ]
    have = zip(stats["tree_depth"][:, 0].tolist(), stats["n_steps"][:, 0].tolist(), strict=True)
    assert list(have) == want
    depths = {depth for depth, _ in want}
    assert len(depths) >= 3
    assert any(made != 2**depth - 1 for depth, made in want)


def test_leaves_have_numbers_of_their_own():
    context = Context(noise := Noise(5, 3, torch.zeros(3, 2)), None)
    noise.open(2, 1)
    context.move(2, 0.1, {})
    rows, depth = torch.tensor([0, 2]), 7
    leaves = _Leaves(context, rows, depth)
    have = torch.stack([leaves(i) for i in range(2**depth)], 1)
    want = fill_uniforms(torch.empty(3, 2**depth), 5, Stream.LEAF, 3, 2 * 2**16 + 2**depth)
    assert torch.equal(have, want[rows])


CASES = {
    "": ({"step_size": 0.3}, laws.ONE),
    "beta per chain": ({"step_size": 0.4}, laws.THREE),
    "shallow": ({"step_size": 0.3, "max_tree_depth": 2}, laws.ONE),
    "diagonal mass": ({"step_size": 0.5, "mass": laws.DIAGONAL}, laws.THREE),
}


@pytest.mark.parametrize("name", CASES)
def test_leaves_the_target_invariant(name, engine):
    settings, beta = CASES[name]
    sampler = NUTS(laws.ENERGY, **settings, engine=engine)
    lengths = (1, 6) if engine == "fused" else (1,)
    assert laws.deviation(sampler, beta, lengths) < laws.BOUND


BROKEN = {
    "leaves without weights": ("Dynamics", "rise", lambda right: lambda *a: 0 * right(*a)),
    "trees that never turn back by themselves": (
        "Dynamics",
        "turned",
        lambda right: lambda self, first, last, total: self.start.x[: len(first), 0] > 0,
    ),
    "a wrong kinetic energy": (
        "Dynamics",
        "rise",
        lambda right: (
            lambda self, at, index: self.beta[index] * (at.energy - self.start.energy[index])
        ),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_ones_do_not(name, monkeypatch):
    owner, method, wrong = BROKEN[name]
    owner = getattr(trees, owner)
    monkeypatch.setattr(owner, method, wrong(getattr(owner, method)))
    sampler = NUTS(laws.ENERGY, 0.3, 3, engine="torch")
    assert laws.deviation(sampler) > 2 * laws.BOUND


@pytest.mark.parametrize(
    "edit",
    (
        (r"new = exp\(height\)", "new = real(1)"),
        (r"rest & 1 != 0", "rest < 0"),
        (r"- w\[KINETIC \+ i\]", ""),
    ),
    ids=("leaves without weights", "subtrees that never turn back", "a wrong kinetic energy"),
)
def test_broken_kernels_do_not(edit, monkeypatch):
    found = break_kernels(monkeypatch, edit)
    unknown = as_energy(laws.bent_wells, event_shape=2)  # for which no kernel is remembered
    assert laws.deviation(NUTS(unknown, 0.3, 3, engine="fused")) > 2 * laws.BOUND
    assert found


def test_moments_of_a_correlated_gaussian(engine):
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]]).double()
    precision = covariance.inverse().float()
    n = 20_000
    x = fill_normals(torch.empty(n, 2), 3, 0) @ torch.linalg.cholesky(covariance).float().mT
    sampler = NUTS(lambda x: ((x @ precision) * x).sum(1) / 2, 0.25, engine=engine)
    result = sampler.sample(x, n_steps=20, seed=1)
    final = result.final.double()
    for values, mean, variance in (
        (final, 0.0, 1.0),
        (final.square(), 1.0, 2.0),
        (final[:, 0] * final[:, 1], 0.95, 1 + 0.95**2),
        (result.stats["energy"][:, 0].double(), 2.0, 2.0),
    ):
        z = (values.mean(0) - mean) * math.sqrt(n / variance)
        assert z.abs().max() < 5
    assert (final * x).mean(0).abs().max() < 0.2  # far from where they were


def test_states_of_any_shape_and_statistics(engine):
    sampler = NUTS(lambda x: x.square().sum((1, 2)) / 2, 0.4, 4, engine=engine)
    for keep in ("trajectory", "final", "moments"):
        result = sampler.sample(n_samples=7, dim=(2, 3), n_steps=6, thin=2, keep=keep, seed=1)
        draws = 3 if keep == "trajectory" else 1
        for name, dtype in (
            ("tree_depth", torch.int64), ("n_steps", torch.int64), ("diverging", torch.bool),
            ("acceptance_rate", torch.float32), ("energy", torch.float32),
        ):  # fmt: skip
            assert result.stats[name].shape == (7, draws)
            assert result.stats[name].dtype == dtype
    assert result.stats["tree_depth"].max() <= 4


def test_chains_do_not_depend_on_each_other(engine):
    x, sampler = starts(30), NUTS(BENT, H, 4, engine=engine)
    whole = sampler.sample(x, n_steps=4, seed=2)
    part = sampler.sample(x[11:17], n_steps=4, seed=2, first_chain=11)
    torch.testing.assert_close(part.final, whole.final[11:17], rtol=1e-12, atol=1e-12)


def test_runs_can_be_cut(engine):
    x, sampler = starts(5), NUTS(BENT, H, engine=engine)
    whole = sampler.sample(x, n_steps=6, seed=2)
    part = sampler.sample(x, n_steps=2, seed=2)
    assert torch.equal(sampler.sample(n_steps=4, resume=part.resume).final, whole.final)


def test_trajectories_that_leave(engine):
    def walled(x):
        return torch.where(x[:, 0] > 1, float("inf"), x.square().sum(1) / 2)

    x = torch.zeros(200, 2)
    result = NUTS(walled, 0.5, engine=engine).sample(x, n_steps=10, keep="trajectory", seed=1)
    assert result.trajectory.isfinite().all()
    assert result.trajectory[..., 0].max() <= 1
    diverging = result.stats["diverging"]
    assert diverging.any()
    assert not diverging.all()
    assert result.potential.isfinite().all()


def test_the_step_follows_its_target(engine):
    sampler = NUTS(BENT, 1.5, 5, target_acceptance=0.8, engine=engine)
    result = sampler.sample(starts(300), n_steps=50, burn_in=100, seed=1)
    assert abs(result.stats["acceptance_rate"].mean() - 0.8) < 0.05


def test_energies_too_large(engine):
    sampler = NUTS(lambda x: x.square().sum(1) + 1e8, 0.1, engine=engine)
    with pytest.raises(NumericalError, match="float64"):
        sampler.sample(torch.zeros(3, 2), n_steps=2, seed=1)


@pytest.mark.parametrize("depth", (0, 16, 2.5))
def test_depths_that_make_no_sense(depth):
    with pytest.raises(ConfigurationError, match="max_tree_depth"):
        NUTS(bent, 0.1, depth)


def test_masses_that_do_not_fit():
    with pytest.raises(ShapeError, match="mass"):
        NUTS(bent, 0.1, mass=torch.ones(4)).sample(starts(2).float(), n_steps=1)
