"""The global random states of torch, NumPy and Python, as tensors and numbers."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def capture_random_state(generators: Sequence[torch.Generator] = ()) -> dict[str, Any]:
    """The states of the global generators, and of others, loadable with ``weights_only=True``."""
    legacy: Any = np.random.get_state()  # noqa: NPY002 - what users' data may draw from
    kind, keys, position, has_normal, normal = legacy
    version, words, python_normal = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_normal, normal),
        "python": (version, torch.tensor(words, device="cpu"), python_normal),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if generators:
        state["generators"] = [generator.get_state() for generator in generators]
    return state


def restore_random_state(
    state: Mapping[str, Any], generators: Sequence[torch.Generator] = ()
) -> None:
    """Put them back; a CUDA device that is not there any more is left out."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_normal, normal = state["numpy"]
    words = keys.numpy().astype(np.uint32)
    np.random.set_state((kind, words, position, has_normal, normal))  # noqa: NPY002
    version, python_words, python_normal = state["python"]
    random.setstate((version, tuple(python_words.tolist()), python_normal))
    if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, own in zip(generators, state.get("generators", ()), strict=False):
        generator.set_state(own)
