"""Which engine "auto" takes on a device: by trial, once for each energy and number of chains."""

import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "captured"))  # for emulation
from emulation import EmulatedGraph, emulate

from ebm_samplers.fused.cuda import trial
from ebm_samplers.fused.cuda.trial import EVALUATIONS, LAUNCHES, seconds, tried

DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path))


@pytest.fixture
def device(monkeypatch):
    """A device whose graphs are emulated, and whose clock is the host's."""

    def timed(launch):
        begin = time.perf_counter()
        launch()
        return time.perf_counter() - begin

    emulate(monkeypatch)
    EmulatedGraph.count = 0
    monkeypatch.setattr(EmulatedGraph, "may_fail", False)
    monkeypatch.setattr(torch.cuda, "device", lambda on: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda on: "a device")
    monkeypatch.setattr(trial, "_by_device", timed)


def test_work_is_issued_once_into_a_graph(device):
    x, issued = torch.zeros(3), []

    def work():
        issued.append(1)
        x.add_(1)

    assert 0 < seconds(work, DEVICE) < 1
    assert len(issued) == 1 + EVALUATIONS  # rehearsed, captured
    assert x[0] == 1 + (1 + LAUNCHES) * EVALUATIONS
    assert EmulatedGraph.count == 1


def test_work_that_waits_for_the_device_is_issued_anew(device):
    x, issued = torch.ones(3), []

    def work():
        issued.append(1)
        x.sum().item()

    assert 0 < seconds(work, DEVICE) < 1
    assert EmulatedGraph.count == 0
    assert len(issued) == 1 + (1 + LAUNCHES) * EVALUATIONS


def test_the_longer_work_takes_longer(device):
    x = torch.randn(300, 300)
    short, long = (seconds(lambda n=n: [x @ x for _ in range(n)], DEVICE) for n in (1, 10))
    assert long > 3 * short


def test_too_little_memory(device):
    def work():
        raise torch.OutOfMemoryError

    assert seconds(work, DEVICE) == math.inf


def test_one_trial_for_all_processes(device, monkeypatch):
    calls = []
    monkeypatch.setattr(trial, "seconds", lambda work, on: calls.append(work) or len(calls))
    first = tried("a", "kernel", "torch", 100, DEVICE)
    assert (first.kernel, first.torch, first.n_chains, calls) == (1, 2, 100, ["kernel", "torch"])
    assert tried("a", "kernel", "torch", 90, DEVICE) == first
    assert "100 states in 2e+06 µs, its kernel in 1e+06" in str(first)
    assert len(calls) == 2
    for source, n in (("b", 100), ("a", 200)):
        tried(source, "kernel", "torch", n, DEVICE)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda on: "another device")
    tried("a", "kernel", "torch", 100, DEVICE)
    assert len(calls) == 8
