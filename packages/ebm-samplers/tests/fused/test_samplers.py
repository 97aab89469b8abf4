"""The fused engine as samplers use it: when it runs, what it follows, where it is left."""

import gc
import math
import threading
import weakref

import pytest
import torch
from agreement import X, assert_agree, both
from targets import DoubleWell
from torch import nn

from ebm_core import ConfigurationError, NumericalError, as_energy
from ebm_samplers import MALA, HamiltonianMonteCarlo, LangevinDynamics, fuse
from ebm_samplers.fused import counts

pytestmark = pytest.mark.usefixtures("eight_lanes")


def normalized(x):
    return (x - x.mean(0)).square().sum(1)


def branching(x):
    return x.square().sum(1) if x.sum() > 0 else x.abs().sum(1)


def fourier(x):
    return torch.fft.fft(x).abs().sum(1)


def noisy(x):
    return x.square().sum(1) + torch.rand(len(x))


@pytest.mark.parametrize(
    ("energy", "reason"),
    (
        (normalized, "forward mixes the states of a batch"),
        (branching, r"leaves torch .*test_samplers\.py:\d+"),
        (fourier, r"_fft_r2c has no rule in the compiler .*test_samplers\.py:\d+"),
        (noisy, r"draws random numbers .*test_samplers\.py:\d+"),
    ),
)
def test_what_cannot_be_fused_goes_to_torch_or_is_refused(energy, reason):
    sampler = MALA(energy, 0.1)
    final = sampler.sample(X, n_steps=2, seed=0).final
    assert final.shape == X.shape
    if energy is not noisy:
        assert torch.equal(
            MALA(energy, 0.1, engine="torch").sample(X, n_steps=2, seed=0).final, final
        )
    explanation = sampler.explain(X)
    assert explanation.engine == "torch"
    with pytest.raises(ConfigurationError, match=reason):
        MALA(energy, 0.1, engine="fused").sample(X, n_steps=2, seed=0)


def test_dropout_is_off_in_both_engines():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
    energy = as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1), net)
    assert_agree(*both(lambda engine: MALA(energy, 0.1, engine=engine)))
    assert net.training


def test_batch_style_indexing_means_what_it_says():
    def energy(x):
        first, flat = x[:, 0], x.flatten(1)
        return (first - flat[:, 1]).square() + flat.sum(1).cos() + x.square().sum(-1)

    assert_agree(*both(lambda engine: MALA(energy, 0.1, engine=engine)))


def test_torch_runs_where_its_batches_are_quicker():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 400), nn.SiLU(), nn.Linear(400, 400), nn.SiLU())
    energy = as_energy(lambda x: net(x).sum(1) + x.square().sum(1), net)
    many = MALA(energy, 0.1).explain(torch.zeros(4096, 2))
    assert many.engine == "torch"
    assert "torch's batches are quicker with 4,096 chains" in many.reason


def test_an_explanation():
    energy = DoubleWell()
    sampler = MALA(energy, 0.1)
    explanation = sampler.explain(X)
    assert explanation.engine == "fused"
    assert explanation.form == "straight-line"
    assert explanation.lanes == 8
    assert explanation.n_operations > 5
    assert explanation.seconds > 0
    assert "def chains" in explanation.source
    assert "scalar operations, straight-line, 8 lanes, " in str(explanation)
    assert MALA(DoubleWell(), 0.1).explain(X).engine == "fused"
    assert "engine='torch'" in MALA(energy, 0.1, engine="torch").explain(X).reason
    assert "torch.float16" in sampler.explain(X.half()).reason
    with pytest.raises(ConfigurationError, match="x is None"):
        sampler.explain()


class Timid(MALA):
    def transition(self, state, context):
        return state, super().transition(state, context)[1]


class Renamed(MALA):
    """Changes nothing of the step."""


def test_a_derived_sampler_with_its_own_step_has_no_kernel():
    energy = DoubleWell()
    assert torch.equal(Timid(energy, 0.1).sample(X, n_steps=3, seed=0).final, X)
    assert "Timid has its own transition" in Timid(energy, 0.1).explain(X).reason
    assert Renamed(energy, 0.1).explain(X).engine == "fused"
    patched = MALA(energy, 0.1)
    patched.evaluate = patched.evaluate
    assert "evaluate" in patched.explain(X).reason


def test_settings_of_all_kinds_agree():
    energy = DoubleWell()
    mass = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    makers = (
        lambda engine: LangevinDynamics(
            energy, lambda t: 0.01 / (1 + t), lambda t: 1.0 - 0.1 * t, engine=engine
        ),
        lambda engine: MALA(energy, 0.03, target_acceptance=0.7, engine=engine),
        lambda engine: HamiltonianMonteCarlo(energy, 0.1, 4, mass, engine=engine),
        lambda engine: HamiltonianMonteCarlo(energy, 0.1, 4, mass.diagonal(), engine=engine),
        lambda engine: HamiltonianMonteCarlo(
            energy, lambda t: 0.1 + 0.01 * t, 4, jitter=0.0, target_acceptance=None, engine=engine
        ),
    )
    for make in makers:
        assert_agree(*both(make, burn_in=3, beta=torch.linspace(0.2, 2, 6)))
        a, b = make("torch"), make("fused")
        a.load_state_dict({**a.state_dict(), "key": 5})
        b.load_state_dict({**b.state_dict(), "key": 5})
        for _ in range(3):
            x, y = a.sample_chain(X, 4), b.sample_chain(X, 4)
            assert torch.allclose(x, y, atol=2e-5)
            assert y.is_contiguous()
        if a.adjusted:
            assert torch.allclose(a.acceptance_rate, b.acceptance_rate, atol=1e-5)
            assert a.acceptance_rate.dtype == b.acceptance_rate.dtype
        assert a.state_dict().keys() == b.state_dict().keys()
        if a.adaptation:
            assert abs(a.step_size / b.step_size - 1) < 1e-5


def test_starts_and_energies_are_checked():
    energy = DoubleWell()
    bad = X.clone()
    bad[4, 1] = torch.nan
    with pytest.raises(NumericalError, match="1 of 6 start states"):
        MALA(energy, 0.1, engine="fused").sample(bad, n_steps=2, seed=0)
    for shift in (1e6, 1e12):
        shifted = DoubleWell(shift=shift)
        with pytest.raises(NumericalError, match="6 of 6 chains.*float64.*offset"):
            MALA(shifted, 0.1, engine="fused").sample(X, n_steps=2, seed=0)
        result = LangevinDynamics(shifted, 0.1, engine="fused").sample(X, n_steps=2, seed=0)
        assert result.final.isfinite().all()


def test_states_that_diverge_are_those_of_the_torch_engine_at_10000_chains():
    energy = as_energy(lambda x: (x**4).sum(1) / 4)
    x = 2 * torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    runs = [
        LangevinDynamics(energy, 0.3, engine=engine).sample(x, n_steps=12, seed=1)
        for engine in ("torch", "fused")
    ]
    a, b = (run.stats["diverging"] for run in runs)
    assert 0.05 < a.double().mean() < 0.95
    # chains at the edge go either way within rounding
    assert (a != b).double().mean() < 1e-3
    assert (runs[1].final.isfinite().all(1) | b[:, 0]).all()


@pytest.mark.parametrize("function", (lambda x: x.square().sum(1), fourier, normalized))
def test_energies_are_not_kept_alive(function):
    energy = as_energy(function)
    sampler = MALA(energy, 0.1)
    for _ in range(3):
        sampler.sample_chain(X, 1)
    gone = weakref.ref(energy)
    del energy, sampler
    gc.collect()
    assert gone() is None
    live = [t for t in gc.get_objects() if type(t) is torch.Tensor]
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in live)


def test_threads_may_begin_together():
    """One traces and compiles, the others wait; nothing is freed that another is running."""
    for scale in (3.25, 4.25):
        energy = as_energy(lambda x, scale=scale: (scale * x**4 + x**2).sum(1))
        gate, found = threading.Barrier(4), []

        def work(energy=energy, gate=gate, found=found):
            sampler = MALA(energy, 0.01, engine="fused")
            gate.wait()
            results = [sampler.sample(torch.ones(9, 2), n_steps=5, seed=1).final for _ in range(9)]
            found.extend(results)

        before = counts["traced"]
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 36
        assert all(torch.equal(one, found[0]) for one in found)
        assert counts["traced"] == before + 1


def test_differences_of_infinities_are_not_lost():
    """With a at infinity (a + b) - a is no number, and no state that a chain may go to."""
    energy = as_energy(lambda x: ((x[:, 0].exp() + x[:, 1]) - x[:, 0].exp()) + x[:, 0])
    x = torch.tensor([[95.0, 1.0], [0.0, 1.0]])
    with pytest.raises(NumericalError, match="1 of 2 start states"):
        MALA(energy, 0.1, engine="fused").sample_chain(x, 1)


def test_bounds_that_are_no_numbers_are_seen():
    def energy(x):
        return torch.clamp(x[:, 0], max=x[:, 1]) + torch.clamp(x[:, 0], min=x[:, 1])

    energies, _ = fuse(energy)(torch.tensor([[1.0, math.nan], [1.0, 2.0]]))
    assert energies[0].isnan()
    assert energies[1] == 3


def test_views_that_torch_negates_only_later():
    x = torch.ones(5, 2, dtype=torch.cfloat).mul(1 - 2j).conj().imag
    scale = torch.ones(2, dtype=torch.cfloat).mul(1 - 2j).conj().imag
    assert x.is_neg()
    assert scale.is_neg()
    sampler = LangevinDynamics(lambda x: (x * scale).square().sum(1), 0.1, 0.0, engine="fused")
    assert torch.allclose(sampler.sample_chain(x, 1), torch.full((5, 2), 2 - 0.1 * 2 * 4 * 2.0))
