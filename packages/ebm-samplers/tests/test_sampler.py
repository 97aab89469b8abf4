"""What all samplers share: `sample`, `sample_chain`, streams, resume, results, refusals."""

import functools
import gc
import io
import math

import numpy as np
import pytest
import torch
from makers import MAKERS, RandomWalk, quadratic

from ebm_core import (
    BaseSampler,
    ConfigurationError,
    EBMError,
    NumericalError,
    ShapeError,
    TemperedSampler,
    as_energy,
)
from ebm_core.testing import BaseSamplerConformance
from ebm_samplers import (
    MALA,
    HamiltonianMonteCarlo,
    LangevinDynamics,
)


@pytest.fixture(params=("torch", "fused"))
def engine(request):
    return request.param


class TestLangevin(BaseSamplerConformance):
    bias = 0.06

    @pytest.fixture
    def make_sampler(self, engine):
        return functools.partial(MAKERS["langevin"], engine=engine)


class TestMALA(BaseSamplerConformance):
    @pytest.fixture
    def make_sampler(self, engine):
        return functools.partial(MAKERS["mala"], engine=engine)


class TestHMC(BaseSamplerConformance):
    @pytest.fixture
    def make_sampler(self, engine):
        return functools.partial(MAKERS["hmc"], engine=engine)


class TestASamplerOfAUser(BaseSamplerConformance):
    @pytest.fixture
    def make_sampler(self):
        return MAKERS["walk"]


def test_protocols(make):
    sampler = make(quadratic())
    assert isinstance(sampler, BaseSampler)
    assert isinstance(sampler, TemperedSampler)


def test_a_part_of_the_chains_equals_these_rows_of_the_whole(make):
    whole = make(quadratic()).sample(n_samples=40, n_steps=30, seed=5, keep="trajectory")
    part = make(quadratic()).sample(
        n_samples=7, n_steps=30, seed=5, keep="trajectory", first_chain=20
    )
    assert torch.equal(part.trajectory, whole.trajectory[20:27])


@pytest.mark.parametrize("thin", (1, 3))
def test_resume_equals_the_uncut_run(make, thin):
    energy = quadratic()
    arguments = {
        "n_samples": 5,
        "seed": 2**64 - 1,
        "burn_in": 4,
        "thin": thin,
        "keep": "trajectory",
    }
    beta = torch.linspace(0.5, 2, 5).double()
    whole = make(energy).sample(n_steps=150, **arguments, beta=beta)
    pieces = [make(energy).sample(n_steps=66, **arguments, beta=beta)]
    for n_steps in (9, 75):
        file = io.BytesIO()
        torch.save(pieces[-1].resume, file)
        file.seek(0)
        resume = torch.load(file, weights_only=True)
        pieces.append(
            make(energy).sample(resume=resume, n_steps=n_steps, thin=thin, keep="trajectory")
        )
    assert torch.equal(torch.cat([p.trajectory for p in pieces], 1), whole.trajectory)
    assert torch.equal(torch.cat([p.potential for p in pieces], 1), whole.potential)
    assert torch.equal(pieces[-1].final, whole.final)
    for name in whole.stats:
        if name != "step_size":
            assert torch.equal(torch.cat([p.stats[name] for p in pieces], 1), whole.stats[name])
    assert pieces[-1].seed == whole.seed


def test_resume_continues_schedules():
    sampler = LangevinDynamics(quadratic(), lambda step: 0.1 / (1 + step))
    whole = sampler.sample(n_samples=3, n_steps=8, burn_in=2, seed=0)
    part = sampler.sample(n_samples=3, n_steps=5, burn_in=2, seed=0)
    rest = sampler.sample(resume=part.resume, n_steps=3)
    assert torch.equal(rest.final, whole.final)
    assert torch.equal(rest.stats["step_size"], whole.stats["step_size"])


def test_a_run_on_the_samplers_stream_goes_on_past_it():
    torch.manual_seed(0)
    sampler = MALA(quadratic(), 0.2)
    first = sampler.sample(n_samples=3, n_steps=5, burn_in=2)
    assert sampler.state_dict()["counter"] == 7
    assert first.seed == sampler.state_dict()["key"]
    second = sampler.sample(n_samples=3, n_steps=5)
    assert not torch.equal(first.final, second.final)
    sampler.sample(resume=first.resume, n_steps=4)
    assert sampler.state_dict()["counter"] == 12
    sampler.sample(resume=first.resume, n_steps=40)
    assert sampler.state_dict()["counter"] == 47
    sampler.sample(n_samples=3, n_steps=100, seed=first.seed)
    assert sampler.state_dict()["counter"] == 47


def test_consecutive_calls_equal_one():
    """Without a start in between, the stream does not show where calls end."""
    x = torch.randn(4, 3).double()
    samplers = [MALA(quadratic(), 0.2) for _ in range(2)]
    for sampler in samplers:
        sampler.load_state_dict({"key": 5, "counter": 0, "step_size": None})
    once = samplers[0].sample_chain(x, 100)
    assert torch.equal(samplers[1].sample_chain(samplers[1].sample_chain(x, 37), 63), once)


def test_statistics_of_intervals(make):
    def box(x):
        return torch.where(x.abs() < 1, x.square() / 2, math.inf).sum(1)

    def run(**arguments):
        return make(box).sample(0.1 * X, n_steps=12, seed=1, **arguments)

    fine, final = run(keep="trajectory"), run()
    thinned = run(keep="trajectory", thin=4)
    assert 0 < fine.stats["diverging"].float().mean() < 1
    rules = {
        "acceptance_rate": lambda v: v.mean(-1),
        "diverging": lambda v: v.any(-1),
        "n_steps": lambda v: v.sum(-1),
        "energy": lambda v: v[..., -1],
    }
    for name, rule in rules.items():
        if name in fine.stats:
            torch.testing.assert_close(thinned.stats[name], rule(fine.stats[name].view(4, 3, 4)))
            torch.testing.assert_close(final.stats[name], rule(fine.stats[name])[:, None])
    assert fine.stats["diverging"].dtype == torch.bool
    assert fine.stats["n_steps"].dtype == torch.int64


def test_transitions_after_the_last_draw_count_for_final():
    sampler = MALA(quadratic(), 0.2)
    every = sampler.sample(n_samples=4, n_steps=8, seed=1, keep="trajectory")
    thinned = sampler.sample(n_samples=4, n_steps=8, thin=3, seed=1, keep="trajectory")
    assert thinned.trajectory.shape[1] == 2
    assert torch.equal(thinned.final, every.final)


def test_long_trajectories_are_whole():
    sampler = LangevinDynamics(quadratic(1), 0.1)
    whole = sampler.sample(n_samples=2, n_steps=300, seed=1, keep="trajectory")
    assert torch.equal(whole.trajectory[:, -1], whole.final)
    assert len(set(whole.trajectory.flatten().tolist())) == 600


@pytest.mark.parametrize("keep", ("final", "moments", "sample_chain"))
def test_memory_does_not_grow_with_the_run(make_in_torch, keep):
    """Bytes of live storages, looked at now and then from within forward."""
    gc.collect()
    sizes, calls = [], [0]
    quadratic_form = quadratic()

    def energy(x):
        calls[0] += 1
        if calls[0] % 41 == 0:
            live = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor]
            sizes.append(sum({s.data_ptr(): s.nbytes() for s in live}.values()))  # not views
        return quadratic_form(x)

    sampler = make_in_torch(as_energy(energy))
    x, n_steps = torch.zeros(100, 3).double(), 450
    if isinstance(sampler, HamiltonianMonteCarlo):
        n_steps = 150
    if keep == "sample_chain":
        sampler.sample_chain(x, n_steps)
    else:
        sampler.sample(x, n_steps=n_steps, seed=0, keep=keep)
    assert len(sizes) >= 8
    early, late = max(sizes[: len(sizes) // 2]), max(sizes[len(sizes) // 2 :])
    assert late <= early * 1.2


def test_states_are_copies():
    sampler = MALA(quadratic(), 0.2, target_acceptance=0.5)
    sampler.sample_chain(torch.zeros(3, 3).double(), 2)
    state = sampler.state_dict()
    state["counter"] = 99
    assert sampler.state_dict()["counter"] == 2
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    sampler.load_state_dict(torch.load(file, weights_only=True))
    result = sampler.sample(torch.zeros(3, 3).double(), n_steps=2, seed=0)
    before = result.resume["x"].clone()
    result.final.zero_()
    assert torch.equal(result.resume["x"], before)
    with pytest.raises(ConfigurationError):
        sampler.load_state_dict({"key": 1})


def test_modules_are_in_eval_mode_meanwhile():
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    net[2].eval()
    energy = as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1), net)
    for call in (
        lambda s: s.sample_chain(torch.zeros(3, 2), 2),
        lambda s: s.sample(torch.zeros(3, 2), n_steps=2),
    ):
        seen = []
        hook = net[1].register_forward_hook(
            lambda module, *_, seen=seen: seen.append(module.training)
        )
        call(MALA(energy, 0.1, engine="torch"))
        hook.remove()
        assert seen == [False] * 3
        assert net[0].training
        assert net[1].training
        assert not net[2].training
    assert all(parameter.grad is None for parameter in net.parameters())


def test_works_under_every_grad_mode(make):
    energy, x, runs = quadratic(), torch.zeros(3, 3).double(), []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            runs.append(make(energy).sample(x, n_steps=3, seed=0).final)
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_results_can_be_used_in_autograd_whatever_the_mode(make):
    sampler = make(quadratic())
    with torch.inference_mode():
        x = torch.zeros(3, 3).double()
        beta = torch.ones(3).double()
        results = [
            sampler.sample(x, n_steps=2, seed=0, keep="trajectory", beta=beta),
            sampler.sample(n_samples=3, n_steps=2, seed=0, keep="moments"),
        ]
        tensors = [sampler.sample_chain(x, 2)]
    for result in results:
        tensors += [result.final, result.potential, *result.stats.values(), result.resume["x"]]
    tensors += [results[0].trajectory, results[1].moments.mean]
    assert not any(tensor.is_inference() for tensor in tensors)


def test_callbacks_come_at_draws_and_can_stop():
    counts = []
    sampler = MALA(quadratic(), 0.2)

    def callback(result):
        counts.append(result.n_draws)
        result.final.fill_(math.nan)  # a result is the caller's own
        return len(counts) == 3

    result = sampler.sample(
        n_samples=2, n_steps=600, thin=3, seed=0, burn_in=5, keep="trajectory", callback=callback
    )
    assert counts == [2, 4, 6]
    whole = sampler.sample(n_samples=2, n_steps=600, thin=3, seed=0, burn_in=5, keep="trajectory")
    assert torch.equal(result.trajectory, whole.trajectory[:, :6])
    rest = sampler.sample(resume=result.resume, n_steps=582, thin=3, keep="trajectory")
    assert torch.equal(rest.trajectory, whole.trajectory[:, 6:])


@pytest.mark.parametrize("error", (KeyboardInterrupt(), NumericalError("a", "b", "c"), OSError()))
@pytest.mark.parametrize(("at", "drawn"), ((4, 0), (30, 8)))
@pytest.mark.parametrize("keep", ("final", "trajectory", "moments"))
def test_an_interrupted_run_loses_nothing(error, at, drawn, keep):
    calls = [0]
    inner = quadratic()

    def energy(x):
        calls[0] += 1
        if calls[0] == at + 1:
            raise error
        return inner(x)

    arguments = {"n_samples": 2, "dim": 3, "thin": 3, "burn_in": 5, "seed": 0, "keep": keep}
    sampler = MALA(as_energy(energy), 0.2, engine="torch")
    with pytest.raises(type(error)) as caught:
        sampler.sample(n_steps=60, **arguments)
    partial = caught.value.result
    whole = sampler.sample(n_steps=60, **arguments)
    rest = sampler.sample(resume=partial.resume, n_steps=60 - 3 * drawn, thin=3, keep=keep)
    assert torch.equal(rest.final, whole.final)
    if keep == "trajectory":
        assert partial.trajectory.shape == (2, drawn, 3)
        joined = torch.cat([partial.trajectory, rest.trajectory], 1)
        assert torch.equal(joined, whole.trajectory)
        assert partial.stats.keys() == whole.stats.keys()
        for name in whole.stats.keys() - {"step_size"}:
            joined = torch.cat([partial.stats[name], rest.stats[name]], 1)
            assert torch.equal(joined, whole.stats[name])
            assert partial.stats[name].dtype == whole.stats[name].dtype
    if keep == "moments" and drawn:
        merged = partial.moments.merged(rest.moments)
        torch.testing.assert_close(merged.mean, whole.moments.mean)
        torch.testing.assert_close(merged.variance, whole.moments.variance)


def test_a_run_without_draws_has_columns_of_length_0(make_in_torch):
    sampler = make_in_torch(quadratic(dtype=torch.float32))
    expected = sampler.sample(n_samples=2, n_steps=1, seed=0, keep="trajectory")
    calls = [0]

    def forward(x, inner=sampler.energy.forward):
        calls[0] += 1
        if calls[0] == 2:
            raise OSError
        return inner(x)

    sampler.energy.forward = forward
    with pytest.raises(OSError) as caught:
        sampler.sample(n_samples=2, n_steps=1, seed=0, keep="trajectory")
    partial = caught.value.result
    assert partial.trajectory.shape == (2, 0, 3)
    assert partial.stats.keys() == expected.stats.keys()
    for name, values in partial.stats.items():
        assert values.dtype == expected.stats[name].dtype
        assert name == "step_size" or values.shape == (2, 0)


def test_a_schedule_that_fails_loses_no_step_before():
    def schedule(step):
        return 0.1 / (step < 10)

    sampler = LangevinDynamics(quadratic(), schedule)
    with pytest.raises(ZeroDivisionError) as caught:
        sampler.sample(n_samples=2, n_steps=20, seed=0, keep="trajectory")
    before = LangevinDynamics(quadratic(), 0.1).sample(
        n_samples=2, n_steps=10, seed=0, keep="trajectory"
    )
    assert torch.equal(caught.value.result.trajectory, before.trajectory)


def test_a_run_cut_short_holds_its_own_draws_alone():
    result = MALA(quadratic(), 0.2).sample(
        n_samples=2, n_steps=1000, seed=0, keep="trajectory", callback=lambda result: True
    )
    for values in (result.trajectory, result.potential, result.stats["acceptance_rate"]):
        assert values.untyped_storage().nbytes() == values.numel() * values.element_size()
    assert result.trajectory.shape == (2, 10, 3)


def test_a_callback_may_use_the_sampler(make):
    """The outer run is as if alone; the inner one has other random numbers."""
    runs, inner = [], []
    for uses in (False, True):
        sampler = make(quadratic())
        sampler.load_state_dict({"key": 5, "counter": 0, "step_size": None})

        def callback(result, uses=uses, sampler=sampler):
            if uses and not inner:
                inner.append(sampler.sample_chain(torch.zeros(4, 3).double(), 1))

        x = torch.zeros(4, 3).double()
        runs.append(sampler.sample(x, n_steps=100, keep="trajectory", callback=callback))
    assert torch.equal(runs[0].trajectory, runs[1].trajectory)
    start = make(quadratic())
    start.load_state_dict({"key": 5, "counter": 100, "step_size": None})
    assert torch.equal(inner[0], start.sample_chain(torch.zeros(4, 3).double(), 1))
    assert sampler.state_dict()["counter"] == 101


def test_moments_and_rates_are_summed_in_float64():
    """In float32 each of the many additions would round."""
    moved = [0]

    class Marching(RandomWalk):
        def transition(self, state, context):
            moved[0] += 1
            x = torch.full_like(state.x, 1000.0 + moved[0] % 2)
            rate = torch.full_like(state.energy, 0.1)
            statistics = {"acceptance_rate": rate, "diverging": rate > 1, "n_steps": 1}
            return type(state)(x, state.energy, state.gradient), statistics

    n = 20_001
    result = Marching(lambda x: x.square().sum(1), 0.1).sample(
        torch.zeros(1, 1), n_steps=n, seed=0, keep="moments"
    )
    assert result.moments.mean.dtype == torch.float32
    assert abs(result.moments.mean.item() - 1000.5) < 1e-4
    assert abs(result.moments.variance.item() - 0.25 * n / (n - 1)) < 1e-6
    assert result.stats["acceptance_rate"].dtype == torch.float32
    assert abs(result.stats["acceptance_rate"].item() - 0.1) < 1e-8


def test_progress_bar(capsys):
    sampler = LangevinDynamics(quadratic(), 0.1)
    sampler.sample(n_samples=1, n_steps=5, seed=0)
    sampler.sample(n_samples=1, n_steps=5, seed=0, progress=False)
    assert capsys.readouterr() == ("", "")
    sampler.sample(n_samples=1, n_steps=5, seed=0, progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert "step" in output.err


X = torch.zeros(4, 3, dtype=torch.float64)


def test_beta_in_every_form(make):
    values = np.array([0.1, 0.7, 1.0, 3.0])
    values.flags.writeable = False
    forms = (torch.from_numpy(values.copy()), values, values[::-1][::-1], values.tolist())
    runs = [make(quadratic()).sample(X, n_steps=3, seed=0, beta=beta).final for beta in forms]
    assert all(torch.equal(run, runs[0]) for run in runs)
    numbers = (0.1, np.float64(0.1), np.array(0.1), torch.tensor(0.1, dtype=torch.float64))
    for beta in numbers:
        final = make(quadratic()).sample(X, n_steps=3, seed=0, beta=beta).final
        whole = make(quadratic()).sample(X, n_steps=3, seed=0, beta=[0.1] * 4).final
        torch.testing.assert_close(final, whole, rtol=1e-12, atol=0)


def test_resume_stands_alone():
    sampler = MALA(quadratic(), 0.2)
    resume = sampler.sample(X, n_steps=1, seed=0).resume
    for other in (
        {"x_init": X},
        {"seed": 1},
        {"n_samples": 4},
        {"dim": 3},
        {"first_chain": 1},
        {"beta": 1.0},
    ):
        with pytest.raises(ConfigurationError, match=next(iter(other))):
            sampler.sample(resume=resume, n_steps=1, **other)
    with pytest.raises(ConfigurationError, match="MALA"):
        LangevinDynamics(quadratic(), 0.2).sample(resume=resume, n_steps=1)
    with pytest.raises(ConfigurationError, match="target_acceptance"):
        MALA(quadratic(), 0.2, target_acceptance=0.5).sample(resume=resume, n_steps=1)
    with pytest.raises(ShapeError):
        MALA(quadratic(2), 0.2).sample(resume=resume, n_steps=1)


def test_settings_can_be_read_and_set(make):
    sampler = make(quadratic())
    sampler.step_size = 0.01
    assert sampler.step_size == 0.01
    for wrong in (0, -1, math.nan, math.inf, "x"):
        with pytest.raises(EBMError, match="step_size"):
            sampler.step_size = wrong


def test_every_event_shape_and_dtype(make):
    for event in ((), (1,), (2, 3), (2, 1, 2)):
        for dtype in (torch.float32, torch.float64):
            sampler = make(
                as_energy(lambda x: x.square().flatten(1).sum(1) if x.ndim > 1 else x.square())
            )
            x = torch.zeros(3, *event, dtype=dtype)
            result = sampler.sample(x, n_steps=4, seed=0, keep="trajectory", beta=torch.ones(3))
            assert result.trajectory.shape == (3, 4, *event)
            assert result.trajectory.dtype == result.potential.dtype == dtype
