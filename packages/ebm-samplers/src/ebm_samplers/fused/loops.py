"""Innermost loops that LLVM leaves as loops until it has made SIMD code of them.

LLVM unrolls short loops of constant length before it looks for SIMD. A loop over 16 or 32 lanes
then is gone, and the loop over rows around it is taken for SIMD instead, with strided loads: up to
16 times slower, and slow to compile. `keep_loops` marks them as not to be unrolled.
"""

from typing import Any

import llvmlite.ir as ir
from llvmlite.ir.values import MDValue

from ebm_samplers.fused.values import Instruction


@Instruction
def keep_loops(builder: ir.IRBuilder) -> None:
    """The innermost loops before this call, its function's last statement, stay loops."""
    for branch in _innermost(builder.function.blocks):
        unroll = [ir.MetaDataString(builder.module, "llvm.loop.unroll.disable")]
        setting = builder.module.add_metadata(unroll)
        mark = MDValue(builder.module, [], name=str(len(builder.module.metadata)))
        mark.operands = (mark, setting)  # LLVM wants a loop's mark to name itself first
        branch.set_metadata("llvm.loop", mark)


def _innermost(blocks: list[Any]) -> list[Any]:
    """The branches that close the loops without loops in them."""
    after = {
        block: [o for o in block.terminator.operands if isinstance(o, ir.Block)]
        for block in blocks
        if block.terminator is not None
    }
    before: dict[Any, list[Any]] = {}
    for block, targets in after.items():
        for target in targets:
            before.setdefault(target, []).append(block)
    closing = _closing(blocks, after)
    heads = {head for _, head in closing}
    found = []
    for block, head in closing:
        inside, stack = {head}, [block]
        while stack:
            part = stack.pop()
            if part not in inside:
                inside.add(part)
                stack.extend(before.get(part, []))
        if inside & heads == {head}:
            found.append(block.terminator)
    return found


def _closing(blocks: list[Any], after: dict[Any, list[Any]]) -> list[tuple[Any, Any]]:
    """The edges that lead back, with the heads of their loops."""
    closing, seen, path = [], set(), set()
    for first in blocks:  # the entry is closed last, so that it leads nowhere as yet
        stack = [(first, False)]
        while stack:
            block, left = stack.pop()
            if left:
                path.discard(block)
            elif block not in seen:
                seen.add(block)
                path.add(block)
                stack.append((block, True))
                for target in after.get(block, []):
                    if target in path:
                        closing.append((block, target))
                    elif target not in seen:
                        stack.append((target, False))
    return closing
