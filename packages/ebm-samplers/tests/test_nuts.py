"""NUTS: its trees against trees made leaf by leaf, and its draws against exact laws."""

import math

import laws
import pytest
import torch

from ebm_core import ConfigurationError, ShapeError, as_energy
from ebm_samplers import NUTS, Context, Stream, fill_normals, fill_uniforms, trees
from ebm_samplers.noise import Noise
from ebm_samplers.nuts import _Leaves

H = 0.35


def bent(x):
    return (x[:, 0] ** 4 / 4 + (x[:, 1] - x[:, 0].square()).square() / 2 + x[:, 2].square() * 4) / 2


def starts(n):
    return fill_normals(torch.empty(n, 3, dtype=torch.float64), 5, 0)


def one_by_one(x, momentum, forward, most, inverse):
    """Doublings and leaves of one chain's tree, by looking at every aligned subtree."""
    energy = as_energy(bent)

    def leapfrog(x, p, h):
        p = p - h / 2 * energy.gradient(x[None])[0]
        x = x + h * (inverse @ p)
        return x, p - h / 2 * energy.gradient(x[None])[0]

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
def test_trees_stop_where_they_turn(dense):
    n, key, most = 60, 11, 6
    mass = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 4.0]]).double()
    mass = mass if dense else torch.diag(mass.diagonal())
    sampler = NUTS(bent, H, most, mass)
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
    "": (lambda e: NUTS(e, 0.3), laws.ONE),
    "beta per chain": (lambda e: NUTS(e, 0.4), laws.THREE),
    "shallow": (lambda e: NUTS(e, 0.3, 2), laws.ONE),
    "diagonal mass": (lambda e: NUTS(e, 0.5, mass=laws.DIAGONAL), laws.THREE),
}


@pytest.mark.parametrize("name", CASES)
def test_leaves_the_target_invariant(name):
    make, beta = CASES[name]
    assert laws.deviation(make(laws.ENERGY), beta, (1, 6)) < laws.BOUND


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
    sampler = NUTS(laws.ENERGY, 0.3, 3)
    assert laws.deviation(sampler) > 2 * laws.BOUND


def test_moments_of_a_correlated_gaussian():
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]]).double()
    precision = covariance.inverse().float()
    n = 20_000
    x = fill_normals(torch.empty(n, 2), 3, 0) @ torch.linalg.cholesky(covariance).float().mT
    result = NUTS(lambda x: ((x @ precision) * x).sum(1) / 2, 0.25).sample(x, n_steps=20, seed=1)
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


def test_states_of_any_shape_and_statistics():
    sampler = NUTS(lambda x: x.square().sum((1, 2)) / 2, 0.4, 4)
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


def test_chains_do_not_depend_on_each_other():
    x, sampler = starts(30), NUTS(bent, H, 4)
    whole = sampler.sample(x, n_steps=4, seed=2)
    part = sampler.sample(x[11:17], n_steps=4, seed=2, first_chain=11)
    torch.testing.assert_close(part.final, whole.final[11:17], rtol=1e-12, atol=1e-12)


def test_runs_can_be_cut():
    x, sampler = starts(5), NUTS(bent, H)
    whole = sampler.sample(x, n_steps=6, seed=2)
    part = sampler.sample(x, n_steps=2, seed=2)
    assert torch.equal(sampler.sample(n_steps=4, resume=part.resume).final, whole.final)


def test_trajectories_that_leave():
    def walled(x):
        return torch.where(x[:, 0] > 1, float("inf"), x.square().sum(1) / 2)

    x = torch.zeros(200, 2)
    result = NUTS(walled, 0.5).sample(x, n_steps=10, keep="trajectory", seed=1)
    assert result.trajectory.isfinite().all()
    assert result.trajectory[..., 0].max() <= 1
    diverging = result.stats["diverging"]
    assert diverging.any()
    assert not diverging.all()
    assert result.potential.isfinite().all()


def test_the_step_follows_its_target():
    sampler = NUTS(bent, 1.5, 5, target_acceptance=0.8)
    result = sampler.sample(starts(300), n_steps=50, burn_in=100, seed=1)
    assert abs(result.stats["acceptance_rate"].mean() - 0.8) < 0.05


def test_energies_too_large():
    from ebm_core import NumericalError

    with pytest.raises(NumericalError, match="float64"):
        NUTS(lambda x: x.square().sum(1) + 1e8, 0.1).sample(torch.zeros(3, 2), n_steps=2, seed=1)


@pytest.mark.parametrize("depth", (0, 16, 2.5))
def test_depths_that_make_no_sense(depth):
    with pytest.raises(ConfigurationError, match="max_tree_depth"):
        NUTS(bent, 0.1, depth)


def test_masses_that_do_not_fit():
    with pytest.raises(ShapeError, match="mass"):
        NUTS(bent, 0.1, mass=torch.ones(4)).sample(starts(2).float(), n_steps=1)
