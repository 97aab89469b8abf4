"""Kernels broken on purpose."""

import re

from ebm_samplers.fused import codegen


def break_kernels(patch, *edits):
    """Kernels generated from now on; returns the patterns found in their texts."""
    right, found = codegen.compiled_text, set()

    def wrong(kernel):
        text = right(kernel)
        for pattern, replacement in edits:
            text, n = re.subn(pattern, replacement, text)
            found.update([pattern] * n)
        return text

    patch.setattr(codegen, "compiled_text", wrong)
    return found
