"""The numbers of an energy that no state changes, packed for its kernel at each call."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ebm_samplers.fused.trace import CannotFuse, Ref, Trace


@dataclass(frozen=True)
class Parameters:
    """How the flat parameter array of a kernel is made of the values of a trace.

    Attributes:
        blocks: Number of the value and first element of its block, for each block.
        size: Elements in all.
    """

    blocks: tuple[tuple[int, int], ...]
    size: int


def parameters_now(trace: Trace, layout: Parameters, dtype: torch.dtype) -> NDArray[Any]:
    """The flat parameters: leaves as they are now, and what torch computes from them.

    Raises:
        CannotFuse: If a leaf is gone, or has another shape or dtype than when it was traced.
    """
    known: dict[int, Tensor] = {}

    def now(number: int) -> Tensor:
        if number not in known:
            value = trace.values[number]
            if value.fixed:
                tensor: Any = value.example
            elif value.leaf is not None:
                tensor = value.leaf.now()
                if (
                    tensor is None
                    or tensor.shape != value.example.shape
                    or tensor.dtype != value.example.dtype
                ):
                    raise CannotFuse(
                        f"the tensor {value.leaf.key!r} was replaced by one of another kind"
                    )
            else:
                call = value.call
                assert call is not None
                result = call.function(*replaced(call.args), **replaced(call.kwargs))
                tensor = result[value.part] if isinstance(result, tuple | list) else result
            known[number] = tensor
        return known[number]

    def replaced(tree: Any) -> Any:
        if isinstance(tree, Ref):
            return now(tree.index)
        if isinstance(tree, tuple | list):
            return type(tree)(replaced(part) for part in tree)
        if isinstance(tree, dict):
            return {key: replaced(part) for key, part in tree.items()}
        return tree

    out = np.empty(max(layout.size, 1), np.float64 if dtype == torch.float64 else np.float32)
    with torch.no_grad():
        for number, first in layout.blocks:
            tensor = now(number).detach()
            if tensor.dtype == torch.bfloat16:  # unknown to NumPy
                tensor = tensor.float()
            out[first : first + tensor.numel()] = tensor.numpy().reshape(-1)
    return out
