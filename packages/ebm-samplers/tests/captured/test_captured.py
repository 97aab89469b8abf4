"""The torch engine's CUDA graphs, emulated on the CPU: against steps that are issued one by one."""

import gc
import weakref
from dataclasses import dataclass, replace

import pytest
import torch
from emulation import EmulatedGraph, NoOrder, emulate
from torch import Tensor

from ebm_core import ConfigurationError, EnergyFunction, NumericalError, ShapeError, as_energy
from ebm_samplers import (
    MALA,
    NUTS,
    AnnealedLangevin,
    BlockGibbs,
    HamiltonianMonteCarlo,
    LangevinDynamics,
    MarkovSampler,
    State,
    Stream,
    UnderdampedLangevin,
    engines,
    metropolis,
    without_graphs,
)
from ebm_samplers.captured import CapturedChains
from ebm_samplers.captured.catalogue import _catalogues
from ebm_samplers.captured.chains import _leg
from ebm_samplers.captured.noise import PlacedNoise
from ebm_samplers.chains import Plan, TorchChains


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    emulate(monkeypatch)
    EmulatedGraph.count = 0


@pytest.fixture
def opened(monkeypatch):
    """The kinds of chains that were made, in order."""
    kinds = []

    def noting(*args):
        chains = original(*args)
        kinds.append(type(chains))
        return chains

    original = engines.open_chains
    monkeypatch.setattr("ebm_samplers.sampler.open_chains", noting)
    return kinds


class Network(EnergyFunction):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1)
        )
        self.scale = 1.0

    def forward(self, x):
        return self.scale * self.layers(x).squeeze(1) + x.square().sum(1) / 2


class Conditional(torch.nn.Module):
    """An energy with a noise level."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x, sigma):
        return self.energy(x) / (1 + sigma**2)


class Kicked(MarkovSampler):
    """Carries a momentum that it never forgets entirely."""

    @dataclass(frozen=True)
    class Moving(State):
        momentum: torch.Tensor
        carried = ("momentum",)

    adjusted = False
    statistics = ("n_steps",)

    def start(self, x, context):
        at = self.evaluate(x)
        momentum = (1 + context.step_size) * context.normals(Stream.MOMENTUM)
        return self.Moving(at.x, at.energy, at.gradient, momentum)

    def transition(self, state, context):
        kick = context.step_size * context.temper(state.gradient)
        momentum = 0.9 * state.momentum - kick + 0.1 * context.normals(Stream.NOISE)
        at = self.evaluate(state.x + context.step_size * momentum)
        return self.Moving(at.x, at.energy, at.gradient, momentum), {"n_steps": 1}


class Looking(MarkovSampler):
    """Asks the device for a number, which no graph can."""

    def transition(self, state, context):
        largest = float(state.x.abs().max())
        noise = context.normals(Stream.NOISE)
        proposal = self.evaluate(state.x + context.step_size / (1 + largest) * noise)
        verdict = metropolis(proposal.energy - state.energy, context.uniforms(Stream.ACCEPT))
        return verdict.choose(proposal, state), {
            "acceptance_rate": verdict.probability, "diverging": verdict.diverging, "n_steps": 1,
        }  # fmt: skip


MASS = torch.tensor([[2.0, 0.3], [0.3, 1.0]])
SAMPLERS = {
    "langevin": lambda e: LangevinDynamics(e, 0.05, 0.7),
    "cooling": lambda e: LangevinDynamics(e, lambda n: 0.1 / (1 + n), lambda n: 0.9**n),
    "annealed": lambda e: AnnealedLangevin(e, [4.0, 1.0], 0.1, steps_per_level=3),
    "of noise levels": lambda e: AnnealedLangevin(
        Conditional(e), [3.0, 2.0, 1.0], 0.1, steps_per_level=2, levels="noise"
    ),
    "underdamped": lambda e: UnderdampedLangevin(e, 0.1, 0.7),
    "mala": lambda e: MALA(e, 0.3),
    "adapting mala": lambda e: MALA(e, 0.3, target_acceptance=0.6),
    "hmc": lambda e: HamiltonianMonteCarlo(e, 0.3, 4),
    "hmc of one length": lambda e: HamiltonianMonteCarlo(e, 0.3, 3, jitter=0, mass=MASS),
    "kicked": lambda e: Kicked(e, lambda n: 0.1 + 0.01 * n),
}


def pair(make, energy=None):
    """A sampler that is captured, and one that is not, on one energy."""
    energy = energy or Network()
    samplers = make(energy), make(energy)
    for sampler in samplers:
        sampler.engine = "torch"
        sampler.load_state_dict(sampler.state_dict() | {"key": 2**63 + 5})
    return samplers


def plain(call):
    with without_graphs():
        return call()


def states(n=5):
    return torch.linspace(-1, 1, 2 * n).view(n, 2)


def close(have, want):
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_training_steps_are_those_of_single_steps(name, opened):
    captured, single = pair(SAMPLERS[name])
    optimizer = torch.optim.SGD(captured.energy.parameters(), 0.1)
    x = y = states()
    for _ in range(4):
        x = captured.sample_chain(x, 5)
        y = plain(lambda y=y: single.sample_chain(y, 5))
        close(x, y)
        if captured.adjusted:
            close(captured.acceptance_rate, single.acceptance_rate)
        close(torch.tensor(captured.state_dict()["step_size"] or 0.0),
              torch.tensor(single.state_dict()["step_size"] or 0.0))  # fmt: skip
        optimizer.zero_grad()
        captured.energy(x).sum().backward()
        optimizer.step()
    assert opened[2::2] == [CapturedChains] * 3
    assert opened[1::2] == [TorchChains] * 4


@pytest.mark.parametrize("keep", ("final", "trajectory", "moments"))
@pytest.mark.parametrize("name", SAMPLERS)
def test_results_are_those_of_single_steps(name, keep, opened):
    captured, single = pair(SAMPLERS[name])
    settings = {"n_steps": 45, "thin": 4, "burn_in": 7, "keep": keep, "seed": 3, "first_chain": 9}
    have = captured.sample(states(), **settings)
    want = plain(lambda: single.sample(states(), **settings))
    assert opened == [CapturedChains, TorchChains]
    assert have.stats.keys() == want.stats.keys()
    pairs = [(have.final, want.final), (have.potential, want.potential)]
    pairs += [(have.stats[name], values) for name, values in want.stats.items()]
    if keep == "trajectory":
        pairs.append((have.trajectory, want.trajectory))
    if keep == "moments":
        pairs.append((have.moments.mean, want.moments.mean))
        pairs.append((have.moments.sum_of_squares, want.moments.sum_of_squares))
        assert have.moments.count == want.moments.count
    for a, b in pairs:
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ("langevin", "kicked", "adapting mala"))
def test_a_run_can_be_cut(name):
    captured, _ = pair(SAMPLERS[name])
    whole = captured.sample(states(), n_steps=70, burn_in=10, seed=1)
    part = captured.sample(states(), n_steps=33, burn_in=10, seed=1)
    close(captured.sample(n_steps=37, resume=part.resume).final, whole.final)


def test_graphs_are_made_once(opened):
    captured, _ = pair(SAMPLERS["langevin"])
    x = states()
    counts = []
    for _ in range(6):
        x = captured.sample_chain(x, 10)
        counts.append(EmulatedGraph.count)
    assert opened == [TorchChains] + [CapturedChains] * 5
    assert counts[0] == 0
    assert len(set(counts[1:])) == 1


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
def test_dtypes(dtype):
    def run(engine=lambda call: call()):
        energy = Network().to(dtype)
        sampler = LangevinDynamics(energy, 0.05, engine="torch")
        return engine(lambda: sampler.sample(states().to(dtype), n_steps=40, seed=1).final)

    have, want = run(), run(plain)
    assert have.dtype == dtype
    torch.testing.assert_close(have, want, rtol=0.1 if dtype == torch.bfloat16 else 1e-9, atol=0.02)


def test_numbers_that_forward_holds_are_followed(opened):
    captured, single = pair(SAMPLERS["langevin"])
    x = states()
    for scale in (1.0, 1.0, 3.0, 3.0, -2.0):
        captured.energy.scale = scale
        close(captured.sample_chain(x, 5), plain(lambda: single.sample_chain(x, 5)))
    assert opened[2::2] == [CapturedChains] * 4


def test_energies_that_never_stay_are_left_to_single_steps(opened):
    captured, single = pair(SAMPLERS["langevin"])
    for scale in range(12):
        captured.energy.scale = float(scale)
        close(captured.sample_chain(states(), 5), plain(lambda: single.sample_chain(states(), 5)))
    assert opened[-2] == TorchChains


@pytest.mark.parametrize("name", ("langevin", "hmc"))
def test_replaced_parameters_and_settings_are_followed(name):
    captured, single = pair(SAMPLERS[name])
    energy = captured.energy

    def weights():
        energy.layers[0].weight = torch.nn.Parameter(torch.randn(16, 2))

    def data():
        energy.layers[2].weight.data = torch.randn(1, 16)

    def step_size():
        captured.step_size = single.step_size = 0.02

    def mass():
        captured.mass = single.mass = torch.tensor([3.0, 0.5])

    def mass_in_place():
        captured.mass.mul_(2)

    changes = [weights, data, step_size] + [mass, mass_in_place] * (name == "hmc")
    for change in (lambda: None, *changes):
        change()
        for _ in range(3):
            close(
                captured.sample_chain(states(), 5),
                plain(lambda: single.sample_chain(states(), 5)),
            )


def test_replaced_parameters_are_noticed_at_once():
    """Also if they are equal at first: the old ones would be followed no longer."""
    captured, _ = pair(SAMPLERS["langevin"])
    captured.sample(states(), n_steps=40, seed=1)
    before = EmulatedGraph.count
    layer = captured.energy.layers[0]
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    captured.sample(states(), n_steps=40, seed=1)
    assert EmulatedGraph.count == 2 * before


def test_temperatures_are_followed():
    captured, single = pair(SAMPLERS["mala"])
    for beta in (None, 0.5, torch.linspace(0.1, 1, 5), torch.linspace(1, 2, 5), 0.5):
        for _ in range(2):
            close(
                captured.sample_chain(states(), 5, beta=beta),
                plain(lambda beta=beta: single.sample_chain(states(), 5, beta=beta)),
            )


@pytest.mark.parametrize("make", (lambda e: Looking(e, 0.3), lambda e: NUTS(e, 0.3)))
def test_steps_that_look_at_numbers_are_not_captured(make, opened):
    captured, single = pair(make)
    for _ in range(3):
        close(captured.sample_chain(states(), 5), plain(lambda: single.sample_chain(states(), 5)))
    assert set(opened) == {TorchChains}


def test_chains_inside_of_others(opened):
    captured, single = pair(SAMPLERS["langevin"])

    def run(sampler):
        inner = []
        result = sampler.sample(
            states(), n_steps=200, thin=50, seed=1,
            callback=lambda r: inner.append(sampler.sample(states(), n_steps=40, seed=2).final),
        )  # fmt: skip
        return result.final, *inner

    for a, b in zip(run(captured), plain(lambda: run(single)), strict=True):
        close(a, b)
    assert opened[0] == CapturedChains
    assert opened[1] == TorchChains


def test_a_callback_stops_at_its_draw():
    captured, single = pair(SAMPLERS["mala"])
    settings = {"n_steps": 1000, "thin": 2, "keep": "trajectory", "seed": 1}

    def run(sampler):
        return sampler.sample(states(), callback=lambda r: r.trajectory.shape[1] > 40, **settings)

    have, want = run(captured), plain(lambda: run(single))
    assert have.trajectory.shape == want.trajectory.shape
    torch.testing.assert_close(have.trajectory, want.trajectory, rtol=1e-3, atol=1e-4)


def test_a_schedule_that_fails_loses_no_step():
    def schedule(step):
        return 0.1 if step < 50 else 1 / 0

    captured, _ = pair(lambda e: LangevinDynamics(e, schedule))
    with pytest.raises(ZeroDivisionError) as raised:
        captured.sample(states(), n_steps=100, keep="trajectory", seed=1)
    assert raised.value.result.trajectory.shape[1] == 50


def test_an_interrupted_run_ends_with_its_last_draw():
    def schedule(step):
        return 0.1 if step < 47 else 1 / 0

    captured, _ = pair(lambda e: LangevinDynamics(e, schedule))
    with pytest.raises(ZeroDivisionError) as raised:
        captured.sample(states(), n_steps=100, thin=5, seed=1)
    close(raised.value.result.final, captured.sample(states(), n_steps=45, seed=1).final)


@pytest.mark.parametrize("thin", (1, 3, 5, 32, 50, 64))
@pytest.mark.parametrize("keep", ("final", "moments"))
@pytest.mark.parametrize("stop", (None, 1, 4))
def test_a_leg_with_draws_ends_with_one(thin, keep, stop):
    done, plan = 0, Plan(thin, keep, 400 // thin, stop)
    while done < 400:
        n = _leg(plan, done, min(32, 400 - done))
        draws = (done + n) // thin - done // thin
        assert n > 0
        assert draws == 0 or (done + n) % thin == 0
        assert draws <= 1 or keep == "final"
        if stop is not None:
            assert done // (thin * stop) == (done + n - 1) // (thin * stop)
        done += n


def test_starts_that_are_not_finite():
    captured, _ = pair(SAMPLERS["langevin"])
    captured.sample(states(), n_steps=40, seed=1)
    x = states()
    x[1] = float("nan")
    with pytest.raises(NumericalError, match="1 of 5 start states"):
        captured.sample(x, n_steps=40, seed=1)


def test_energies_too_large_for_accept_tests():
    energy = Network()
    captured, _ = pair(SAMPLERS["mala"], (lambda x: energy(x) + 1e7))
    with pytest.raises(NumericalError, match="float64"):
        captured.sample(states(), n_steps=40, seed=1)


def test_energies_that_become_too_large():
    captured, _ = pair(lambda e: MALA(e, 0.3), as_energy(lambda x: -1e3 * x.sum(1)))
    with pytest.raises(NumericalError, match="float64"):
        captured.sample(states(), n_steps=40, seed=1)


def test_results_are_not_overwritten():
    captured, _ = pair(SAMPLERS["langevin"])
    captured.sample_chain(states(), 5)
    first = captured.sample_chain(states(), 5)
    kept = first.clone()
    captured.sample_chain(states() + 1, 5)
    assert torch.equal(first, kept)


def test_samplers_are_not_kept_alive():
    captured, _ = pair(SAMPLERS["hmc"])
    captured.sample(states(), n_steps=40, seed=1)
    seen = weakref.ref(captured), weakref.ref(captured.energy)
    del captured, _
    gc.collect()
    assert not any(ref() for ref in seen)


def test_a_copy_has_graphs_of_its_own():
    import copy

    captured, single = pair(SAMPLERS["langevin"])
    captured.sample(states(), n_steps=40, seed=1)
    other = copy.deepcopy(captured)
    with torch.no_grad():
        other.energy.layers[0].weight.mul_(2)
    close(
        captured.sample(states(), n_steps=40, seed=1).final,
        plain(lambda: single.sample(states(), n_steps=40, seed=1).final),
    )


def test_a_capture_that_fails_in_the_middle_of_a_run(monkeypatch, opened):
    class Alternating(MALA):
        """Looks at a number in some steps."""

        def transition(self, state, context):
            if EmulatedGraph.count > 3:
                float(state.x.sum())
            return super().transition(state, context)

    captured, single = pair(lambda e: Alternating(e, lambda n: 0.1 / (1 + n)))
    monkeypatch.setattr(EmulatedGraph, "may_fail", True)
    settings = {"n_steps": 60, "thin": 7, "burn_in": 5, "keep": "trajectory", "seed": 1}
    have = captured.sample(states(), **settings)
    assert EmulatedGraph.count == 4
    want = plain(lambda: single.sample(states(), **settings))
    close(have.trajectory, want.trajectory)
    close(have.stats["acceptance_rate"], want.stats["acceptance_rate"])
    close(have.stats["step_size"], want.stats["step_size"])
    close(
        captured.sample(n_steps=5, resume=have.resume).final,
        single.sample(n_steps=5, resume=want.resume).final,
    )
    assert opened[-1] == TorchChains


def test_shared_numbers_need_a_branch(opened):
    class Random(LangevinDynamics):
        def transition(self, state, context):
            state, statistics = super().transition(state, context)
            return self.evaluate(state.x + context.shared_uniform(Stream.LENGTH)), statistics

    class Told(Random):
        def branch(self, context):
            return context.shared_uniform(Stream.LENGTH)

    for kind in (Random, Told):
        captured, single = pair(lambda e, kind=kind: kind(e, 0.1))
        for seed in (3, 4):
            want = plain(lambda s=single, seed=seed: s.sample(states(), n_steps=40, seed=seed))
            close(captured.sample(states(), n_steps=40, seed=seed).final, want.final)
    assert opened[1::2] == [TorchChains] * 2 + [CapturedChains] * 2


@pytest.mark.parametrize("once", (True, False))
def test_what_start_prepares_is_of_each_start(once):
    class Prepared(LangevinDynamics):
        def start(self, x, context):
            if not once or "scale" not in context.prepared:
                context.prepared["scale"] = x.abs().mean()
            return self.evaluate(x)

        def transition(self, state, context):
            state, statistics = super().transition(state, context)
            return replace(state, x=state.x * (1 + context.prepared["scale"])), statistics

    captured, single = pair(lambda e: Prepared(e, 0.01))
    for n, x in ((33, states() / 1e3), (40, states() / 1e2), (34, states() / 1e4)):
        close(
            captured.sample(x, n_steps=n, seed=1).final,
            plain(lambda x=x, n=n: single.sample(x, n_steps=n, seed=1).final),
        )


def test_attributes_that_change():
    class Attributes(LangevinDynamics):
        def transition(self, state, context):
            state, statistics = super().transition(state, context)
            return replace(state, x=state.x * self._factor + self.shift(1.0)), statistics

    captured, single = pair(lambda e: Attributes(e, 0.01))
    for factor, shift in ((0.5, 0.0), (0.7, 0.0), (0.7, 1.0)):
        for sampler in (captured, single):
            sampler._factor, sampler.shift = factor, None
            sampler.shift = lambda x, shift=shift: x + shift
        close(
            captured.sample(states(), n_steps=40, seed=1).final,
            plain(lambda: single.sample(states(), n_steps=40, seed=1).final),
        )


def test_attributes_whose_changes_go_unnoticed(opened):
    captured, _ = pair(SAMPLERS["langevin"])
    captured.numbers = {"a": 1}
    captured.sample(states(), n_steps=40, seed=1)
    assert opened == [TorchChains]


def test_an_energy_with_a_gradient_of_its_own():
    class Clipped(Network):
        clip = 1.0

        def energy_and_gradient(self, x, create_graph=False):
            energy, gradient = super().energy_and_gradient(x, create_graph)
            return energy, gradient.clamp(-self.clip, self.clip)

    captured, single = pair(SAMPLERS["langevin"], Clipped())
    for clip in (1.0, 0.1):
        captured.energy.clip = clip
        close(
            captured.sample(states(), n_steps=40, seed=1).final,
            plain(lambda: single.sample(states(), n_steps=40, seed=1).final),
        )


def test_an_interrupt_after_a_launch():
    captured, single = pair(SAMPLERS["langevin"])
    captured.sample(states(), n_steps=40, seed=1)
    launch, n = EmulatedGraph.launch, 0

    def interrupted(self):
        nonlocal n
        launch(self)
        n += 1
        if n == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmulatedGraph, "launch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            captured.sample(states(), n_steps=40, seed=1)
    close(
        captured.sample(states(), n_steps=40, seed=1).final,
        plain(lambda: single.sample(states(), n_steps=40, seed=1).final),
    )


def test_other_streams_wait_for_the_last_copy(monkeypatch):
    captured, _ = pair(SAMPLERS["mala"])
    captured.sample(states(), n_steps=40, seed=1)
    log = []
    monkeypatch.setattr(NoOrder, "log", log)
    original = Tensor.clone

    def clone(self, **more):
        log.append("copy")
        return original(self, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "clone", clone)
        captured.sample_chain(states(), 5)
        captured.sample_chain(states(), 5)
    inner = "".join({"begin": "b", "end": "e", "launch": "l", "copy": "c"}[w] for w in log)
    assert "b" in inner
    for part in inner.split("b")[1:]:
        assert part.rstrip("c").endswith("e")
        assert "ce" in part[part.rindex("l") :]


def test_noise_of_one_step_is_held(monkeypatch):
    held = []

    class Counting(MALA):
        def transition(self, state, context):
            result = super().transition(state, context)
            if isinstance(context._noise, PlacedNoise):
                held.append(len(context._noise._made))
            return result

    captured, _ = pair(lambda e: Counting(e, 0.1))
    captured.sample(states(), n_steps=40, seed=1)
    assert len(held) > 32
    assert max(held) == 2


def test_temperatures_in_turn_share_their_graphs():
    captured, _ = pair(SAMPLERS["mala"])
    counts = []
    for _ in range(3):
        for beta in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0):
            captured.sample(states(), n_steps=40, seed=1, beta=beta)
        counts.append(EmulatedGraph.count)
    assert len(set(counts)) == 1


def test_captures_end(opened):
    captured, _ = pair(SAMPLERS["langevin"])
    for _ in range(4):
        for n in range(5, 12):
            captured.sample(states(n), n_steps=40, seed=1)
    assert EmulatedGraph.count < 60
    assert TorchChains in opened


def test_schedules_are_asked_once():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.1

    captured, _ = pair(lambda e: HamiltonianMonteCarlo(e, schedule, 4))
    captured.sample(states(), n_steps=64, seed=1)
    assert len(asked) < 3 * 64


def test_numbers_that_do_not_fit_the_streams():
    captured, _ = pair(SAMPLERS["langevin"])
    with pytest.raises(ConfigurationError, match="first_chain"):
        captured.sample(states(), n_steps=40, seed=1, first_chain=2**32)


def test_a_missing_chain_axis():
    captured, _ = pair(SAMPLERS["langevin"])
    with pytest.raises(ShapeError, match="None"):
        captured.sample(torch.zeros(2), n_steps=40, seed=1)


def test_a_kept_error_does_not_keep_the_graphs(opened):
    captured, _ = pair(SAMPLERS["langevin"])

    def fail(result):
        raise RuntimeError("kept")

    with pytest.raises(RuntimeError, match="kept") as kept:
        captured.sample(states(), n_steps=400, seed=1, callback=fail)
    captured.sample(states(), n_steps=40, seed=1)
    assert opened == [CapturedChains] * 2
    assert kept.value.result is not None


def test_memory_that_is_read_is_held():
    net = torch.nn.Linear(2, 1)
    captured, _ = pair(SAMPLERS["langevin"], as_energy(lambda x: net(x).squeeze(1)))
    captured.sample(states(), n_steps=40, seed=1)
    old = net.weight.data_ptr()
    net.weight.data = torch.randn(1, 2)
    gc.collect()
    (catalogue,) = (c for s, c in _catalogues.items() if s is captured)
    (recording,) = catalogue._recordings.values()
    assert old in {tensor.data_ptr() for tensor in recording._inputs}


def test_explanations(monkeypatch):
    captured, _ = pair(SAMPLERS["langevin"])
    assert "as CUDA graphs" in str(captured.explain(states()))
    looking, _ = pair(lambda e: Looking(e, 0.3))
    looking.sample(states(), n_steps=40, seed=1)
    assert "_local_scalar_dense waits" in str(looking.explain(states()))
    captured.numbers = {}
    assert "'numbers'" in captured.explain(states()).graphs


def test_autocast_is_left_to_single_steps(opened, monkeypatch):
    monkeypatch.setattr("torch.is_autocast_enabled", lambda device="cuda": device == "cuda")
    captured, _ = pair(SAMPLERS["langevin"])
    captured.sample(states(), n_steps=40, seed=1)
    assert opened == [TorchChains]


@pytest.mark.parametrize("dtype", (torch.int8, torch.float32))
@pytest.mark.parametrize("beta", (None, 0.5))
def test_block_gibbs_goes_step_by_step(opened, dtype, beta):
    """A step has several uniforms a chain, which graphs do not offer; integers are no obstacle."""

    class Machine(torch.nn.Module):
        support, event_shape = torch.distributions.constraints.boolean, torch.Size([4])

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(-2, 2, 12).view(3, 4))
            self.visible_bias = torch.nn.Parameter(torch.zeros(4))
            self.hidden_bias = torch.nn.Parameter(torch.ones(3))

        def forward(self, v):
            inputs = v.to(self.weight.dtype) @ self.weight.T + self.hidden_bias
            return -torch.nn.functional.softplus(inputs).sum(1)

    x = torch.zeros(9, 4, dtype=dtype)
    sampler = BlockGibbs(Machine())
    options = {"n_steps": 40, "seed": 0, "beta": beta, "keep": "trajectory"}
    result = sampler.sample(x, **options)
    with without_graphs():
        want = sampler.sample(x, **options)
    assert torch.equal(result.trajectory, want.trajectory)
    assert set(opened) == {TorchChains}
