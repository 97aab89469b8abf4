"""Tiles shared among threads: torch's own, or Python's where those cannot be had."""

import ctypes
import itertools
import os
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from targets import DoubleWell, perceptron

from ebm_core import as_energy
from ebm_samplers import NUTS
from ebm_samplers.fused import chains, fused_energy, threads
from ebm_samplers.fused.codegen import ALIGNED
from ebm_samplers.fused.kernel import Kernel
from ebm_samplers.fused.native import Native

X = torch.randn(300, 2, generator=torch.Generator().manual_seed(4))
SETTINGS = {"n_steps": 20, "step_size": 0.01, "lengths": 4, "key": 3, "keep_draws": True, "thin": 5}
NO_TEAM = pytest.mark.skipif(
    threads._team_of_torch() is None, reason="torch has no OpenMP of GNU's interface"
)
TEAMS = (pytest.param(True, marks=NO_TEAM), False)


@pytest.fixture(autouse=True)
def two(monkeypatch):
    """Two threads, for however little work."""
    for name in ("TEAM_WORK", "POOL_WORK"):
        monkeypatch.setattr(threads, name, 0.0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=TEAMS, ids=("torch's", "Python's"))
def shared(request, monkeypatch):
    """The calls that threads share, by torch's or Python's."""
    calls, share = [], threads.Call.share

    def noted(call, n_threads):
        calls.append(n_threads)
        share(call, n_threads)

    monkeypatch.setattr(threads.Call, "share", noted)
    if not request.param:
        monkeypatch.setattr(threads, "_team_of_torch", lambda: None)
    return calls


def alone(fused, sampler, **settings):
    """The run of one thread."""
    torch.set_num_threads(1)
    try:
        return fused.run(sampler, X.numpy(), **SETTINGS | settings)
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize("sampler", ("langevin", "underdamped", "mala", "hmc", "nuts"))
def test_change_no_number(sampler, shared):
    fused = fused_energy(DoubleWell(), X, sampler)
    settings = {"friction": 0.7} if sampler == "underdamped" else {}
    want = alone(fused, sampler, **settings)
    shared.clear()
    for _ in range(3):
        have = fused.run(sampler, X.numpy(), **SETTINGS, **settings)
        assert np.isfinite(have.state).all()
        assert np.array_equal(have.state, want.state)
        assert np.array_equal(have.draws, want.draws)
        assert np.array_equal(have.statistics, want.statistics)
    assert shared == [2, 2, 2]


def test_have_memory_of_their_own(shared):
    """A looped kernel works in arrays: two threads in one would spoil them."""
    fused = fused_energy(perceptron(), X, "langevin")
    want = alone(fused, "langevin", n_steps=100)
    shared.clear()
    have = fused.run("langevin", X.numpy(), **SETTINGS | {"n_steps": 100})
    assert np.array_equal(have.state, want.state)
    assert shared == [2]


class Noted:
    """A kernel that notes its calls: memory, first and last tile, and the thread.

    Args:
        before: Called first, with the first tile.
    """

    def __init__(self, before=lambda first: None):
        self.pieces = []

        def call(block, room, first, last):
            before(first)
            self.pieces.append((room, first, last, threading.get_ident()))

        self.c = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(call)
        address = ctypes.cast(self.c, ctypes.c_void_p).value
        self.native = Native(call, address, False, 0.0, None)

    def share(self, n_tiles, n_threads):
        threads.Call(self.native, b"12345678", 100, n_tiles).share(n_threads)


@pytest.mark.parametrize("n_threads", (2, 3, 8))
@pytest.mark.parametrize("n_tiles", (2, 3, 37, 1000))
def test_take_every_tile_once(shared, n_tiles, n_threads):
    torch.set_num_threads(n_threads)
    kernel = Noted()
    kernel.share(n_tiles, n_threads)
    tiles = [tile for _, first, last, _ in kernel.pieces for tile in range(first, last)]
    assert sorted(tiles) == list(range(n_tiles))
    assert len(kernel.pieces) == min(n_tiles, threads.PIECES * n_threads)
    rooms = {ident: room for room, *_, ident in kernel.pieces}
    assert all(rooms[ident] == room for room, *_, ident in kernel.pieces)
    assert len(set(rooms.values())) == len(rooms)
    assert all(abs(a - b) >= 100 for a, b in itertools.combinations(rooms.values(), 2))
    assert all(room % ALIGNED == 0 for room in rooms.values())


def test_work_at_once(shared):
    """Each waits for the other."""
    both = threading.Barrier(2, timeout=60)
    kernel = Noted(lambda first: both.wait())
    kernel.share(2, 2)
    assert len({ident for *_, ident in kernel.pieces}) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_after_a_fork_those_of_python_do_it():
    """Those of OpenMP are gone in the child; to ask for them would wait for ever."""
    fused = fused_energy(DoubleWell(), X, "langevin")
    want = fused.run("langevin", X.numpy(), **SETTINGS).state
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            same = np.array_equal(fused.run("langevin", X.numpy(), **SETTINGS).state, want)
            code = 0 if same and threads.team() is None else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (threads.team() is None) == (threads._team_of_torch() is None)


@pytest.fixture
def interruptible():
    """Ctrl-C is heard, also where it was ignored from the start, as in jobs of a shell."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread hears Ctrl-C")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("n_interrupts", (1, 3))
def test_have_stopped_when_interrupts_arrive(n_interrupts, monkeypatch):
    """Nothing writes into a run's arrays any more."""
    monkeypatch.setattr(threads, "_team_of_torch", lambda: None)
    began = threading.Event()

    def slowly(first):
        began.set()
        time.sleep(0.3)

    def interrupt():
        began.wait(60)
        for _ in range(n_interrupts):
            time.sleep(0.02)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    kernel, hand = Noted(slowly), threading.Thread(target=interrupt)
    hand.start()
    with pytest.raises(KeyboardInterrupt):
        try:
            kernel.share(300, 2)
        finally:
            n = len(kernel.pieces)
            while hand.is_alive():
                with suppress(KeyboardInterrupt):
                    hand.join()
    assert n in (1, 2)
    time.sleep(0.4)
    assert len(kernel.pieces) == n


def test_a_failure_ends_them_too(monkeypatch):
    monkeypatch.setattr(threads, "_team_of_torch", lambda: None)

    def fail(first):
        if first == 0:
            raise RuntimeError

    kernel = Noted(fail)
    with pytest.raises(RuntimeError):
        kernel.share(300, 2)


@NO_TEAM
def test_of_torch_live_on_when_there_are_few_tiles():
    """GNU's OpenMP ends threads that a call does not ask for, and starts others for the next."""
    torch.set_num_threads(4)
    idents, many = set(), Noted()
    for _ in range(10):
        Noted().share(2, 4)
        many.share(400, 4)
    idents = {ident for *_, ident in many.pieces}
    assert len(idents) <= 4


def test_trees_are_counted(monkeypatch):
    """What NUTS's trees take is learnt; the doublings that they may take say little of it."""
    works, run = [], Kernel.__call__

    def noted(kernel, work, given):
        works.append(work)
        run(kernel, work, given)

    monkeypatch.setattr(Kernel, "__call__", noted)
    monkeypatch.setattr(chains, "SECONDS", 1e-9)  # a leg for each transition
    energy = as_energy(lambda x: x.square().sum(1) / 2)
    sampler = NUTS(energy, lambda step: 0.5 if step < 2 else 0.05, engine="fused")
    result = sampler.sample(X, n_steps=5, keep="trajectory", seed=0)
    first, *_, last = works
    n_operations = fused_energy(energy, X, "nuts").n_operations
    taken = result.stats["n_steps"].double().mean(0)  # some 2^3 - 1, then some 2^6 - 1
    assert last / (len(X) * n_operations) == pytest.approx(taken[-2], rel=0.5, abs=15)
    assert last > 3 * first


def test_little_work_has_one_thread(monkeypatch):
    monkeypatch.setattr(threads, "TEAM_WORK", 100.0)
    monkeypatch.setattr(threads, "POOL_WORK", 1000.0)
    assert threads.threads_for(99.0) == 1
    assert threads.threads_for(1000.0) == 2
    assert threads.threads_for(100.0) == (1 if threads._team_of_torch() is None else 2)
    monkeypatch.setattr(threads, "_team_of_torch", lambda: None)
    assert threads.threads_for(999.0) == 1
