"""How long graphs, their memory and what they hold live."""

import gc
import warnings
import weakref

import pytest
import torch
from cases import SAMPLERS, close, pair, plain, states
from emulation import EmulatedGraph, NoOrder
from torch import Tensor

from ebm_core import as_energy
from ebm_samplers import (
    MALA,
)
from ebm_samplers.captured import CapturedChains, graph
from ebm_samplers.captured.catalogue import _catalogues
from ebm_samplers.captured.noise import PlacedNoise
from ebm_samplers.chains import TorchChains
from ebm_samplers.fused.cuda._backend import CudaUnavailableError


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


def test_captures_end(opened):
    captured, _ = pair(SAMPLERS["langevin"])
    for _ in range(4):
        for n in range(5, 12):
            captured.sample(states(n), n_steps=40, seed=1)
    assert EmulatedGraph.count < 60
    assert TorchChains in opened


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


@pytest.mark.parametrize("collects", (True, False))
def test_nothing_is_collected_in_a_capture(collects, monkeypatch):
    def missing():
        raise CudaUnavailableError("numba-cuda is missing", "it", "install it")

    monkeypatch.setattr("ebm_samplers.fused.cuda._backend.numba_cuda", missing)
    collected = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(KeyError), graph._nothing_is_freed(torch.device("cpu")):
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == collects
    finally:
        (gc.enable if collected else gc.disable)()


def test_a_strict_rehearsal_is_no_warning(monkeypatch):
    modes = []

    def set_mode(mode):
        modes.append(mode)
        warnings.warn("a prototype feature", UserWarning, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    graph._set_debug_mode("error")
    assert modes == ["error"]
