"""What a warm-up learns, against targets whose best settings are known."""

import math
from contextlib import closing

import pytest
import torch

from ebm_core import ConfigurationError, NumericalError, ShapeError
from ebm_samplers import (
    MALA,
    NUTS,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    MarkovSampler,
    Stream,
    UnderdampedLangevin,
    WarmUp,
    metropolis,
    warm_up,
)
from ebm_samplers.dual_averaging import DualAveraging
from ebm_samplers.launches import Launches
from ebm_samplers.learned import chees, learned_mass, pooled_covariance
from ebm_samplers.mass import mass_for
from ebm_samplers.warming import TURN

SCALES = torch.tensor([0.01, 1.0, 30.0])
TURNED = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(4)))[0]
AXES = torch.tensor([0.05, 0.1, 1.0, 3.0, 10.0])
WHITENING = TURNED / AXES
COVARIANCE = (TURNED * AXES.square()) @ TURNED.T


def scaled(x):
    return (x / SCALES).square().sum(1) / 2


def correlated(x):
    return (x @ WHITENING).square().sum(1) / 2


def quartic(x):
    return (x.square().square() / 4).sum(1)


class RandomWalk(MarkovSampler):
    usual_acceptance = 0.3

    def transition(self, state, context):
        proposal = self.evaluate(state.x + context.step_size * context.normals(Stream.NOISE))
        verdict = metropolis(proposal.energy - state.energy, context.uniforms(Stream.ACCEPT))
        return verdict.choose(proposal, state), {
            "acceptance_rate": verdict.probability,
            "diverging": verdict.diverging,
            "n_steps": 1,
        }


class Blind(MarkovSampler):
    adjusted = False
    statistics = ("n_steps",)

    def transition(self, state, context):
        return state, {"n_steps": 1}


def starts(n=50, dim=3, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("step_size", (1e-4, 50.0))
@pytest.mark.parametrize("kind", (MALA, HamiltonianMonteCarlo, NUTS, RandomWalk))
def test_the_step_reaches_the_usual_acceptance(kind, step_size):
    sampler = kind(quartic, step_size)
    warm = warm_up(sampler, starts(), n_steps=200, seed=1)
    fresh = warm.sampler.sample(warm.x, n_steps=100, seed=2).stats["acceptance_rate"].mean()
    assert abs(fresh - warm.target_acceptance) < 0.03
    assert abs(warm.acceptance_rate - warm.target_acceptance) < 0.05
    if kind is not NUTS:  # whose trees diverge on walls as steep as these
        assert warm.target_acceptance == kind.usual_acceptance
    assert sampler.step_size == step_size
    assert len(warm.history) < 100
    assert warm.step_size == warm.history[-1].step_size or warm.history[-1].phase == "final"


def test_another_target_is_reached_as_well():
    adapting = HamiltonianMonteCarlo(quartic, target_acceptance=0.6)
    for sampler, options in (
        (adapting, {}),
        (HamiltonianMonteCarlo(quartic), {"target_acceptance": 0.6}),
    ):
        warm = warm_up(sampler, starts(), n_steps=200, **options)
        fresh = warm.sampler.sample(warm.x, n_steps=100, seed=2).stats["acceptance_rate"].mean()
        assert abs(fresh - 0.6) < 0.04
    assert adapting.step_size == 0.1
    assert warm.sampler.adaptation is None


@pytest.mark.parametrize("kind", (HamiltonianMonteCarlo, NUTS))
def test_scales_become_a_diagonal_mass(kind):
    warm = warm_up(kind(scaled), starts(), n_steps=400, mass="diagonal")
    ratio = warm.mass.rsqrt() / SCALES
    assert (ratio.log().abs() < 0.1).all()  # 10,000 draws, of which a tenth count: 2 %
    assert 0.5 < warm.step_size < 1.5


def test_correlations_become_a_dense_mass_where_they_are_strong():
    warm = warm_up(HamiltonianMonteCarlo(correlated), starts(dim=5), n_steps=400)
    whitened = WHITENING.T @ torch.linalg.inv(warm.mass) @ WHITENING  # I, of the exact mass
    assert (torch.linalg.eigvalsh(whitened).log().abs() < 0.25).all()
    assert warm_up(HamiltonianMonteCarlo(scaled), starts(), n_steps=100).mass.shape == (3,)


def test_the_mass_has_the_shape_of_the_event():
    shaped = HamiltonianMonteCarlo(lambda x: (x.flatten(1) / SCALES[:2]).square().sum(1) / 2)
    warm = warm_up(shaped, starts(dim=2)[:, :, None], n_steps=150, mass="diagonal")
    assert warm.mass.shape == (2, 1)
    assert warm_up(shaped, warm.x, n_steps=30, mass="dense").mass.shape == (2, 2)
    assert warm_up(shaped, warm.x, n_steps=30, mass=None).mass is None


@pytest.mark.parametrize("kind", (HamiltonianMonteCarlo, NUTS))
def test_a_single_chain_is_pooled_over_time(kind):
    warm = warm_up(kind(scaled), starts(1), n_steps=1000, seed=3)
    assert ((warm.mass.rsqrt() / SCALES).log().abs() < 0.5).all()  # 400 draws
    result = warm.sampler.sample(warm.x, n_steps=400, seed=4)
    assert abs(result.stats["acceptance_rate"].mean() - 0.8) < 0.12


def test_few_chains_take_half_a_turn():
    few, many = (
        warm_up(HamiltonianMonteCarlo(quartic), starts(n), n_steps=200, seed=1) for n in (4, 40)
    )
    assert abs(few.n_leapfrog_steps * few.step_size / (2 * TURN) - 1) < 0.2
    assert not any(launch.phase == "length" for launch in few.history)
    assert any(launch.phase == "length" for launch in many.history)


def banana(x):
    """x0 ~ N(0, 10²); arms in which steps that fit the middle diverge."""
    return x[:, 0].square() / 200 + (x[:, 1] + 0.03 * (x[:, 0].square() - 100)).square() / 2


@pytest.mark.parametrize("kind", (HamiltonianMonteCarlo, NUTS))
def test_the_target_rises_while_transitions_diverge(kind):
    x = starts(64, dim=2)
    given = warm_up(kind(banana), x, n_steps=300, seed=1, target_acceptance=0.8)
    risen = warm_up(kind(banana), x, n_steps=300, seed=1)
    parts = []
    for warm in (given, risen):
        result = warm.sampler.sample(warm.x, n_steps=400, keep="trajectory", seed=2)
        parts.append(result.stats["diverging"].double().mean())
    assert given.target_acceptance == 0.8
    assert risen.target_acceptance in (0.95, 0.9875)
    assert parts[0] > 0.004 > 2 * parts[1]
    assert warm_up(MALA(banana), x, n_steps=100).target_acceptance == MALA.usual_acceptance


def test_the_target_is_taken_back_where_smaller_steps_gain_nothing():
    def box(x):
        return torch.where((x.abs() < 1).all(1), 0.0 * x.sum(1), math.inf)

    warm = warm_up(HamiltonianMonteCarlo(box), starts(64, dim=2).clamp(-0.9, 0.9), n_steps=500)
    assert warm.target_acceptance == 0.8


def test_trajectories_are_long_where_scales_differ():
    stretched = warm_up(HamiltonianMonteCarlo(scaled), starts(), n_steps=600, mass=None)
    assert stretched.n_leapfrog_steps > 200  # the longest scale is 3,000 of the shortest
    assert warm_up(HamiltonianMonteCarlo(quartic), starts(), n_steps=200).n_leapfrog_steps < 6


def test_a_seed_fixes_a_warm_up_and_continues_from_the_start():
    x = starts()
    first, second, other = (warm_up(NUTS(scaled), x, n_steps=60, seed=s) for s in (5, 5, 6))
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.mass, second.mass)
    assert first.history == second.history
    assert not torch.equal(first.x, other.x)
    assert torch.equal(x, starts())
    near = warm_up(MALA(lambda x: (x - 1e3).square().sum(1) / 2), x + 1e3, n_steps=30)
    assert (near.x - 1e3).abs().max() < 10


def test_a_stored_warm_up_configures_another_sampler(tmp_path):
    warm = warm_up(HamiltonianMonteCarlo(scaled), starts(), n_steps=100)
    torch.save(warm.state_dict(), tmp_path / "warm.pt")
    state = torch.load(tmp_path / "warm.pt", weights_only=True)
    bare = HamiltonianMonteCarlo(scaled)
    again = WarmUp.from_state_dict(state, bare)
    assert bare.mass is None
    assert again.history == warm.history
    one, two = (w.sampler.sample(w.x, n_steps=5, seed=1).final for w in (warm, again))
    assert torch.equal(one, two)
    with pytest.raises(ConfigurationError, match="a sampler of the same kind"):
        WarmUp.from_state_dict(state, NUTS(scaled))
    with pytest.raises(ShapeError, match="mass has shape"):
        WarmUp.from_state_dict({**state, "mass": torch.ones(4)}, bare)


@pytest.mark.parametrize("noise_scale", (1.0, 0.5))
def test_langevin_dynamics_takes_the_step_that_mala_would_accept(noise_scale):
    sampler = LangevinDynamics(quartic, noise_scale=noise_scale)
    warm = warm_up(sampler, starts(), n_steps=150)
    counterpart = MALA(
        lambda x: quartic(x) / noise_scale**2, step_size=warm.step_size * noise_scale**2
    )
    rate = counterpart.sample(warm.x, n_steps=100, seed=0).stats["acceptance_rate"].mean()
    assert abs(rate - 0.9) < 0.02
    assert isinstance(warm.sampler, LangevinDynamics)
    assert warm.sampler.noise_scale == noise_scale


def test_underdamped_langevin_learns_its_friction():
    warm = warm_up(UnderdampedLangevin(correlated), starts(dim=5), n_steps=400)
    assert abs(math.log(warm.friction * 10)) < 0.3  # 10 is the largest scale
    assert 0.02 < warm.step_size < 0.1  # 0.05 the smallest
    assert warm.sampler.friction == warm.friction


@pytest.mark.parametrize(
    ("sampler", "words"),
    (
        (Blind(quartic, 0.1), "Blind has no accept test"),
        (MALA(quartic, lambda step: 0.1), "step_size is a schedule"),
        (LangevinDynamics(quartic, 0.1, lambda step: 1.0), "noise_scale is a schedule"),
        (LangevinDynamics(quartic, 0.1, 0.0), "noise_scale is 0"),
    ),
)
def test_what_cannot_adapt_is_refused(sampler, words):
    with pytest.raises(ConfigurationError, match=words):
        warm_up(sampler, starts(), n_steps=30)


def test_bad_arguments_and_energies_are_refused():
    sampler = MALA(quartic)
    with pytest.raises(ConfigurationError, match="n_steps"):
        warm_up(sampler, starts(), n_steps=3)
    with pytest.raises(ConfigurationError, match="mass"):
        warm_up(HamiltonianMonteCarlo(quartic), starts(), mass="full")
    with pytest.raises(ConfigurationError, match="target_acceptance"):
        warm_up(sampler, starts(), target_acceptance=1.0)
    with pytest.raises(NumericalError, match="not finite"):
        warm_up(sampler, starts() * math.inf)
    with pytest.raises(NumericalError, match="can be normalised"):
        warm_up(MALA(lambda x: 0.0 * x.sum(1)), starts())


def test_chees_of_an_exact_flow_has_its_closed_form():
    x, p = starts(200_000, seed=1), starts(200_000, seed=2)
    rate = chees((x, math.cos(0.7) * x + math.sin(0.7) * p), mass_for(None, x))
    exact = 3 * math.sin(0.7) ** 2  # Var|x|² = 6, and cos²t the correlation of squares
    assert abs(rate / exact - 1) < 0.02
    scaled_mass = mass_for(SCALES.square().reciprocal(), x)
    other = chees((x * SCALES, (math.cos(0.7) * x + math.sin(0.7) * p) * SCALES), scaled_mass)
    assert math.isclose(rate, other, rel_tol=1e-4)
    dense = mass_for((TURNED / AXES.square()) @ TURNED.T, starts(2, 5))
    y, q = starts(1000, 5, seed=3), starts(1000, 5, seed=4)
    white = chees((y, q), mass_for(None, y))
    turned = chees(((y * AXES) @ TURNED.T, (q * AXES) @ TURNED.T), dense)
    assert math.isclose(white, turned, rel_tol=1e-3)


def test_covariances_are_pooled_and_shrunk_as_in_stan():
    draws = torch.randn(4, 50, 3, dtype=torch.float64) + torch.arange(4.0)[:, None, None]
    for scale in (0.5, 100.0):  # of a variance below 1, and above, where the shrinkage is relative
        scaled = scale * draws
        sample = torch.cov(scaled.reshape(-1, 3).T)
        share = 1e-3 * 5 / 205 * torch.eye(3).double()
        whole = sample * (200 / 205) + share * sample.diagonal().clamp(min=1.0)
        assert torch.allclose(pooled_covariance(scaled, dense=True), whole, rtol=1e-9)
        assert torch.allclose(learned_mass(scaled, "dense"), torch.linalg.inv(whole), rtol=1e-6)
        diagonal = (sample * (200 / 205) + share).diagonal()
        assert torch.allclose(pooled_covariance(scaled, dense=False), diagonal, rtol=1e-9)


@pytest.mark.parametrize("factor", (0.1, 10.0))
def test_dual_averaging_settles_from_afar(factor):
    rule = DualAveraging(0.8, factor * 0.22)
    for _ in range(30):  # of a sampler that accepts exp(-h)
        rule.update(math.exp(-rule.step_size))
    assert abs(math.exp(-rule.step_size) - 0.8) < 0.03
    assert abs(math.exp(-rule.averaged) - 0.8) < 0.05


@pytest.mark.parametrize("kind", ("diagonal", "dense"))
def test_masses_of_small_scales(kind):
    """Stan's regularisation is a length; elements much smaller than it are seen as they are."""
    draws = 1e-6 * torch.randn(20, 50, 3, generator=torch.Generator().manual_seed(0)).double()
    mass = learned_mass(draws, kind)
    variance = 1 / (mass if kind == "diagonal" else mass.diagonal())
    assert ((variance / 1e-12).log().abs() < 0.3).all()


def test_what_is_no_sampler_is_refused():
    with pytest.raises(ConfigurationError, match="a MarkovSampler"):
        warm_up(MALA, torch.zeros(3, 2))
    with pytest.raises(ConfigurationError, match="the state is that of"):
        WarmUp.from_state_dict(None, MALA(lambda x: x.square().sum(1)))


def test_the_original_keeps_its_step():
    x = torch.ones(9, 2)
    first = MALA(lambda x: x.square().sum(1), 1e-6)
    warm = warm_up(first, x, n_steps=50, seed=0)
    for _ in range(2):
        assert (first.sample_chain(x, 20) - x).abs().max() < 0.1
        assert (warm.sampler.sample_chain(x, 20) - x).abs().max() > 0.1


@pytest.mark.parametrize("engine", ("auto", "torch"))
def test_launches_are_pieces_of_one_run(engine):
    sampler = HamiltonianMonteCarlo(quartic, 0.2, 3, engine=engine)
    x = starts(5)
    whole = sampler.sample(x, n_steps=12, seed=7, keep="trajectory")
    with closing(Launches(sampler, x, 7, 12)) as launches:
        made = [launches.make(4), launches.make(1)]
        launches.renew()
        made.append(launches.make(7))
    torch.testing.assert_close(torch.cat([m.draws for m in made], 1), whole.trajectory)
    torch.testing.assert_close(launches.x, whole.final)
    assert sum(m.n_gradients for m in made) == whole.stats["n_steps"].sum()
    rates = torch.tensor([m.acceptance_rate * m.n_transitions for m in made])
    torch.testing.assert_close(rates.sum() / 60, whole.stats["acceptance_rate"].mean())


@pytest.mark.parametrize("engine", ("auto", "torch"))
def test_launches_follow_settings(engine):
    sampler = HamiltonianMonteCarlo(scaled, 0.002, 5, jitter=0.0, engine=engine)
    x = starts(5)
    settings = (0.002, 5, None), (0.004, 2, None), (0.3, 3, SCALES**-2)
    expected = []
    for i, (step_size, length, mass) in enumerate(settings):
        other = HamiltonianMonteCarlo(scaled, step_size, length, mass, jitter=0.0, engine=engine)
        resume = None if not expected else {**expected[-1].resume, "step_size": None}
        how = {"x_init": x, "seed": 7} if i == 0 else {"resume": resume}
        expected.append(other.sample(n_steps=3, keep="trajectory", **how))
    with closing(Launches(sampler, x, 7, 9)) as launches:
        for (step_size, length, mass), wanted in zip(settings, expected, strict=True):
            sampler.step_size, sampler.n_leapfrog_steps = step_size, length
            if mass is not None:
                sampler.mass = mass
                launches.renew()
            torch.testing.assert_close(launches.make(3).draws, wanted.trajectory)
