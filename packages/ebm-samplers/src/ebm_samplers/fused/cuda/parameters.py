"""The numbers of an energy that no state changes, packed on its device at each call.

Everything is computed anew each time, without a look at what has changed: to find that out would
need the host to wait for the device.
"""

from typing import Any

import torch
from torch import Tensor

from ebm_samplers.fused.algebra import check_symmetric
from ebm_samplers.fused.parameters import CHANGED, Parameters
from ebm_samplers.fused.trace import CannotFuse, Leaf


class CudaParameters(Parameters):
    """The flat parameter tensor of a kernel.

    Args:
        plan: Where the numbers come from, and where they go.
    """

    def __init__(self, plan: Parameters) -> None:
        self.trace, self.size = plan.trace, plan.size
        example = self.trace.values[0].example
        self.options: dict[str, Any] = {"dtype": example.dtype, "device": example.device}
        self.order = [(b.number, b.turned) for b in sorted(plan.blocks, key=lambda b: b.start)]
        self.views = {}
        self.tested: tuple[Any, ...] | None = None
        self.constant = not any(value.leaf for value in self.trace.values)
        self.packed: Tensor | None = None

    def now(self) -> Any:
        """The parameters as they are now.

        Raises:
            CannotFuse: If a leaf is gone, or has another shape or dtype than when it was traced; or
                if the kernel rests on properties that the numbers no longer have.
        """
        if self.packed is not None and self.constant:
            return self.packed
        self.views.clear()
        known: dict[int, Tensor] = {}
        self._check_leaves()
        parts = []
        for number, turned in self.order:
            tensor = self._tensor(number, known)
            parts.append((tensor.mT if turned else tensor).reshape(-1).to(**self.options))
        self._check_what_stays(known)
        packed = torch.cat(parts) if parts else torch.zeros(1, **self.options)
        self.packed = packed
        return packed

    def _check_leaves(self) -> None:
        for value in self.trace.values:
            if value.leaf is not None:
                example, tensor = value.example, value.leaf.now()
                kind = (example.shape, example.dtype, example.device)
                if tensor is None or (tensor.shape, tensor.dtype, tensor.device) != kind:
                    raise CannotFuse(
                        f"the tensor {value.leaf.key!r} was replaced by one of another kind"
                    )

    def _check_what_stays(self, known: dict[int, Tensor]) -> None:
        """Matrices that must stay well-conditioned and constants, if a leaf has another version."""
        versions = tuple(_version(v.leaf) for v in self.trace.values if v.leaf)
        if self.tested == versions:
            return
        for ref in self.trace.symmetric:
            check_symmetric(self._tensor(ref.index, known))
        for ref, was in self.trace.constants:
            if not torch.equal(self._tensor(ref.index, known), was):
                raise CannotFuse(CHANGED)
        self.tested = versions


def _version(leaf: Leaf) -> tuple[int, int]:
    tensor = leaf.now()
    assert tensor is not None
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
