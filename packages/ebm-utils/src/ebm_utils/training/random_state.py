"""The global random states of torch, NumPy and Python, as tensors and numbers."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


class RandomState:
    """Captures and restores the global generators, and one further torch generator."""

    @staticmethod
    def capture(generator: torch.Generator | None = None) -> dict[str, Any]:
        """The states of all, loadable with ``weights_only=True``."""
        legacy: Any = np.random.get_state()  # noqa: NPY002 - what users' data may draw from
        kind, keys, position, has_normal, normal = legacy
        version, words, python_normal = random.getstate()
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_normal, normal),
            "python": (version, torch.tensor(words), python_normal),
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["cuda"] = torch.cuda.get_rng_state_all()
        if generator is not None:
            state["generator"] = generator.get_state()
        return state

    @staticmethod
    def restore(state: Mapping[str, Any], generator: torch.Generator | None = None) -> None:
        """Put them back; a CUDA device that is not there any more is left out."""
        torch.set_rng_state(state["torch"])
        kind, keys, position, has_normal, normal = state["numpy"]
        words = keys.numpy().astype(np.uint32)
        np.random.set_state((kind, words, position, has_normal, normal))  # noqa: NPY002
        version, python_words, python_normal = state["python"]
        random.setstate((version, tuple(python_words.tolist()), python_normal))
        if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        if generator is not None and "generator" in state:
            generator.set_state(state["generator"])
