"""CUDA graphs as the CPU would have them: operations are recorded, and done again at each launch.

As on a device, capturing does nothing: what the body wrote is put back, and what it made is filled
with NaN until the graph is launched. A launch repeats the operations on the same memory with the
same numbers, whatever Python has come to mean since.
"""

from contextlib import contextmanager
from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ebm_samplers.captured.graph import WAITING, CannotCapture
from ebm_samplers.fused.noise import fill_rows


class Operations(TorchDispatchMode):
    """Records operations; refuses those that wait for a device."""

    def __init__(self):
        super().__init__()
        self.launches, self.made, self.written = [], {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in WAITING:
            assert EmulatedGraph.may_fail, "a capture was tried that fails"
            raise CannotCapture(func.overloadpacket.__name__)
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            self._note(argument, value)
        for argument in func._schema.arguments:
            if argument.name in kwargs:
                self._note(argument, kwargs[argument.name])
        result = func(*args, **kwargs)
        inputs = {memory(t) for t in tensors((args, kwargs))}
        own = [memory(t) not in inputs for t in tensors(result)]
        self.made |= {memory(t): t for t, new in zip(tensors(result), own, strict=True) if new}

        def again():
            results = tensors(func(*args, **kwargs))
            for new, out, mine in zip(results, tensors(result), own, strict=True):
                if mine:
                    out.copy_(new)

        self.launches.append(again)
        return result

    def _note(self, argument, value):
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes and isinstance(value, torch.Tensor) and memory(value) not in self.made:
            self.written.setdefault(memory(value), (value, value.clone()))


class EmulatedGraph:
    """Stands for `captured.graph.Graph`."""

    recording = None
    count = 0
    may_fail = False

    def __init__(self, body, stream, pool):
        EmulatedGraph.count += 1
        operations = Operations()
        EmulatedGraph.recording = operations
        try:
            with operations:
                self.result = body()
        finally:
            EmulatedGraph.recording = None
            for tensor, before in operations.written.values():
                tensor.copy_(before)
        for tensor in operations.made.values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
        self.launches = operations.launches

    def launch(self):
        NoOrder.log.append("launch")
        with torch.no_grad():
            for again in self.launches:
                again()


def kernel(work):
    """A kernel: its work is done now, or when the graph is launched."""
    recording = EmulatedGraph.recording
    if recording is None:
        work()
    else:
        recording.launches.append(work)


def fill_placed(out, uniform, stream, place, ahead):
    def work():
        key, first_chain, step = place.tolist()
        first = (step + ahead) * out.shape[1]
        fill_rows(out.numpy(), uniform, key % 2**64, stream, first_chain, first)

    kernel(work)


def move(x, velocity, h, spread, stream, place, ahead):
    out, noise = torch.empty_like(x), torch.empty_like(x).view(len(x), -1)
    fill_placed(noise, False, stream, place, ahead)
    kernel(lambda: out.copy_(x - h * velocity + spread * noise.view_as(x)))
    return out


class NoOrder:
    """There are no streams; notes what is asked for."""

    log: ClassVar[list[str]] = []

    def __init__(self, on):
        pass

    def begin(self):
        self.log.append("begin")

    def end(self):
        self.log.append("end")


@contextmanager
def here(stream, strictly):
    yield


def emulate(monkeypatch):
    """Let chains on the CPU be captured."""
    graph, noise = "ebm_samplers.captured.graph", "ebm_samplers.fused.cuda.noise"
    monkeypatch.setattr("ebm_samplers.engines.captured_on", lambda device: True)
    monkeypatch.setattr(f"{graph}.Graph", EmulatedGraph)
    monkeypatch.setattr(f"{graph}.Order", NoOrder)
    monkeypatch.setattr(f"{graph}.rehearsing", here)
    monkeypatch.setattr(f"{graph}.capture_stream", lambda on: None)
    monkeypatch.setattr(f"{graph}.memory_pool", lambda: None)
    monkeypatch.setattr(f"{noise}.fill_placed", fill_placed)
    monkeypatch.setattr(f"{noise}.move", move)


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


def tensors(values):
    """All tensors in a structure, in order."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
