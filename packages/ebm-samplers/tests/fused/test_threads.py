"""Tiles shared among threads: torch's own, or Python's where those cannot be had."""

import ctypes
import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from targets import DoubleWell, perceptron

from ebm_samplers.fused import fused_energy, threads
from ebm_samplers.fused.native import Native

X = torch.randn(300, 2, generator=torch.Generator().manual_seed(4))
SETTINGS = {"n_steps": 20, "step_size": 0.01, "lengths": 4, "key": 3, "keep_draws": True, "thin": 5}
TEAMS = (
    pytest.param(
        True,
        marks=pytest.mark.skipif(threads._found() is None, reason="torch has no OpenMP of GNU's"),
    ),
    False,
)


@pytest.fixture(autouse=True)
def two(monkeypatch):
    """Two threads, for however little work."""
    for name in ("TEAM_WORK", "POOL_WORK"):
        monkeypatch.setattr(threads, name, 0.0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=TEAMS, ids=("torch's", "Python's"))
def team(request, monkeypatch):
    """Whose threads."""
    if not request.param:
        monkeypatch.setattr(threads, "_found", lambda: None)
    return request.param


def alone(fused, sampler, **settings):
    """The run of one thread."""
    torch.set_num_threads(1)
    try:
        return fused.run(sampler, X.numpy(), **SETTINGS | settings)
    finally:
        torch.set_num_threads(2)


@pytest.mark.parametrize("sampler", ("langevin", "underdamped", "mala", "hmc", "nuts"))
def test_change_no_number(sampler, team):
    fused = fused_energy(DoubleWell(), X, sampler)
    settings = {"friction": 0.7} if sampler == "underdamped" else {}
    want = alone(fused, sampler, **settings)
    for _ in range(3):
        have = fused.run(sampler, X.numpy(), **SETTINGS, **settings)
        assert np.isfinite(have.state).all()
        assert np.array_equal(have.state, want.state)
        assert np.array_equal(have.draws, want.draws)
        assert np.array_equal(have.statistics, want.statistics)


def test_have_memory_of_their_own(team):
    """A looped kernel works in arrays: two threads in one would spoil them."""
    fused = fused_energy(perceptron(), X, "langevin")
    want = alone(fused, "langevin", n_steps=100)
    have = fused.run("langevin", X.numpy(), **SETTINGS | {"n_steps": 100})
    assert np.array_equal(have.state, want.state)


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
def test_take_every_tile_once(team, n_tiles, n_threads):
    kernel = Noted()
    kernel.share(n_tiles, n_threads)
    tiles = [tile for _, first, last, _ in kernel.pieces for tile in range(first, last)]
    assert sorted(tiles) == list(range(n_tiles))
    assert len(kernel.pieces) == min(n_tiles, threads.PIECES * min(n_threads, n_tiles))
    rooms = {ident: room for room, *_, ident in kernel.pieces}
    assert all(rooms[ident] == room for room, *_, ident in kernel.pieces)
    assert len(set(rooms.values())) == len(rooms)
    assert all(abs(a - b) >= 100 for a, b in itertools.combinations(rooms.values(), 2))


def test_work_at_once(team):
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
            code = 0 if same and threads._team() is None else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (threads._team() is None) == (threads._found() is None)


def test_have_stopped_when_an_interrupt_arrives(monkeypatch):
    """Nothing writes into a run's arrays any more."""
    monkeypatch.setattr(threads, "_found", lambda: None)

    def slowly(first):
        if first == 0:
            raise KeyboardInterrupt
        time.sleep(0.05)

    kernel = Noted(slowly)
    with pytest.raises(KeyboardInterrupt):
        kernel.share(300, 2)
    assert len(kernel.pieces) == 2 * threads.PIECES - 1


def test_little_work_has_one_thread(monkeypatch):
    monkeypatch.setattr(threads, "TEAM_WORK", 100.0)
    monkeypatch.setattr(threads, "POOL_WORK", 1000.0)
    assert threads.threads_for(99.0) == 1
    assert threads.threads_for(1000.0) == 2
    assert threads.threads_for(100.0) == (1 if threads._found() is None else 2)
    monkeypatch.setattr(threads, "_found", lambda: None)
    assert threads.threads_for(999.0) == 1
