"""Which engine "auto" takes on a device: by trial, once for each energy and number of chains."""

import math
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "captured"))  # for emulation
from emulation import EmulatedGraph, emulate

from ebm_samplers.fused.cuda import trial
from ebm_samplers.fused.cuda.trial import EVALUATIONS, LAUNCHES, seconds, tried
from ebm_samplers.fused.trace import CannotFuse

DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("EBM_SAMPLERS_CACHE_DIR", str(tmp_path))


@pytest.fixture
def device(monkeypatch):
    """A device whose graphs are emulated, and whose clock is the host's."""

    def timed(launch, on):
        begin = time.perf_counter()
        launch()
        return time.perf_counter() - begin

    emulate(monkeypatch)
    EmulatedGraph.count = 0
    monkeypatch.setattr(EmulatedGraph, "may_fail", False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda on: "a device")
    monkeypatch.setattr(trial, "_timed", timed)
    monkeypatch.setattr(trial, "CLEAR", math.inf)


def idle():
    pass


def test_work_is_issued_once_into_a_graph(device):
    x, issued = torch.zeros(3), []

    def work():
        issued.append(1)
        x.add_(1)

    of_kernel, of_other = seconds(idle, work, DEVICE)
    assert 0 < of_kernel < of_other < 1
    assert len(issued) == 2 + EVALUATIONS  # at first, rehearsed, captured
    assert x[0] == 2 + (1 + LAUNCHES) * EVALUATIONS
    assert EmulatedGraph.count == 2


def test_work_that_waits_for_the_device_is_issued_anew(device):
    x, issued = torch.ones(3), []

    def work():
        issued.append(1)
        x.sum().item()

    assert 0 < seconds(idle, work, DEVICE)[1] < 1
    assert EmulatedGraph.count == 1
    assert len(issued) == 2 + (1 + LAUNCHES) * EVALUATIONS


def test_the_longer_work_takes_longer(device):
    x = torch.randn(300, 300)
    short, long = seconds(lambda: x @ x, lambda: [x @ x for _ in range(10)], DEVICE)
    assert long > 3 * short


@pytest.mark.parametrize("error", (torch.OutOfMemoryError, RuntimeError("CUBLAS_ALLOC_FAILED")))
def test_where_torch_fails_its_kernel_is_quicker(device, error, tmp_path):
    def work():
        raise error

    trial = tried("a", idle, work, 100, DEVICE)
    assert trial.torch == math.inf > trial.kernel
    assert not list(tmp_path.iterdir())  # other processes may have more memory


def test_where_one_is_far_quicker_once_is_enough(device, monkeypatch):
    times = iter((1.0, 3.9, 1.1, 5.0, 1.0, 4.1))
    monkeypatch.setattr(trial, "_timed", lambda launch, on: next(times))
    monkeypatch.setattr(trial, "CLEAR", 4.0)
    monkeypatch.setattr(trial, "LAUNCHES", 2)
    assert seconds(idle, idle, DEVICE) == (1 / EVALUATIONS, 3.9 / EVALUATIONS)
    assert seconds(idle, idle, DEVICE) == (1 / EVALUATIONS, 4.1 / EVALUATIONS)


def test_a_kernel_that_cannot_be_captured_is_not_compared(device, tmp_path):
    found = tried("a", torch.ones(()).item, idle, 100, DEVICE)
    assert found.torch == math.inf > found.kernel
    assert not list(tmp_path.iterdir())


def test_where_the_kernel_fails_there_is_no_choice(device):
    def work():
        raise CannotFuse("its kernel does not run")

    with pytest.raises(CannotFuse, match="does not run"):
        seconds(work, idle, DEVICE)


def given(monkeypatch, *found):
    """Trials find these, one after the other; notes what was tried."""
    tried, left = [], list(found)
    monkeypatch.setattr(trial, "seconds", lambda *how: tried.append(how) or left.pop(0))
    return tried


def test_one_trial_for_all_processes(device, monkeypatch):
    asked = given(monkeypatch, *[(1.0, 2.0)] * 5)
    first = tried("a", "kernel", "torch", 100, DEVICE)
    assert (first.kernel, first.torch, first.n_chains) == (1, 2, 100)
    assert "100 states in 2e+06 µs, its kernel in 1e+06" in str(first)
    assert tried("a", "kernel", "torch", 90, DEVICE) == first
    assert asked == [("kernel", "torch", DEVICE)]
    for about, n in (("b", 100), ("a", 200)):
        tried(about, "kernel", "torch", n, DEVICE)
    torch.set_float32_matmul_precision("high")
    try:
        tried("a", "kernel", "torch", 100, DEVICE)
    finally:
        torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda on: "another device")
    tried("a", "kernel", "torch", 100, DEVICE)
    assert len(asked) == 5


def test_the_first_of_several_processes_decides(device, monkeypatch):
    def meanwhile(*how):
        monkeypatch.setattr(trial, "seconds", lambda *how: (1.0, 2.0))
        tried("a", "kernel", "torch", 100, DEVICE)
        return 2.0, 1.0

    monkeypatch.setattr(trial, "seconds", meanwhile)
    assert tried("a", "kernel", "torch", 100, DEVICE)[:2] == (1, 2)


def test_a_damaged_verdict_is_found_anew(device, monkeypatch, tmp_path):
    given(monkeypatch, (1.0, 2.0), (2.0, 1.0))
    tried("a", "kernel", "torch", 100, DEVICE)
    (path,) = tmp_path.glob("fused_*.bin")
    path.write_bytes(path.read_bytes()[:-5])
    for _ in range(2):
        assert tried("a", "kernel", "torch", 100, DEVICE)[:2] == (2, 1)


def test_verdicts_are_kept_where_there_are_no_links(device, monkeypatch):
    def refused(*names):
        raise PermissionError

    monkeypatch.setattr("os.link", refused)
    given(monkeypatch, (1.0, 2.0))
    for _ in range(2):
        assert tried("a", "kernel", "torch", 100, DEVICE)[:2] == (1, 2)


def test_after_a_failed_capture_a_trial_is_of_this_process(device, monkeypatch, tmp_path):
    given(monkeypatch, (1.0, 2.0))
    monkeypatch.setattr("ebm_samplers.captured.graph._failed", ["a graph"])
    assert tried("a", "kernel", "torch", 100, DEVICE).torch == 2
    assert not list(tmp_path.iterdir())
