"""The fused engine as samplers use it: when it runs, what it follows, where it is left."""

import gc
import math
import threading
import weakref

import numpy as np
import pytest
import torch
from targets import DoubleWell, perceptron
from torch import nn

from ebm_core import ConfigurationError, EnergyFunction, NumericalError, as_energy
from ebm_samplers import MALA, HamiltonianMonteCarlo, LangevinDynamics, fuse
from ebm_samplers.fused import FusedEnergy, counts
from ebm_samplers.fused import chains as fused_chains

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def lanes(monkeypatch):
    monkeypatch.setattr(FusedEnergy, "lanes", lambda self, n_chains: 8)


def both(make, **arguments):
    """Results of the two engines."""
    arguments = {"x_init": X, "n_steps": 6, "keep": "trajectory", "seed": 2, **arguments}
    return [make(engine).sample(**arguments) for engine in ("torch", "fused")]


def assert_agree(a, b, atol=2e-5):
    for x, y in ((a.final, b.final), (a.trajectory, b.trajectory), (a.potential, b.potential)):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.shape == y.shape
            assert x.dtype == y.dtype
            assert torch.allclose(x, y, atol=atol, rtol=1e-4)
    assert a.stats.keys() == b.stats.keys()
    for name, value in a.stats.items():
        assert value.dtype == b.stats[name].dtype, name
        assert value.shape == b.stats[name].shape, name
        assert torch.allclose(value.double(), b.stats[name].double(), atol=atol, rtol=1e-4), name


class TestWhatIsFollowed:
    """Changes of an energy between two calls reach the kernel, or it is made again."""

    def follows(self, energy, change, retraced):
        sampler = LangevinDynamics(energy, 0.01, engine="fused")
        before = sampler.sample(X, n_steps=3, seed=0).final
        seen = dict(counts)
        change()
        after = sampler.sample(X, n_steps=3, seed=0).final
        want = LangevinDynamics(energy, 0.01, engine="torch").sample(X, n_steps=3, seed=0).final
        assert torch.allclose(after, want, atol=1e-5)
        assert not torch.allclose(after, before, atol=1e-3)
        assert counts["traced"] - seen.get("traced", 0) == retraced

    def test_a_parameter(self):
        energy = DoubleWell()
        self.follows(energy, lambda: energy.b.data.mul_(1.5), 0)

    def test_a_parameter_that_is_replaced(self):
        energy = DoubleWell()
        self.follows(energy, lambda: setattr(energy, "b", nn.Parameter(torch.tensor(2.0))), 0)

    def test_a_tensor_of_a_closure_in_place(self):
        width = torch.tensor(1.0)
        self.follows(lambda x: (x / width).square().sum(1), lambda: width.fill_(0.3), 0)

    def test_a_rebound_tensor_of_a_closure(self):
        width = torch.tensor(1.0)

        def rebind():
            nonlocal width
            width = torch.tensor(0.3)

        self.follows(as_energy(lambda x: (x / width).square().sum(1)), rebind, 1)

    def test_a_float_attribute(self):
        class Scaled(EnergyFunction):
            scale = 1.0

            def forward(self, x):
                return self.scale * x.square().sum(1)

        energy = Scaled()
        self.follows(energy, lambda: setattr(energy, "scale", 5.0), 1)

    def test_a_float_attribute_where_all_chains_start_at_one_place(self):
        """Torch may give one state energies that differ in the last bit, by its row of a batch."""

        class Scaled(EnergyFunction):
            scale = 0.5

            def forward(self, x):
                rounding = torch.arange(len(x)) % 2 * 2e-7
                return 1 + self.scale * x.square().sum(1) + rounding

        energy, origin = Scaled(), torch.zeros(6, 2)
        again, torchs = (LangevinDynamics(energy, 0.01, engine=e) for e in ("fused", "torch"))
        torchs.sample_chain(origin, 1)
        start = torchs.state_dict()
        for scale in (0.5, 0.5, 20.0):
            energy.scale = scale
            torchs.load_state_dict(start)
            want = torchs.sample_chain(origin, 5)
            for sampler in (again, LangevinDynamics(energy, 0.01, engine="fused")):
                sampler.load_state_dict(start)
                assert torch.allclose(sampler.sample_chain(origin, 5), want, atol=1e-5)

    def test_to_on_a_module_of_a_closure(self):
        class Shift(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("at", torch.tensor([0.5, -0.5]))

            def _apply(self, function, recurse=True):  # as `.to()` of another dtype and back does
                self.at = function(self.at).clone() + 1
                return self

        shift = Shift()
        energy = as_energy(lambda x: (x - shift.at).square().sum(1))
        self.follows(energy, lambda: shift.to(torch.float32), 1)

    def test_a_schedule_of_attributes_ends_on_the_torch_engine(self):
        class Scaled(EnergyFunction):
            scale = 1.0

            def forward(self, x):
                return self.scale * x.square().sum(1)

        energy = Scaled()
        sampler = LangevinDynamics(energy, 0.01)
        for k in range(8):
            energy.scale = 1.0 + k
            sampler.sample_chain(X, 1)
        assert "keep numbers that change in buffers" in sampler.explain(X).reason


def test_training_steps_neither_trace_nor_compile():
    energy = perceptron()
    optimizer = torch.optim.SGD(energy.parameters(), 0.1)
    sampler = LangevinDynamics(energy, 0.05, engine="fused")
    sampler.sample_chain(X, 2)
    before = dict(counts)
    for _ in range(5):
        negatives = sampler.sample_chain(X, 2)
        optimizer.zero_grad()
        (energy(X).mean() - energy(negatives).mean()).backward()
        optimizer.step()
        reference = LangevinDynamics(energy, 0.05, engine="torch")
        a, b = (s.sample(X, n_steps=3, seed=1).final for s in (sampler, reference))
        assert torch.allclose(a, b, atol=1e-5)
    assert dict(counts) == before


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


def test_energies_are_compared_in_full_precision():
    seen, x = [], torch.arange(15.0).reshape(5, 3)

    def energy(x):
        seen.append(torch.get_float32_matmul_precision())
        return x.square().sum(1)

    sampler = MALA(energy, 0.1)
    preferred = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert sampler.explain(x).engine == "fused"
        seen.clear()
        sampler.sample_chain(x, 2)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(preferred)
    assert seen == ["highest"]


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


@pytest.mark.parametrize("keep", ("final", "trajectory", "moments"))
@pytest.mark.parametrize("thin", (1, 3, 8))
def test_where_legs_are_cut_changes_nothing(keep, thin, monkeypatch):
    energy = DoubleWell()

    def run(seconds):
        monkeypatch.setattr(fused_chains, "SECONDS", seconds)
        return HamiltonianMonteCarlo(energy, 0.1, 3, engine="fused").sample(
            X, n_steps=20, thin=thin, burn_in=4, keep=keep, seed=3, beta=[0.5, 1, 1, 2, 1, 1]
        )

    whole, cut = run(10.0), run(1e-9)
    for a, b in ((whole.final, cut.final), (whole.trajectory, cut.trajectory)):
        assert (a is None and b is None) or torch.equal(a, b)
    for name in whole.stats:
        assert torch.allclose(whole.stats[name].double(), cut.stats[name].double(), atol=1e-6), name
    assert torch.equal(whole.potential, cut.potential)
    if keep == "moments":
        assert whole.moments.count == cut.moments.count == 20 // thin
        assert torch.allclose(whole.moments.mean, cut.moments.mean, atol=1e-6)
        assert torch.allclose(whole.moments.variance, cut.moments.variance, atol=1e-6)
    assert_agree(
        *both(
            lambda engine: HamiltonianMonteCarlo(energy, 0.1, 3, engine=engine),
            n_steps=20, thin=thin, burn_in=4, keep=keep,
        )
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("keep", ("final", "trajectory", "moments"))
def test_legs_of_any_lengths_in_turn(keep, seed, monkeypatch):
    """Shorter than a draw's interval, then longer, as on a busy machine."""
    sampler = MALA(DoubleWell(), 0.05, engine="fused")
    settings = {"n_steps": 50, "thin": 4, "keep": keep, "seed": 3}
    whole = sampler.sample(X, **settings)
    paces, end = np.random.default_rng(seed), fused_chains.FusedChains._end

    def some(self, done, n, plan):
        self._pace = float(paces.choice([1, 2, 3, 5, 9]))
        return end(self, done, n, plan)

    monkeypatch.setattr(fused_chains.FusedChains, "_end", some)
    cut = sampler.sample(X, **settings)
    assert torch.equal(whole.final, cut.final)
    assert torch.equal(whole.potential, cut.potential)
    if keep == "trajectory":
        assert torch.equal(whole.trajectory, cut.trajectory)
    for name in whole.stats:
        assert torch.allclose(whole.stats[name].double(), cut.stats[name].double(), atol=1e-6), name


@pytest.mark.parametrize("thin", (1, 4))
def test_callbacks_see_the_draws_so_far_and_stop(thin):
    seen = []

    def callback(result):
        seen.append(result.trajectory.shape[1])
        assert torch.isfinite(result.trajectory).all()
        return len(seen) == 7

    sampler = MALA(DoubleWell(), 0.05, engine="fused")
    result = sampler.sample(
        X, n_steps=300 * thin, thin=thin, keep="trajectory", seed=0, callback=callback
    )
    assert seen == [3, 6, 9, 12, 15, 18, 21]
    assert result.trajectory.shape[1] == 21
    whole = sampler.sample(X, n_steps=21 * thin, thin=thin, keep="trajectory", seed=0)
    assert torch.equal(result.trajectory, whole.trajectory)


def test_what_a_callback_changes_is_seen_by_the_next_steps():
    class Spring(EnergyFunction):
        def __init__(self):
            super().__init__()
            self.register_buffer("stiffness", torch.tensor(1.0))

        def forward(self, x):
            return self.stiffness * x.square().sum(1)

    def run(engine, change):
        energy = Spring()
        return LangevinDynamics(energy, 0.05, engine=engine).sample(
            X, n_steps=8, keep="trajectory", seed=0, callback=lambda result: change(energy)
        )

    stiffen = [
        run(engine, lambda e: e.stiffness.mul_(1.5) is None) for engine in ("torch", "fused")
    ]
    assert torch.allclose(stiffen[0].trajectory, stiffen[1].trajectory, atol=1e-5)
    still = run("fused", lambda e: False)
    assert not torch.allclose(stiffen[1].final, still.final, atol=1e-2)
    with pytest.raises(ConfigurationError, match="changed during the run.*stiffness") as caught:
        run("fused", lambda e: setattr(e, "stiffness", torch.ones(2)))
    assert caught.value.result.trajectory.shape[1] == 1


def test_an_interrupt_loses_no_leg(monkeypatch):
    monkeypatch.setattr(fused_chains, "SECONDS", 1e-9)
    calls = []
    run = FusedEnergy.launch

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    sampler = MALA(DoubleWell(), 0.05, engine="fused")
    sampler.sample_chain(X, 1)
    monkeypatch.setattr(FusedEnergy, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        sampler.sample(X, n_steps=50, keep="trajectory", seed=0)
    partial = caught.value.result
    monkeypatch.undo()
    monkeypatch.setattr(FusedEnergy, "lanes", lambda self, n_chains: 8)
    n = partial.trajectory.shape[1]
    assert 1 <= n < 50
    whole = sampler.sample(X, n_steps=50, keep="trajectory", seed=0)
    assert torch.equal(partial.trajectory, whole.trajectory[:, :n])
    rest = sampler.sample(resume=partial.resume, n_steps=50 - n, keep="trajectory")
    assert torch.equal(rest.final, whole.final)


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


def test_a_schedule_that_fails_loses_no_step_before():
    def schedule(step):
        if step == 5:
            raise RuntimeError("no more")
        return 0.05

    sampler = MALA(DoubleWell(), schedule, engine="fused")
    with pytest.raises(RuntimeError, match="no more") as caught:
        sampler.sample(X, n_steps=20, keep="trajectory", seed=0)
    assert caught.value.result.trajectory.shape[1] == 5


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


def test_a_call_is_one_launch(monkeypatch):
    """The first leg is that in which energies are compared: what a training step pays for."""
    launches = []
    run = FusedEnergy.launch

    def counted(self, *args, **settings):
        launches.append(settings["n_steps"])
        return run(self, *args, **settings)

    energy = DoubleWell()
    MALA(energy, 0.05, engine="fused").sample_chain(X, 3)
    monkeypatch.setattr(FusedEnergy, "launch", counted)
    MALA(energy, 0.05, engine="fused").sample_chain(X, 3)
    assert launches == [3]


def test_legs_grow_where_the_first_is_one_transition(monkeypatch):
    monkeypatch.setattr(FusedEnergy, "seconds", lambda self, n_chains: 10.0)
    launches = []
    run = FusedEnergy.launch
    monkeypatch.setattr(
        FusedEnergy, "launch", lambda *a, **k: launches.append(k["n_steps"]) or run(*a, **k)
    )
    LangevinDynamics(DoubleWell(), 0.01, engine="fused").sample_chain(X, 2000)
    assert launches[-1] > 100


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
